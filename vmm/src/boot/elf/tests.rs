use std::io::Cursor;

use super::super::test_images::{Elf, Segment as Part, memory};
use super::*;

fn load_bytes(bytes: Vec<u8>) -> Result<Loaded, ElfError> {
    load(&memory(8 << 20), &mut Cursor::new(bytes), Class::Bits64)
}

#[test]
fn segments_go_where_they_ask_to_and_the_note_gives_the_entry() {
    let memory = memory(8 << 20);
    let image = Elf {
        pvh: Some(0x20_0004),
        ..Elf::default()
    };
    let loaded = load(&memory, &mut Cursor::new(image.bytes()), Class::Bits64).unwrap();
    assert_eq!(
        loaded,
        Loaded {
            entry: 0x20_0000,
            pvh_entry: Some(0x20_0004),
            end: 0x20_2000
        }
    );
    let mut code = [0; 4];
    memory.read_slice(&mut code, GuestAddress(0x20_0000)).unwrap();
    assert_eq!(&code, b"code");
}

#[test]
fn an_image_without_the_note_has_only_its_own_entry() {
    let loaded = load_bytes(Elf::default().bytes()).unwrap();
    assert_eq!((loaded.entry, loaded.pvh_entry), (0x20_0000, None));
    assert!(!has_pvh_entry(&mut Cursor::new(Elf::default().bytes())));
    assert!(!has_pvh_entry(&mut Cursor::new(b"no image".to_vec())));
}

#[test]
fn an_image_that_ends_anywhere_is_truncated_and_never_a_panic() {
    let whole = Elf {
        pvh: Some(0x20_0004),
        ..Elf::default()
    }
    .bytes();
    for end in 0..whole.len() {
        let error = load_bytes(whole[..end].to_vec()).unwrap_err();
        assert!(
            matches!(error, ElfError::Truncated { size, .. } if size == end as u64),
            "{end} bytes: {error:?}"
        );
    }
}

#[test]
fn another_class_byte_order_or_machine_is_named() {
    for (at, byte, field) in [
        (0, b'M', "magic number"),
        (4, 1, "class"),
        (5, 2, "data encoding"),
        (18, 3, "machine"),
        (54, 32, "program header size"),
    ] {
        let mut bytes = Elf::default().bytes();
        bytes[at] = byte;
        let error = load_bytes(bytes).unwrap_err();
        assert!(
            matches!(error, ElfError::Unsuitable { what, .. } if what == field),
            "{field}: {error:?}"
        );
    }
}

#[test]
fn a_segment_outside_memory_is_refused_with_where_memory_is() {
    for (address, memory_size) in [
        (0x1000, 0x10),
        (0xf_fff0, 0x20),
        (0x7f_f000, 0x1001),
        (0x20_0000, 64 << 30),
        (0xc000_0000, 0x1000),
        (0x100_0000_0000, 0x1000),
    ] {
        let segment = Part {
            address,
            memory_size,
            ..Part::default()
        };
        let image = Elf {
            segments: vec![segment],
            entry: address,
            ..Elf::default()
        };
        let error = load_bytes(image.bytes()).unwrap_err();
        let ElfError::DoesNotFit { start, end, ram } = &error else {
            panic!("{address:#x}: {error:?}")
        };
        assert_eq!((*start, *end), (address, address + memory_size));
        assert_eq!(ram, "0x100000..0x800000");
    }
}

#[test]
fn a_segment_that_wraps_or_shrinks_is_malformed() {
    let wraps = Part {
        address: u64::MAX - 10,
        memory_size: 0x100,
        ..Part::default()
    };
    let shrinks = Part {
        memory_size: 1,
        ..Part::default()
    };
    for segment in [wraps, shrinks] {
        let error = load_bytes(
            Elf {
                segments: vec![segment],
                ..Elf::default()
            }
            .bytes(),
        )
        .unwrap_err();
        assert!(matches!(error, ElfError::MalformedSegment { .. }), "{error:?}");
    }
}

#[test]
fn nothing_to_load_and_an_entry_outside_the_image_are_refused() {
    let nothing = Elf {
        segments: Vec::new(),
        ..Elf::default()
    };
    assert!(matches!(load_bytes(nothing.bytes()), Err(ElfError::NoSegments)));
    let astray = Elf {
        entry: 0x30_0000,
        ..Elf::default()
    };
    assert!(matches!(
        load_bytes(astray.bytes()),
        Err(ElfError::Entry { entry: 0x30_0000 })
    ));
    let note_astray = Elf {
        pvh: Some(8),
        ..Elf::default()
    };
    assert!(matches!(
        load_bytes(note_astray.bytes()),
        Err(ElfError::Entry { entry: 8 })
    ));
}

#[test]
fn a_note_segment_full_of_rubbish_is_only_no_note() {
    for filler in [0, 0x41, 0xff] {
        let mut bytes = Elf {
            pvh: Some(0x20_0004),
            ..Elf::default()
        }
        .bytes();
        let note = bytes.windows(4).position(|window| window == b"Xen\0").unwrap() - 12;
        bytes[note..].fill(filler);
        assert_eq!(load_bytes(bytes).unwrap().pvh_entry, None, "{filler:#x}");
    }
}

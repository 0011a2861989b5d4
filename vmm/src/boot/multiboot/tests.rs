use std::io::Cursor;

use proptest::prelude::*;
use vm_memory::GuestMemoryBackend;

use super::super::test_images::{self, memory};
use super::*;

type Image = test_images::Multiboot;

fn load_into(memory: &GuestMemory, bytes: Vec<u8>) -> Result<Loaded, MultibootError> {
    let mut image = Cursor::new(bytes);
    let header = Header::find(&mut image).unwrap().expect("there is a header");
    header.load(memory, &mut image)
}

fn load_bytes(bytes: Vec<u8>) -> Result<Loaded, MultibootError> {
    load_into(&memory(8 << 20), bytes)
}

fn by(header: u32, load: u32, load_end: u32, bss_end: u32, entry: u32) -> Image {
    Image {
        addresses: Some([header, load, load_end, bss_end, entry]),
        ..Image::default()
    }
}

fn at<const N: usize>(memory: &GuestMemory, address: u64) -> [u8; N] {
    let mut bytes = [0; N];
    memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
    bytes
}

#[test]
fn the_header_is_found_on_a_word_that_it_ends_within_8_kib_and_nowhere_else() {
    let header = by(0x10_0000, 0x10_0000, 0, 0, 0x10_0000).bytes();
    for (before, found) in [
        (0, true),
        (4, true),
        (8192 - 32, true),
        (8192 - 28, false),
        (8192, false),
        (2, false),
    ] {
        let mut bytes = vec![0; before];
        bytes.extend(&header);
        let header = Header::find(&mut Cursor::new(bytes)).unwrap();
        assert_eq!(
            header.map(|header| header.offset),
            found.then_some(before as u64),
            "{before}"
        );
    }
}

#[test]
fn a_wrong_magic_or_checksum_is_no_header() {
    let find = |bytes: &[u8]| Header::find(&mut Cursor::new(bytes)).unwrap();
    let good = Image::default().bytes();
    assert!(find(&good).is_some());
    for byte in 0..12 {
        let mut bad = good.clone();
        bad[byte] ^= 0x20;
        assert_eq!(find(&bad), None, "byte {byte}");
    }
    let multiboot_2 = Image {
        magic: 0xe852_50d6,
        ..Image::default()
    };
    assert_eq!(find(&multiboot_2.bytes()), None);
    assert_eq!(find(&good[..11]), None);
    assert_eq!(find(b""), None);
}

#[test]
fn a_32_bit_elf_image_lies_at_its_physical_addresses_and_so_does_its_entry() {
    let memory = memory(8 << 20);
    let loaded = load_into(&memory, Image::default().in_elf_32()).unwrap();
    assert_eq!(
        loaded,
        Loaded {
            entry: 0x20_000c,
            end: 0x20_2000
        }
    );
    assert_eq!(&at(&memory, 0x20_000c), b"multiboot code");
}

#[test]
fn the_addresses_of_the_header_say_what_is_loaded_where() {
    // 64 bytes before the header are loaded too.
    let mut bytes = b"sixteen before, ".repeat(4);
    bytes.extend(by(0x20_0040, 0x20_0000, 0x20_0064, 0x20_3000, 0x20_0060).bytes());
    let memory = memory(8 << 20);
    let loaded = load_into(&memory, bytes).unwrap();
    assert_eq!(
        loaded,
        Loaded {
            entry: 0x20_0060,
            end: 0x20_3000
        }
    );
    assert_eq!(&at(&memory, 0x20_0000), b"sixteen before, ");
    assert_eq!(
        &at(&memory, 0x20_0060),
        b"mult\0\0\0\0",
        "the rest of the file is not loaded"
    );
}

#[test]
fn addresses_of_zero_mean_the_whole_file_and_no_bss() {
    let image = by(0x10_0000, 0x10_0000, 0, 0, 0x10_0020);
    let memory = memory(8 << 20);
    let loaded = load_into(&memory, image.bytes()).unwrap();
    assert_eq!(loaded.end, 0x10_0000 + 32 + 14);
    assert_eq!(&at(&memory, 0x10_0020), b"multiboot code");
}

#[test]
fn the_addresses_come_before_the_elf_headers() {
    let mut image = by(0x30_0000, 0x30_0000, 0, 0, 0x30_0020);
    image.content = b"by address".to_vec();
    for bytes in [image.in_elf_32(), image.in_elf_64(None)] {
        let memory = memory(8 << 20);
        assert_eq!(load_into(&memory, bytes).unwrap().entry, 0x30_0020);
        assert_eq!(&at(&memory, 0x30_0020), b"by address");
    }
}

#[test]
fn addresses_that_contradict_each_other_are_refused_by_name() {
    let end = 0x10_0000 + 32 + 14;
    for (image, wrong) in [
        (by(0xf_ffff, 0x10_0000, 0, 0, 0x10_0000), "header_addr"),
        (by(0x10_0004, 0x10_0000, 0, 0, 0x10_0000), "header_addr"),
        (by(0x10_0000, 0x10_0000, 0xf_ffff, 0, 0x10_0000), "load_end_addr"),
        (by(0x10_0000, 0x10_0000, 0, end - 1, 0x10_0000), "bss_end_addr"),
        (
            by(0x10_0000, 0x10_0000, 0x10_0020, 0x10_001f, 0x10_0000),
            "bss_end_addr",
        ),
    ] {
        let error = load_bytes(image.bytes()).unwrap_err();
        assert!(
            matches!(error, MultibootError::Address { field, .. } if field == wrong),
            "{wrong}: {error:?}"
        );
    }
}

#[test]
fn what_the_file_or_memory_does_not_have_is_refused() {
    let error = load_bytes(by(0x10_0000, 0x10_0000, 0x10_0040, 0, 0x10_0000).bytes()).unwrap_err();
    assert!(
        matches!(
            error,
            MultibootError::Image(ElfError::Truncated { end: 64, size: 46, .. })
        ),
        "{error:?}"
    );
    for image in [
        by(0x7000, 0x7000, 0, 0, 0x7000),
        by(0x7f_fff0, 0x7f_fff0, 0, 0, 0x7f_fff0),
        by(0x10_0000, 0x10_0000, 0, 0xf000_0000, 0x10_0000),
        by(0xffff_fff0, 0xffff_fff0, 0, 0, 0xffff_fff0),
    ] {
        let error = load_bytes(image.bytes()).unwrap_err();
        assert!(
            matches!(error, MultibootError::Image(ElfError::DoesNotFit { .. })),
            "{error:?}"
        );
    }
    let error = load_bytes(by(0x10_0000, 0x10_0000, 0, 0, 0x10_0100).bytes()).unwrap_err();
    assert!(
        matches!(error, MultibootError::Image(ElfError::Entry { entry: 0x10_0100 })),
        "{error:?}"
    );
}

#[test]
fn features_that_must_be_understood_and_are_not_are_refused_and_a_video_mode_is_not() {
    let with = |flags| {
        let image = Image {
            flags,
            ..Image::default()
        };
        load_bytes(image.in_elf_32())
    };
    assert!(with(0).is_ok());
    assert!(with(0b111).is_ok());
    assert!(with(0xfffe_0000).is_ok(), "bits 17 to 31 may be ignored");
    let error = with(0b1001).unwrap_err();
    assert!(
        matches!(
            error,
            MultibootError::Requires {
                offset: 84,
                flags: 0b1000
            }
        ),
        "{error:?}"
    );
}

#[test]
fn a_64_bit_image_or_none_needs_addresses() {
    assert!(matches!(
        load_bytes(Image::default().in_elf_64(None)),
        Err(MultibootError::Class64)
    ));
    assert!(matches!(
        load_bytes(Image::default().bytes()),
        Err(MultibootError::NoAddresses)
    ));
}

#[test]
fn an_image_that_ends_anywhere_is_an_error_and_never_a_panic() {
    let elf = Image::default().in_elf_32();
    for end in 84 + 12..elf.len() {
        let error = load_bytes(elf[..end].to_vec()).unwrap_err();
        assert!(
            matches!(error, MultibootError::Image(ElfError::Truncated { .. })),
            "{end}: {error:?}"
        );
    }
}

#[test]
fn the_command_line_begins_with_the_kernel() {
    assert_eq!(command_line(b"/boot/test.elf", "a=1 b"), b"/boot/test.elf a=1 b");
    assert_eq!(command_line(b"/boot/test.elf", ""), b"/boot/test.elf");
}

/// Guest memory outside where kernels may lie is as it was.
fn low_memory_is_untouched(memory: &GuestMemory) -> bool {
    at::<0x1000>(memory, 0).iter().all(|byte| *byte == 0)
        && (0x1000..layout::HIGH_START)
            .step_by(0x1000)
            .all(|page| at::<0x1000>(memory, page).iter().all(|byte| *byte == 0))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_addresses_load_within_memory_or_are_an_error(
        before in (0_usize..64).prop_map(|words| 4 * words),
        mut addresses in prop::array::uniform5(prop_oneof![
            0x10_0000_u32..0x10_0200, 0x7f_ff00_u32..0x80_0100, any::<u32>(), Just(0),
        ]),
        consistent in any::<bool>(),
    ) {
        if consistent {
            // What is before the header in the file is before it in memory.
            addresses[1] = addresses[0].saturating_sub(before as u32);
        }
        let mut bytes = vec![0xcc; before];
        bytes.extend(Image { addresses: Some(addresses), ..Image::default() }.bytes());
        let memory = memory(8 << 20);
        if let Ok(loaded) = load_into(&memory, bytes) {
            prop_assert!(loaded.entry < loaded.end && loaded.end <= memory.last_addr().0 + 1);
        }
        prop_assert!(low_memory_is_untouched(&memory));
    }

    #[test]
    fn any_damage_to_an_elf_image_leaves_a_kernel_within_memory_or_an_error(
        damage in prop::collection::vec((0_usize..110, any::<u8>()), 1..6),
    ) {
        let mut bytes = Image::default().in_elf_32();
        for (at, byte) in damage {
            bytes[at] = byte;
        }
        let mut image = Cursor::new(bytes);
        let memory = memory(8 << 20);
        if let Some(header) = Header::find(&mut image).unwrap()
            && let Ok(loaded) = header.load(&memory, &mut image)
        {
            prop_assert!(loaded.end <= memory.last_addr().0 + 1);
        }
        prop_assert!(low_memory_is_untouched(&memory));
    }
}

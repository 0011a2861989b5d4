use proptest::prelude::*;

use super::*;

const IDENTITY: Identity = Identity {
    vendor: 0x1af4,
    device: 0x1042,
    revision: 1,
    class: [0x01, 0x80, 0x02],
    subsystem_vendor: 0x1af4,
    subsystem: 0x40,
};

fn bar(index: u8, size: u64, wide: bool) -> Bar {
    Bar {
        index,
        size,
        wide,
        prefetchable: false,
    }
}

fn space() -> ConfigSpace {
    let mut space = ConfigSpace::new(IDENTITY);
    space.add_bar(bar(0, 0x4000, true)).unwrap();
    space.add_bar(bar(3, 0x10, false)).unwrap();
    space
}

#[test]
fn the_header_says_what_the_device_is() {
    let space = space();
    assert_eq!(space.u32(0x00), 0x1042_1af4);
    assert_eq!(space.u32(0x08), 0x0180_0201, "class code and revision");
    assert_eq!(space.u32(0x2c), 0x0040_1af4);
    assert_eq!(space.read(0x0e, 1), 0, "a single-function device with a type 0 header");
    assert_eq!(space.read(0x3d, 1), 0, "no interrupt pin");
    assert_eq!(space.u16(spec::STATUS), 0, "no capabilities yet");
}

#[test]
fn all_ones_written_to_a_bar_read_as_its_size() {
    let mut space = space();
    space.write(0x10, 4, 0xffff_ffff);
    space.write(0x14, 4, 0xffff_ffff);
    assert_eq!(
        (space.u32(0x10), space.u32(0x14)),
        (0xffff_c004, 0xffff_ffff),
        "64 bits, 16 KiB"
    );
    space.write(0x1c, 4, 0xffff_ffff);
    assert_eq!(space.u32(0x1c), 0xffff_fff0, "32 bits, 16 bytes");
    space.write(0x18, 4, 0xffff_ffff);
    assert_eq!(space.u32(0x18), 0, "a register without a BAR");
}

#[test]
fn a_bar_answers_while_memory_space_is_enabled_and_it_has_an_address() {
    let mut space = space();
    let wide = space.bars()[0];
    space.write(0x10, 8, 0x12_3456_7fff);
    assert_eq!(space.address(wide), 0x12_3456_4000);
    assert_eq!(space.decoded(wide), None);
    space.write(0x04, 1, 0x02);
    assert_eq!(space.decoded(wide), Some(0x12_3456_4000));
    space.write(0x10, 8, 0);
    assert_eq!(space.decoded(wide), None);
}

#[test]
fn capabilities_are_a_list() {
    let mut space = space();
    let first = space.add_capability(0x09, &[1, 2, 3], &[]).unwrap();
    let second = space.add_capability(0x11, &[0; 10], &[0, 0xc0]).unwrap();
    assert_eq!((first, second), (0x40, 0x48));
    assert_eq!(space.u16(spec::STATUS) & 0x10, 0x10);
    assert_eq!(space.read(0x34, 1), 0x40);
    assert_eq!(space.read(0x40, 8), 0x0302_014809);
    assert_eq!(space.u16(0x48), 0x0011);
    space.write(0x48, 4, u64::MAX);
    assert_eq!(space.u32(0x48), 0xc000_0011);
}

#[test]
fn what_cannot_be_laid_out_is_refused() {
    let mut space = space();
    for (index, size, wide) in [
        (0, 0x10, false),
        (1, 0x10, false),
        (2, 0x10, true),
        (5, 0x10, true),
        (6, 0x10, false),
        (4, 0x18, false),
        (4, 8, false),
        (4, 1 << 32, false),
    ] {
        assert!(
            space.add_bar(bar(index, size, wide)).is_err(),
            "{index} {size:#x} {wide}"
        );
    }
    assert!(space.add_capability(0x09, &[0; 191], &[]).is_err());
    assert!(space.add_capability(0x09, &[0; 190], &[]).is_ok());
    assert!(space.add_capability(0x09, &[], &[]).is_err(), "it is full");
}

proptest! {
    #[test]
    fn a_write_does_what_its_bytes_do_one_by_one(
        writes in prop::collection::vec((0_u64..270, prop::sample::select(vec![1_u8, 2, 4, 8]), any::<u64>()), 0..20),
    ) {
        let (mut wide, mut narrow) = (space(), space());
        for (offset, size, value) in writes {
            wide.write(offset, size, value);
            for (at, byte) in value.to_le_bytes().into_iter().take(size.into()).enumerate() {
                narrow.write(offset + at as u64, 1, byte.into());
            }
            let bytes = (0..u64::from(size)).rev();
            let read = bytes.fold(0, |value, at| value << 8 | narrow.read(offset + at, 1));
            prop_assert_eq!(wide.read(offset, size), read);
        }
        prop_assert_eq!(&wide, &narrow);
        prop_assert_eq!(wide.u32(0), 0x1042_1af4);
    }

    #[test]
    fn a_space_restored_from_its_bytes_is_the_same(
        writes in prop::collection::vec((0_u64..256, any::<u64>()), 0..20),
    ) {
        let mut old = space();
        for (offset, value) in writes {
            old.write(offset, 4, value);
        }
        let mut new = space();
        new.restore(old.bytes());
        prop_assert_eq!(new, old);
    }
}

//! PCI under any accesses in any order; the fuzz target `pci` does the same with a fuzzer's bytes.

mod model;

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn ranges_are_where_registers_ask_for_them_and_both_ways_show_the_same(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        model::operate(&bytes);
    }
}

#[test]
fn bars_move_and_messages_are_sent() {
    // Device 1: memory and bus master on, its BAR moved, MSI-X enabled, vector 0 unmasked and signalled.
    let mut bytes = Vec::new();
    bytes.extend([0, 1, 0x04, 1, 6, 0]);
    bytes.extend([0, 1, 0x12, 1, 0x34, 0xd0]);
    bytes.extend([0, 1, 0x42, 1, 0x00, 0x80]);
    bytes.extend([2, 0, 0, 3, 0x10, 0x20]);
    bytes.extend([2, 0, 0x0c, 2, 0, 0]);
    bytes.extend([3, 0, 0, 0, 0, 0]);
    bytes.extend([4, 0, 0, 0, 0, 0]);
    let seen = model::operate(&bytes);
    assert_eq!((seen.placed, seen.sent), (vec![0xd034_0000], 1));
}

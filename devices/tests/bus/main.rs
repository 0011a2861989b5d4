//! The bus under any operations in any order; the fuzz target `bus` does the same with a fuzzer's bytes.

mod model;

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_byte_has_one_owner_who_is_asked_once_for_what_is_its_own(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        model::operate(&bytes);
    }
}

#[test]
fn accesses_reach_devices_and_late_ones() {
    // A range, and reads of all widths in it.
    let mut bytes = vec![0, 0, 1, 0, 11, 3, 0];
    for address in 0..12 {
        bytes.extend([2, 0, 1, address, address, 1]);
    }
    let (reached, late) = model::operate(&bytes);
    assert!(reached > 8 && late > 2, "{reached} {late}");
}

//! A vfio-user client of a process that sends what it likes; the fuzz target `vfio_user` does the same with a fuzzer's bytes.

mod model;

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_process_says_every_question_is_answered(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        model::operate(&bytes);
    }
}

#[test]
fn a_process_that_keeps_to_the_protocol_is_understood() {
    // Well to the end, but for accesses to memory and replies in parts.
    assert_eq!(model::operate(&[64; 400]), 8);
    assert_eq!(model::operate(&[255, 5, 1, 2, 0, 0, 4, 255, 8, 3].repeat(40)), 8);
}

//! Configurations that nobody in their senses writes; the fuzz target `config` does the same with a fuzzer's bytes.

mod model;

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_configuration_says_it_is_taken_or_refused_and_means_the_same_written_out(
        bytes in prop::collection::vec(any::<u8>(), 0..60),
    ) {
        model::read(&bytes);
    }
}

#[test]
fn what_nothing_is_changed_in_is_valid() {
    assert!(model::read(&[]));
}

#[test]
fn a_change_reaches_every_place_of_a_configuration() {
    let changed: std::collections::HashSet<_> = (0..=u16::MAX)
        .map(|place| model::changed(&[0, place as u8, (place >> 8) as u8, 0]))
        .collect();
    assert!(changed.len() > 80, "{}", changed.len());
}

//! virtio devices under hostile drivers; the fuzz target `virtio` does the same with a fuzzer's bytes.

mod model;

use std::time::{Duration, Instant};

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_driver_does_a_device_can_be_reset_and_used(bytes in prop::collection::vec(any::<u8>(), 0..1200)) {
        model::operate(&bytes);
    }
}

#[test]
fn random_rings_reach_the_devices() {
    // Eight chains, each of one descriptor: 32 bytes to be written, by the source of entropy.
    let mut bytes = vec![1];
    for index in 0..8_u8 {
        bytes.extend([0, index, 0x10, 32, 2, 0]);
    }
    bytes.extend([1, 8, 0, 0, 0, 0]);
    bytes.extend([2, 0, 0, 0, 0, 0]);
    // The queue's thread is as fast as the host lets it be, and the hostile driver is gone soon.
    bytes.extend([5, 0, 0, 0, 0, 0].repeat(20));
    let start = Instant::now();
    while model::operate(&bytes) < 8 {
        assert!(start.elapsed() < Duration::from_secs(60), "no request is served");
    }
}

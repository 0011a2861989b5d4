//! Consoles, sockets and balloons under hostile drivers; the fuzz target `streams` does the same with a fuzzer's bytes.

mod model;

use std::time::{Duration, Instant};

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_driver_and_the_host_do_a_device_can_be_reset_and_used(bytes in prop::collection::vec(any::<u8>(), 0..1200)) {
        model::operate(&bytes);
    }
}

#[test]
fn random_rings_reach_each_of_the_devices() {
    for which in 0..model::KINDS {
        let mut bytes = vec![which];
        for queue in [0, 0x20, 0x40] {
            for index in 0..8_u8 {
                // 256 bytes: of the first queue to be written, of the others to be read.
                bytes.extend([queue, index, 0x10, 16, if queue == 0 { 2 } else { 0 }, 0]);
            }
        }
        // Something for the buffers that are to be written.
        bytes.extend([5, 64, 0, 0, 0, 0].repeat(8));
        for queue in [0, 0x20, 0x40] {
            bytes.extend([queue | 1, 8, 0, 0, 0, 0]);
            bytes.extend([queue | 2, 0, 0, 0, 0, 0]);
        }
        // The queues' threads are as fast as the host lets them be, and the hostile driver is gone soon.
        bytes.extend([6, 0, 0, 0, 0, 0].repeat(20));
        let start = Instant::now();
        while model::operate(&bytes) < 1 {
            assert!(
                start.elapsed() < Duration::from_secs(60),
                "no request is served by {which}"
            );
        }
    }
}

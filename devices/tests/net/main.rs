//! Network cards between hostile drivers and hostile networks; the fuzz target `net` does the same with a fuzzer's bytes.

mod model;

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_driver_and_a_network_do_a_card_can_be_reset_and_used(bytes in prop::collection::vec(any::<u8>(), 0..1200)) {
        model::operate(&bytes);
    }
}

#[test]
fn random_rings_carry_frames_and_commands() {
    // Mergeable buffers; frames of 64 bytes from the network, and chains of one or two descriptors.
    let mut bytes = vec![1];
    for index in 0..8_u8 {
        // Queue 0: 256 bytes to be written. Queue 1: 64 bytes to be read. Queue 2: a command and its answer.
        bytes.extend([0, index, 0x10, 16, 0x02, 0]);
        bytes.extend([0x40, index, 0x11, 4, 0x00, 0]);
        bytes.extend([0x80, index, 0x12, 1, (index + 1) << 4 | 1, 0]);
        bytes.extend([0x80, index | 1, 0x13, 1, 0x02, 0]);
        bytes.extend([5, 64, 0, 0, 0, 0]);
    }
    for queue in [0, 0x40, 0x80] {
        bytes.extend([queue | 1, 8, 0, 0, 0, 0]);
        bytes.extend([queue | 2, 0, 0, 0, 0, 0]);
    }
    bytes.extend([6, 0, 0, 0, 0, 0].repeat(20));
    let start = std::time::Instant::now();
    while model::operate(&bytes) < 8 {
        assert!(
            start.elapsed() < std::time::Duration::from_secs(60),
            "no request is served"
        );
    }
}

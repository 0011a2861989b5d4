//! Frames to the guest.

use super::super::super::testing::rings;
use super::*;

const SENT: [u8; 12] = [1, 3, 9, 0, 7, 0, 34, 0, 16, 0, 0xaa, 0xaa];

/// A frame with its header as the guest shall see it.
fn arrived(buffers: u16, frame: &[u8]) -> Vec<u8> {
    [&SENT[..10], &buffers.to_le_bytes(), frame].concat()
}

#[test]
fn a_frame_arrives_in_the_next_buffer_with_its_header() {
    for features in [0, MRG_RXBUF, MRG_RXBUF | EVENT_IDX] {
        let (wire, mut driver) = card(features);
        driver.offer(0, &[(BUFFERS, 2000, true)]);
        driver.offer(0, &[(BUFFERS + 0x1000, 2000, true)]);
        driver.notify(0);
        wire.send(0, SENT, &frame(1500));
        wire.send(0, SENT, &frame(60));
        eventually("both frames", || driver.used(0) == 2);
        assert_eq!((driver.used_element(0, 0).1, driver.used_element(0, 1).1), (1512, 72));
        assert_eq!(driver.get(BUFFERS, 1512), arrived(1, &frame(1500)));
        assert_eq!(driver.get(BUFFERS + 0x1000, 72), arrived(1, &frame(60)));
        assert_eq!((driver.counter("rx_frames"), driver.counter("rx_bytes")), (2, 1560));
    }
}

#[test]
fn what_arrived_was_told_to_the_watcher() {
    let (wire, mut driver) = card(MRG_RXBUF);
    wire.send(0, SENT, &frame(3000));
    driver.offer(0, &[(BUFFERS, 1000, true)]);
    driver.offer(0, &[(BUFFERS + 0x1000, 1000, true)]);
    driver.offer(0, &[(BUFFERS + 0x2000, 4000, true)]);
    driver.notify(0);
    eventually("the frame", || driver.used(0) == 3);
    let told = driver.writes.0.lock().unwrap();
    for address in (BUFFERS..BUFFERS + 1000).chain(BUFFERS + 0x2000..BUFFERS + 0x2000 + 1012) {
        let is_told = |(start, length): &(u64, u64)| (*start..start + length).contains(&address);
        assert!(told.iter().any(is_told), "{address:#x}");
    }
}

#[test]
fn a_long_frame_fills_as_many_buffers_as_it_takes_and_they_appear_at_once() {
    let (wire, mut driver) = card(MRG_RXBUF);
    wire.send(0, SENT, &frame(5000));
    for buffer in 0..3 {
        let base = BUFFERS + 0x1000 * buffer;
        driver.offer(0, &[(base, 1000, true), (base + 0x800, 500, true)]);
    }
    driver.notify(0);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(driver.used(0), 0, "4500 bytes are not enough for 5012");
    driver.offer(0, &[(BUFFERS + 0x3000, 4096, true)]);
    driver.notify(0);
    eventually("the frame", || driver.used(0) != 0);
    assert_eq!(driver.used(0), 4);
    let lengths: Vec<_> = (0..4).map(|index| driver.used_element(0, index).1).collect();
    assert_eq!(lengths, [1500, 1500, 1500, 512]);
    let mut bytes = vec![];
    for buffer in 0..3 {
        bytes.extend(driver.get(BUFFERS + 0x1000 * buffer, 1000));
        bytes.extend(driver.get(BUFFERS + 0x800 + 0x1000 * buffer, 500));
    }
    bytes.extend(driver.get(BUFFERS + 0x3000, 512));
    assert_eq!(bytes, arrived(4, &frame(5000)));
    eventually("the count", || driver.counter("requests") == 4);
}

#[test]
fn a_frame_that_waits_for_buffers_is_woken_with_event_index_too() {
    let (wire, mut driver) = card(MRG_RXBUF | EVENT_IDX);
    wire.send(0, SENT, &frame(3000));
    driver.offer(0, &[(BUFFERS, 1000, true)]);
    driver.notify(0);
    // The driver is asked to notify of the second buffer, not of the first again.
    let (_, _, device) = rings(0);
    eventually("avail_event", || driver.get(device + 4 + 8 * 16, 2) == [1, 0]);
    driver.offer(0, &[(BUFFERS + 0x1000, 4000, true)]);
    driver.notify(0);
    eventually("the frame", || driver.used(0) == 2);
    assert_eq!(driver.used_element(0, 1).1, 2012);
}

#[test]
fn a_frame_that_no_queue_of_this_size_can_hold_is_dropped_and_the_next_arrives() {
    let (wire, mut driver) = card(MRG_RXBUF);
    for buffer in 0..16 {
        driver.offer(0, &[(BUFFERS + 0x100 * buffer, 100, true)]);
    }
    driver.notify(0);
    wire.send(0, SENT, &frame(1600));
    eventually("that it is dropped", || driver.counter("rx_drops") == 1);
    wire.send(0, SENT, &frame(60));
    driver.notify(0);
    eventually("the next", || driver.used(0) == 1);
    assert_eq!(driver.get(BUFFERS, 72), arrived(1, &frame(60)));
}

#[test]
fn without_mergeable_buffers_a_frame_that_does_not_fit_is_dropped() {
    let (wire, mut driver) = card(0);
    driver.offer(0, &[(BUFFERS, 1000, true)]);
    driver.offer(0, &[(BUFFERS + 0x1000, 4000, true)]);
    wire.send(0, SENT, &frame(1000));
    wire.send(0, SENT, &frame(1001));
    driver.notify(0);
    eventually("the next", || driver.used(0) == 2);
    assert_eq!((driver.used_element(0, 0).1, driver.used_element(0, 1).1), (0, 1013));
    assert_eq!((driver.counter("rx_drops"), driver.counter("malformed")), (1, 1));
}

#[test]
fn the_longest_frame_arrives_in_large_buffers_without_mergeable_ones() {
    let (wire, mut driver) = card(GUEST_CSUM | GUEST_TSO4);
    let mut buffers: Vec<_> = (0..15).map(|page| (BUFFERS + 0x1000 * page, 0x1000, true)).collect();
    buffers.push((BUFFERS + 0xf000, 0x2000, true));
    driver.offer(0, &buffers);
    driver.notify(0);
    wire.send(0, SENT, &frame(FRAME));
    eventually("the frame", || driver.used(0) == 1);
    assert_eq!(driver.get(BUFFERS, 12 + FRAME), arrived(1, &frame(FRAME)));
}

#[test]
fn nothing_is_taken_from_the_link_while_there_are_no_buffers() {
    let (wire, mut driver) = card(MRG_RXBUF);
    for _ in 0..3 {
        wire.send(0, SENT, &frame(60));
    }
    driver.offer(0, &[(BUFFERS, 2000, true)]);
    driver.notify(0);
    eventually("one", || driver.used(0) == 1);
    driver.offer(0, &[(BUFFERS, 2000, true)]);
    driver.offer(0, &[(BUFFERS, 2000, true)]);
    driver.notify(0);
    eventually("the others", || driver.used(0) == 3);
    assert_eq!((driver.counter("rx_frames"), driver.counter("rx_drops")), (3, 0));
}

#[test]
fn what_is_received_is_limited_and_no_frame_is_parted() {
    let options = NetOptions {
        receive_limiter: Some(limiter(Some((1000, 100)), None)),
        ..options()
    };
    let (wire, mut driver) = card_of(1, MRG_RXBUF, options);
    let start = Instant::now();
    for _ in 0..4 {
        wire.send(0, SENT, &frame(988));
        driver.offer(0, &[(BUFFERS, 500, true)]);
        driver.offer(0, &[(BUFFERS, 500, true)]);
    }
    driver.notify(0);
    eventually("the last frame", || driver.used(0) == 8);
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(190), "{took:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn frames_arrive_whole_and_in_order_whatever_the_buffers(
        lengths in prop::collection::vec(14_usize..4000, 1..6),
        buffers in prop::collection::vec((12_u32..3000, 0_u32..4), 16),
    ) {
        let (wire, mut driver) = card(MRG_RXBUF);
        // Buffers of one or two pieces, offered one by one for as long as there are frames.
        let chain = |index: u16| {
            let (first, second) = buffers[usize::from(index) % 16];
            let base = BUFFERS + u64::from(index % 16) * 0x1000;
            let mut chain = vec![(base, first, true)];
            if second > 0 {
                chain.push((base + 0xc00, second, true));
            }
            chain
        };
        for length in &lengths {
            wire.send(0, [0; 12], &frame(*length));
        }
        let (mut offered, mut seen, mut frames) = (0, 0, vec![]);
        let mut bytes = vec![];
        while frames.len() < lengths.len() {
            let started = Instant::now();
            while driver.used(0) == seen && started.elapsed() < Duration::from_millis(2) {
                std::hint::spin_loop();
            }
            if driver.used(0) == seen {
                // A driver with all its descriptors in use would wait for ever; and a frame be dropped that needs more.
                if offered - seen >= 8 {
                    break;
                }
                driver.offer(0, &chain(offered));
                offered += 1;
                driver.notify(0);
                continue;
            }
            let (_, length) = driver.used_element(0, seen);
            let mut left = length as usize;
            for (address, room, _) in chain(seen) {
                let part = left.min(room as usize);
                bytes.extend(driver.get(address, part));
                left -= part;
            }
            seen += 1;
            if bytes.len() == 12 + lengths[frames.len()] {
                frames.push(bytes.split_off(12));
                bytes.clear();
            }
        }
        let expected: Vec<_> = lengths.iter().take(frames.len()).map(|length| frame(*length)).collect();
        prop_assert_eq!(frames, expected);
    }
}

//! Frames from the guest.

use super::*;

#[test]
fn a_frame_goes_out_as_it_is_behind_its_header() {
    let (wire, mut driver) = card(CSUM | HOST_TSO4);
    let asked = [1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 0, 0];
    transmit(&mut driver, asked, &frame(4000));
    assert_eq!(wire.receive(0), Some((asked, frame(4000))));
    transmit(&mut driver, [0; 12], &frame(14));
    assert_eq!(wire.receive(0), Some(([0; 12], frame(14))));
    assert_eq!((driver.counter("tx_frames"), driver.counter("tx_bytes")), (2, 4014));
}

#[test]
fn the_longest_segment_goes_out_whole_and_a_longer_one_not_at_all() {
    let (wire, mut driver) = card(0);
    transmit(&mut driver, [0; 12], &frame(FRAME));
    assert_eq!(wire.receive(0).unwrap().1, frame(FRAME));
    transmit(&mut driver, [0; 12], &frame(FRAME + 1));
    assert_eq!(wire.receive(0), None);
    assert_eq!(driver.counter("tx_malformed"), 1);
}

#[test]
fn a_frame_that_the_link_does_not_take_is_dropped_and_counted() {
    let (wire, mut driver) = card(0);
    // Until the socket is full.
    for _ in 0..2000 {
        transmit(&mut driver, [0; 12], &frame(1500));
    }
    let (sent, dropped) = (driver.counter("tx_frames"), driver.counter("tx_drops"));
    assert!(dropped > 0);
    assert_eq!(sent + dropped, 2000);
    while wire.receive(0).is_some() {}
    transmit(&mut driver, [0; 12], &frame(60));
    assert_eq!(wire.receive(0).unwrap().1, frame(60), "and the next goes out");
}

#[test]
fn a_driver_is_limited_to_its_rate_and_loses_nothing() {
    let options = NetOptions {
        transmit_limiter: Some(limiter(None, Some((4, 80)))),
        ..options()
    };
    let (wire, mut driver) = card_of(1, 0, options);
    let start = Instant::now();
    driver.put(BUFFERS, &[&[0; 12][..], &frame(60)].concat());
    for _ in 0..12 {
        driver.offer(1, &[(BUFFERS, 72, false)]);
    }
    driver.notify(1);
    eventually("the last frame", || driver.used(1) == 12);
    let took = start.elapsed();
    assert!(
        took >= Duration::from_millis(140),
        "eight frames flow in 160 ms: {took:?}"
    );
    assert_eq!(std::iter::from_fn(|| wire.receive(0)).count(), 12);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn a_frame_is_what_its_bytes_say_however_they_are_cut(
        length in 14_usize..3000,
        cuts in prop::collection::vec(1_u32..500, 0..14),
    ) {
        let (wire, mut driver) = card(0);
        driver.put(BUFFERS, &[&[0; 12][..], &frame(length)].concat());
        let (mut buffers, mut at, mut left) = (vec![], BUFFERS, 12 + length as u32);
        for cut in cuts.into_iter().chain([u32::MAX]) {
            let part = cut.min(left);
            if part > 0 {
                buffers.push((at, part, false));
            }
            at += u64::from(part);
            left -= part;
        }
        driver.request(1, &buffers);
        prop_assert_eq!(wire.receive(0).map(|(_, frame)| frame), Some(frame(length)));
    }
}

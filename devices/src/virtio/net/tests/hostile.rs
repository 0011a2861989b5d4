//! Drivers that lie.

use super::*;

const OUTSIDE: u64 = 1 << 40;

/// The card works in both directions.
fn assert_sane(wire: &Wire, driver: &mut Driver) {
    transmit(driver, [0; 12], &frame(64));
    assert_eq!(wire.receive(0), Some(([0; 12], frame(64))));
    let before = driver.used(0);
    driver.offer(0, &[(BUFFERS, 2000, true)]);
    driver.notify(0);
    wire.send(0, [0; 12], &frame(64));
    eventually("a frame", || driver.used(0) == before.wrapping_add(1));
    assert_eq!(driver.get(BUFFERS + 12, 64), frame(64));
}

#[test]
fn a_frame_that_is_none_is_not_sent() {
    let (wire, mut driver) = card(CSUM | HOST_TSO4);
    driver.put(BUFFERS, &[0; 4096]);
    for (what, buffers) in [
        ("half a header", &[(BUFFERS, 11, false)][..]),
        ("a header alone", &[(BUFFERS, 12, false)]),
        ("half an address", &[(BUFFERS, 20, false)]),
        ("nothing at all", &[(BUFFERS, 0, false)]),
        ("a buffer to be written", &[(BUFFERS, 100, true)]),
        ("outside memory", &[(OUTSIDE, 100, false)]),
        ("a frame outside memory", &[(BUFFERS, 12, false), (OUTSIDE, 100, false)]),
        (
            "an end outside memory",
            &[(BUFFERS, 100, false), (0xf_fff0, 100, false)],
        ),
        (
            "an address that wraps",
            &[(BUFFERS, 12, false), (u64::MAX - 10, 100, false)],
        ),
        ("nearly 4 GiB", &[(BUFFERS, 0x1000_0000, false); 15]),
    ] {
        let before = driver.counter("tx_malformed");
        driver.request(1, buffers);
        assert_eq!(driver.counter("tx_malformed"), before + 1, "{what}");
        assert_eq!(wire.receive(0), None, "{what}");
    }
    assert_sane(&wire, &mut driver);
}

#[test]
fn a_header_that_lies_is_not_passed_on() {
    let (wire, mut driver) = card(CSUM | HOST_TSO4);
    for header in [
        [1, 4, 54, 0, 0xb4, 5, 34, 0, 16, 0, 0, 0],
        [0, 1, 54, 0, 0, 0, 34, 0, 16, 0, 0, 0],
        [0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        [1, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0],
        [0xff; 12],
    ] {
        transmit(&mut driver, header, &frame(200));
        assert_eq!(wire.receive(0), None, "{header:?}");
    }
    assert_eq!(driver.counter("tx_malformed"), 5);
    assert_sane(&wire, &mut driver);
}

#[test]
fn a_buffer_that_takes_no_header_is_given_back() {
    for features in [0, MRG_RXBUF] {
        let (wire, mut driver) = card(features);
        for buffers in [
            &[(BUFFERS, 11, true)][..],
            &[(BUFFERS, 0, true)],
            &[(BUFFERS, 2000, false)],
            &[(OUTSIDE, 2000, true)],
            &[(0xf_fff0, 2000, true)],
            &[(u64::MAX, 2000, true)],
        ] {
            assert_eq!(driver.request(0, buffers), 0);
        }
        assert_eq!(driver.counter("malformed"), 6);
        assert_eq!(driver.counter("rx_drops"), 0);
        assert_sane(&wire, &mut driver);
    }
}

#[test]
fn a_bad_buffer_amid_a_long_frame_costs_the_buffers_before_it_and_not_the_frame() {
    let (wire, mut driver) = card(MRG_RXBUF);
    for bad in [(OUTSIDE, 2000, true), (BUFFERS, 0, true), (BUFFERS, 100, false)] {
        let before = driver.used(0);
        wire.send(0, [0; 12], &frame(3000));
        driver.offer(0, &[(BUFFERS, 1000, true)]);
        driver.offer(0, &[bad]);
        driver.offer(0, &[(BUFFERS + 0x1000, 1000, true)]);
        driver.offer(0, &[(BUFFERS + 0x2000, 4000, true)]);
        driver.notify(0);
        eventually("all", || driver.used(0) == before + 4);
        let lengths: Vec<_> = (0..4).map(|i| driver.used_element(0, before + i).1).collect();
        assert_eq!(lengths, [0, 0, 1000, 2012]);
        assert_eq!(driver.get(BUFFERS + 0x100a, 2), [2, 0]);
    }
    assert_sane(&wire, &mut driver);
}

#[test]
fn buffers_of_a_byte_make_no_frame_of_more_than_the_queue_holds() {
    let (wire, mut driver) = card(MRG_RXBUF);
    driver.offer(0, &[(BUFFERS, 12, true)]);
    for byte in 0..15 {
        driver.offer(0, &[(BUFFERS + 100 + byte, 1, true)]);
    }
    wire.send(0, [0; 12], &frame(60));
    driver.notify(0);
    eventually("that it is dropped", || driver.counter("rx_drops") == 1);
    wire.send(0, [0; 12], &frame(15));
    driver.notify(0);
    eventually("one that fits", || driver.used(0) == 16);
    assert_eq!(driver.get(BUFFERS + 100, 15), frame(15));
    assert_eq!(driver.get(BUFFERS + 10, 2), [16, 0]);
}

#[test]
fn a_frame_that_is_none_from_the_host_is_not_passed_on() {
    let (wire, mut driver) = card(MRG_RXBUF);
    driver.offer(0, &[(BUFFERS, 2000, true)]);
    driver.notify(0);
    wire.theirs[0].send(&[0; 5]).unwrap();
    wire.theirs[0].send(&[0; 25]).unwrap();
    eventually("that they are dropped", || driver.counter("rx_drops") == 2);
    wire.send(0, [0; 12], &frame(60));
    eventually("the next", || driver.used(0) == 1);
    assert_eq!(driver.used_element(0, 0).1, 72);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_is_described_the_card_stays_whole(
        chains in prop::collection::vec(
            (0_usize..3, prop::collection::vec((0_u64..0x18_0000, 0_u32..0x2_0000, any::<bool>()), 1..4)),
            1..12,
        ),
        fill in prop::collection::vec(any::<u8>(), 256),
        mergeable in any::<bool>(),
    ) {
        let features = CTRL_VQ | if mergeable { MRG_RXBUF } else { 0 };
        let (wire, mut driver) = card(features);
        for place in 0..0x100 {
            driver.put(BUFFERS + 0x100 * place, &fill);
        }
        let mut offered = [0; 3];
        for (queue, mut chain) in chains {
            // A device told to write over its own rings does so; what becomes of it then is not asked here.
            let spares_rings = |(address, length, _): &(u64, u32, bool)| {
                address + u64::from(*length) < 0x8_0000 || *address >= 0x10_0000
            };
            chain.retain(|buffer| !buffer.2 || spares_rings(buffer));
            if chain.is_empty() || offered[queue] + chain.len() > 16 {
                continue;
            }
            offered[queue] += chain.len();
            driver.offer(queue, &chain);
            driver.notify(queue);
            let _ = wire.theirs[0].send(&[&[0; 12][..], &frame(1500)].concat());
            while wire.receive(0).is_some() {}
        }
        driver.run(VERSION_1 | features);
        while wire.ours[0].recv(&mut [0; 2000]).is_ok() {}
        while wire.receive(0).is_some() {}
        assert_sane(&wire, &mut driver);
    }
}

//! What a driver settles: features, the control queue, queue pairs.

use super::*;

const CTRL_RX: u64 = 1 << 18;
const CTRL_MAC_ADDR: u64 = 1 << 23;
const CTRL_GUEST_OFFLOADS: u64 = 1 << 2;

#[test]
fn features_follow_the_options() {
    let offered = |pairs, options| Net::new(Wire::new(pairs) as _, options).unwrap().features();
    let all = offered(1, options());
    let host = CSUM | HOST_TSO4 | HOST_TSO6 | HOST_ECN | HOST_UFO;
    assert_eq!(
        all & (host | GUEST_OFFLOADS | MRG_RXBUF),
        host | GUEST_OFFLOADS | MRG_RXBUF
    );
    assert_eq!(all & (MQ | 1 << 3), 0);
    assert_ne!(offered(2, options()) & MQ, 0);
    let mtu = NetOptions {
        mtu: Some(1400),
        ..options()
    };
    assert_ne!(offered(1, mtu) & 1 << 3, 0);
    let plain = NetOptions {
        checksums: false,
        ..options()
    };
    let none = offered(1, plain) & (host | GUEST_OFFLOADS | CTRL_GUEST_OFFLOADS);
    assert_eq!(none, 0, "segments need checksums");
    let whole = NetOptions {
        tcp_segments: false,
        udp_fragments: false,
        ..options()
    };
    assert_eq!(offered(1, whole) & (host | GUEST_OFFLOADS), CSUM | GUEST_CSUM);
}

#[test]
fn the_configuration_tells_address_link_pairs_and_mtu() {
    let options = NetOptions {
        mtu: Some(9000),
        ..options()
    };
    let (_, driver) = card_of(3, 0, options);
    let config: Vec<u8> = (0..12).map(|at| driver.read(0x2000 + at, 1) as u8).collect();
    assert_eq!(config[..6], OWN);
    assert_eq!(config[6..], [1, 0, 3, 0, 0x28, 0x23]);
    assert_eq!(
        driver.read(0x12, 2),
        7,
        "two queues for each pair, and the control queue"
    );
}

#[test]
fn the_link_does_what_the_driver_accepts_from_the_first_queue_on() {
    let (wire, mut driver) = card(GUEST_CSUM | GUEST_TSO4 | GUEST_ECN);
    let flags = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO_ECN;
    let mut asked = vec![];
    eventually("the first queue", || {
        asked.extend(wire.asked());
        asked.len() == 4
    });
    let one = Asked::Pairs(1);
    assert_eq!(asked, [Asked::Offloads(0), one, Asked::Offloads(flags), one]);
    driver.write(0x14, 1, 0);
    eventually("the reset", || driver.status() == 0);
    assert_eq!(wire.asked(), [], "a vCPU's thread asks the host for nothing");
    driver.run(VERSION_1);
    eventually("the first queue again", || {
        asked.extend(wire.asked());
        asked.len() == 6
    });
    assert_eq!(asked[4..], [Asked::Offloads(0), one]);
}

#[test]
fn a_driver_changes_the_offloads_it_has_accepted_and_no_others() {
    let (wire, mut driver) = card(CTRL_VQ | CTRL_GUEST_OFFLOADS | GUEST_CSUM | GUEST_TSO4);
    let set = |driver: &mut Driver, offloads: u64| command(driver, 2, &[&[5, 0][..], &offloads.to_le_bytes()].concat());
    assert_eq!(set(&mut driver, GUEST_CSUM), 0);
    assert_eq!(wire.asked().last(), Some(&Asked::Offloads(libc::TUN_F_CSUM)));
    assert_eq!(set(&mut driver, 0), 0);
    assert_eq!(wire.asked(), [Asked::Offloads(0)]);
    for offloads in [GUEST_TSO6, u64::MAX, CSUM] {
        assert_eq!(set(&mut driver, offloads), 1, "{offloads:#x}");
    }
    assert_eq!(wire.asked(), []);
    assert_eq!(driver.counter("control_refused"), 3);
}

/// Whether a frame reaches the driver, which offers one buffer at a time.
fn arrives(wire: &Wire, driver: &mut Driver, frame: &[u8]) -> bool {
    let (used, filtered) = (driver.used(0), driver.counter("rx_filtered"));
    wire.send(0, [0; 12], frame);
    eventually("an end of the frame", || {
        driver.used(0) != used || driver.counter("rx_filtered") != filtered
    });
    let arrives = driver.used(0) != used;
    if arrives {
        driver.offer(0, &[(BUFFERS + 0x8000, 2000, true)]);
        driver.notify(0);
    }
    arrives
}

#[test]
fn frames_for_others_are_kept_from_a_driver_that_wants_only_its_own() {
    let (wire, mut driver) = card(CTRL_VQ | CTRL_RX | MRG_RXBUF);
    let to = |last: u8| {
        let mut frame = frame(60);
        frame[5] = last;
        frame
    };
    let to_group = |last: u8| {
        let mut frame = frame(60);
        frame[..6].copy_from_slice(&[0x33, 0x33, 0, 0, 0, last]);
        frame
    };
    driver.offer(0, &[(BUFFERS + 0x8000, 2000, true)]);
    driver.notify(0);
    assert!(
        arrives(&wire, &mut driver, &to(9)),
        "everything until it says what it wants"
    );
    assert_eq!(command(&mut driver, 2, &[0, 0, 0]), 0, "promiscuous off");
    assert!(!arrives(&wire, &mut driver, &to(9)));
    assert!(arrives(&wire, &mut driver, &to(1)));
    let mut long = to(9);
    long.resize(3000, 0);
    assert!(!arrives(&wire, &mut driver, &long), "a frame longer than the buffer");
    // A table with the other's address, and one with a group's.
    let table = [
        &[1, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 9, 1, 0, 0, 0][..],
        &[0x33, 0x33, 0, 0, 0, 1],
    ]
    .concat();
    assert_eq!(command(&mut driver, 2, &table), 0);
    assert!(arrives(&wire, &mut driver, &to(9)));
    assert!(arrives(&wire, &mut driver, &to_group(1)));
    assert!(!arrives(&wire, &mut driver, &to_group(2)));
    assert_eq!(command(&mut driver, 2, &[0, 1, 1]), 0, "all groups");
    assert!(arrives(&wire, &mut driver, &to_group(2)));
    // More addresses than are kept: then it gets them all.
    let many = [&[1, 0][..], &100_u32.to_le_bytes(), &[2; 600], &[0; 4]].concat();
    assert_eq!(command(&mut driver, 2, &many), 0);
    assert!(arrives(&wire, &mut driver, &to(9)));
}

#[test]
fn a_driver_changes_its_address_until_the_reset() {
    let (wire, mut driver) = card(CTRL_VQ | CTRL_RX | CTRL_MAC_ADDR);
    assert_eq!(command(&mut driver, 2, &[1, 1, 2, 0, 0, 0, 0, 9]), 0);
    assert_eq!(driver.read(0x2005, 1), 9);
    let group = [1, 1, 3, 0, 0, 0, 0, 9];
    assert_eq!(command(&mut driver, 2, &group), 1, "an address of several stations");
    command(&mut driver, 2, &[0, 0, 0]);
    driver.offer(0, &[(BUFFERS + 0x8000, 2000, true)]);
    driver.notify(0);
    assert!(
        !arrives(&wire, &mut driver, &frame(60)),
        "nobody has that address any more"
    );
    driver.write(0x14, 1, 0);
    assert_eq!(driver.read(0x2005, 1), 1);
}

#[test]
fn pairs_are_used_when_the_driver_says_so() {
    let (wire, mut driver) = card_of(3, CTRL_VQ | MQ | MRG_RXBUF, options());
    let set = |driver: &mut Driver, pairs: u8| command(driver, 6, &[4, 0, pairs, 0]);
    assert_eq!(set(&mut driver, 3), 0);
    assert_eq!(wire.asked().last(), Some(&Asked::Pairs(3)));
    for pairs in [0, 4, 255] {
        assert_eq!(set(&mut driver, pairs), 1, "{pairs}");
    }
    for pair in 0..3 {
        driver.offer(2 * pair, &[(BUFFERS + 0x1000 * pair as u64, 2000, true)]);
        driver.notify(2 * pair);
        wire.send(pair, [0; 12], &frame(60 + pair));
        eventually("the frame", || driver.used(2 * pair) == 1);
        assert_eq!(driver.used_element(2 * pair, 0).1, 72 + pair as u32);
        driver.put(BUFFERS, &[&[0; 12][..], &frame(99)].concat());
        driver.request(2 * pair + 1, &[(BUFFERS, 111, false)]);
        assert_eq!(wire.receive(pair).unwrap().1, frame(99));
    }
    assert_eq!(wire.asked(), []);
    driver.run(VERSION_1 | MQ);
    eventually("one pair again", || wire.asked().last() == Some(&Asked::Pairs(1)));
}

#[test]
fn without_multiqueue_the_control_queue_is_the_third_however_many_there_are() {
    let (wire, mut driver) = card_of(3, CTRL_VQ | CTRL_RX, options());
    assert_eq!(command(&mut driver, 2, &[0, 0, 0]), 0);
    assert_eq!(command(&mut driver, 2, &[4, 0, 2, 0]), 1, "pairs were not agreed on");
    assert!(!wire.asked().contains(&Asked::Pairs(2)));
}

#[test]
fn a_command_that_is_none_is_refused() {
    let (_, mut driver) = card(CTRL_VQ);
    for (what, bytes) in [
        ("no such class", &[9, 0, 0][..]),
        ("no such mode", &[0, 6, 1]),
        ("half on", &[0, 0, 2]),
        ("announcing", &[3, 0]),
    ] {
        assert_eq!(command(&mut driver, 2, bytes), 1, "{what}");
    }
    assert_eq!(driver.counter("malformed"), 0);
    for (what, bytes) in [
        ("no command", &[0][..]),
        ("a mode without on or off", &[0, 0]),
        ("half an address", &[1, 1, 2, 0, 0]),
        ("a table longer than it is", &[1, 0, 0xff, 0xff, 0xff, 0xff, 1, 2, 3]),
        ("one table", &[1, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 1]),
    ] {
        assert_eq!(command(&mut driver, 2, bytes), 1, "{what}");
    }
    assert_eq!(driver.counter("malformed"), 5);
    driver.request(2, &[(BUFFERS, 3, false)]);
    assert_eq!(driver.counter("malformed"), 6, "no room for an answer");
}

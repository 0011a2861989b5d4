//! What a card remembers.

use super::*;

/// A card of two pairs whose driver has settled everything that can be.
fn settled() -> (Arc<Wire>, Driver) {
    let features = CTRL_VQ | MQ | 1 << 2 | 1 << 18 | 1 << 23 | GUEST_CSUM | GUEST_TSO4;
    let (wire, mut driver) = card_of(2, features, options());
    for bytes in [
        &[4, 0, 2, 0][..],
        &[0, 0, 0],
        &[1, 1, 2, 0, 0, 0, 0, 7],
        &[5, 0, 2, 0, 0, 0, 0, 0, 0, 0],
    ] {
        assert_eq!(command(&mut driver, 4, bytes), 0);
    }
    assert!(driver.device.set_paused(true, Duration::from_secs(60)));
    (wire, driver)
}

#[test]
fn what_the_driver_has_settled_goes_with_a_snapshot() {
    let (_, driver) = settled();
    let state = driver.device.state().unwrap();
    let wire = Wire::new(2);
    let net = Arc::new(Net::new(Arc::clone(&wire) as _, options()).unwrap());
    let mut other = Driver::with(Arc::clone(&net) as _, driver.memory.clone());
    wire.asked();
    other.device.restore(&state).unwrap();
    assert_eq!(wire.asked(), [Asked::Offloads(libc::TUN_F_CSUM), Asked::Pairs(2)]);
    assert_eq!(net.mac(), MacAddress::new([2, 0, 0, 0, 0, 7]));
    assert_eq!(net.save(), state.device, "and is saved again as it was");
    other.device.set_paused(false, Duration::ZERO);
    // No queue that begins now settles anything anew, and the filter is the one that was set.
    other.offer(0, &[(BUFFERS, 2000, true)]);
    other.notify(0);
    wire.send(0, [0; 12], &frame(60));
    eventually("that it is for another", || other.counter("rx_filtered") == 1);
    assert_eq!(wire.asked(), []);
}

/// virtio 1.2, "Gratuitous Packet Sending".
#[test]
fn a_driver_is_asked_to_announce_the_guest_where_it_goes_on_and_nowhere_else() {
    const ANNOUNCE: u64 = 1 << 21;
    const STATUS: u64 = 0x2006;
    for (accepted, asked) in [(ANNOUNCE, 3), (0, 1)] {
        let (wire, driver) = card(CTRL_VQ | accepted);
        let mut settled = 0;
        eventually("the first queue", || {
            settled += wire.asked().len();
            settled == 4
        });
        assert!(driver.device.set_paused(true, Duration::from_secs(60)));
        let state = driver.device.state().unwrap();
        driver.device.set_paused(false, Duration::ZERO);
        assert_eq!(driver.read(STATUS, 2), 1, "it is where it was");
        driver.device.set_paused(true, Duration::from_secs(60));

        let net = Arc::new(Net::new(Wire::new(1) as _, options()).unwrap());
        let mut other = Driver::with(net as _, driver.memory.clone());
        other.device.restore(&state).unwrap();
        assert_eq!(other.read(STATUS, 2), 1, "its driver could not answer yet");
        let generation = other.read(0x15, 1);
        other.device.set_paused(false, Duration::ZERO);
        assert_eq!(other.read(STATUS, 2), asked);
        assert_eq!(other.read(0x15, 1) != generation, asked == 3);
        assert_eq!(
            other.read(0x1000, 1) & 2,
            asked & 2,
            "a configuration change notification"
        );
        assert_eq!(command(&mut other, 2, &[3, 0]), u8::from(accepted == 0));
        assert_eq!(other.read(STATUS, 2), 1, "it is done");
        other.device.set_paused(true, Duration::from_secs(60));
        other.device.set_paused(false, Duration::ZERO);
        assert_eq!(other.read(STATUS, 2), 1, "once");
    }
}

#[test]
fn a_state_that_no_card_can_have_is_refused_and_changes_nothing() {
    let saved = settled().1.device.state().unwrap().device;
    let net = Net::new(Wire::new(1) as _, options()).unwrap();
    let fresh = net.save();
    let error = net.restore(&saved).unwrap_err();
    assert_eq!(error.to_string(), "its driver uses 2 queue pairs; this one has 1");
    for length in 0..saved.len() {
        assert!(net.restore(&saved[..length]).is_err(), "{length}");
    }
    assert!(net.restore(&[&fresh[..], &[0]].concat()).is_err());
    assert_eq!(net.save(), fresh);
    assert!(net.restore(&fresh).is_ok());
}

proptest! {
    #[test]
    fn no_bytes_make_a_card_of_what_cannot_be(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let net = Net::new(Wire::new(1) as _, options()).unwrap();
        let fresh = net.save();
        if net.restore(&bytes).is_err() {
            prop_assert_eq!(net.save(), fresh);
        }
    }
}

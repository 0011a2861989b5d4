//! Processes that go, come back, or say nothing.

use super::*;

#[test]
fn rule_22_a_process_that_goes_answers_ones_and_is_found_again() {
    let mut dies = true;
    let guest = Guest::new(
        move |header, body| match is_access(header, body, wire::command::REGION_READ, 0x10) {
            true if dies => {
                dies = false;
                Act::Close
            }
            _ => Act::AsItShould,
        },
    );
    let (first, second) = (guest.read(0x10, 4), guest.read(0x20, 4));
    assert_eq!((soon(&first), first.is_lost()), (u64::MAX, true));
    assert_eq!((soon(&second), second.is_lost()), (u64::MAX, true));
    eventually("the process is there again", || guest.device.is_connected());
    assert_eq!(soon(&guest.read(0x20, 4)), 0x5a5a_5a5a);
    // It was told of everything again: that the function is a bus master, and has MSI-X enabled.
    let heard = guest.control.heard();
    let config: Vec<_> = heard
        .iter()
        .filter(|(header, body)| header.command == wire::command::REGION_WRITE && body[8] == 7)
        .map(|(_, body)| (body[0], body[16..].to_vec()))
        .collect();
    assert_eq!(config, [(0x04, vec![6, 0]), (0x62, vec![1, 0x80])]);
    let count = |command| heard.iter().filter(|(header, _)| header.command == command).count();
    assert_eq!(
        (count(wire::command::DMA_MAP), count(wire::command::DEVICE_SET_IRQS)),
        (1, 2)
    );
    assert!(guest.device.counters().contains(&("reconnections", 1)));
}

#[test]
fn a_process_that_is_silent_is_waited_for_and_nobody_else() {
    let guest = Guest::new(
        |header, body| match is_access(header, body, wire::command::REGION_READ, 0x10) {
            true => Act::Nothing,
            false => Act::AsItShould,
        },
    );
    let silent = guest.read(0x10, 4);
    assert_eq!(soon(&guest.read(0x20, 4)), 0x5a5a_5a5a);
    assert_eq!(silent.try_take(), None);
    // The device is taken away: whoever waited is answered.
    let Guest { device, function, .. } = guest;
    drop((device, function));
    assert_eq!((soon(&silent), silent.is_lost()), (u64::MAX, true));
}

//! Vectors of MSI-X, masked and unmasked in agreement with a process.

use super::*;

#[test]
fn rule_13_a_vector_is_unmasked_when_the_process_knows() {
    let (go, wait) = mpsc::channel::<()>();
    let guest = Guest::new(move |header, body| {
        if header.command == wire::command::DEVICE_SET_IRQS && body[4..8] == 0x11_u32.to_le_bytes() {
            wait.recv().unwrap();
        }
        Act::AsItShould
    });
    let write = |at: u64, size: u8, value: u64| Device::write(&guest.function, TABLE + at, size, value);
    assert_eq!(write(0, 8, 0xfee0_1000).wait(), 0);
    let Response::Later(unmask) = write(8, 8, 0x41) else {
        panic!("nobody was asked")
    };
    let read = |at| Device::read(&guest.function, TABLE + at, 4).wait();
    // Address and data are there; the mask is as it was.
    assert_eq!((read(0), read(8), read(12)), (0xfee0_1000, 0x41, 1));
    assert_eq!((unmask.try_take(), guest.events.inbox.take_routes()), (None, vec![]));
    go.send(()).unwrap();
    assert_eq!(soon(&unmask), 0);
    assert_eq!(read(12), 0);
    let message = Message {
        address: 0xfee0_1000,
        data: 0x41,
    };
    assert_eq!(guest.events.inbox.take_routes(), [(0, Some(message))]);
    // Masked, at once, and the process is told.
    let _ = write(12, 4, 1).wait();
    assert_eq!((read(12), guest.events.inbox.take_routes()), (1, vec![(0, None)]));
    let _ = guest.function.ask_config(0x74, 4).wait();
    let told: Vec<_> = guest
        .control
        .heard()
        .into_iter()
        .filter(|(header, _)| header.command == wire::command::DEVICE_SET_IRQS)
        .map(|(_, body)| body)
        .collect();
    assert_eq!(
        told,
        [wire::words([20, 0x11, 2, 0, 1]), wire::words([20, 0x09, 2, 0, 1])]
    );
}

#[test]
fn rule_13_a_vector_that_is_masked_again_meanwhile_stays_masked() {
    let (go, wait) = mpsc::channel::<()>();
    let guest = Guest::new(move |header, body| {
        if header.command == wire::command::DEVICE_SET_IRQS && body[4..8] == 0x11_u32.to_le_bytes() {
            wait.recv().unwrap();
        }
        Act::AsItShould
    });
    let write = |value| Device::write(&guest.function, TABLE + 12, 4, value);
    let Response::Later(unmask) = write(0) else {
        panic!("nobody was asked")
    };
    // Another processor, which does not wait.
    assert!(matches!(write(1), Response::Done(_)), "it is masked already");
    go.send(()).unwrap();
    let _ = soon(&unmask);
    assert_eq!(Device::read(&guest.function, TABLE + 12, 4).wait(), 1);
    assert_eq!(guest.events.inbox.take_routes(), []);
}

#[test]
fn rule_22_a_vector_is_unmasked_though_the_process_goes() {
    let guest = Guest::new(
        |header, body| match header.command == wire::command::DEVICE_SET_IRQS && body[4] == 0x11 {
            true => Act::Close,
            false => Act::AsItShould,
        },
    );
    let Response::Later(unmask) = Device::write(&guest.function, TABLE + 12, 4, 0) else {
        panic!("nobody was asked")
    };
    assert_eq!(soon(&unmask), 0);
    assert_eq!(
        Device::read(&guest.function, TABLE + 12, 4).wait(),
        0,
        "the table is the guest's, not the process's"
    );
}

#[test]
fn rule_23_an_unmasking_that_was_under_way_is_finished_by_whoever_goes_on() {
    let guest = Guest::new(
        |header, body| match header.command == wire::command::DEVICE_SET_IRQS && body[4] == 0x11 {
            true => Act::Nothing,
            false => Act::AsItShould,
        },
    );
    let Response::Later(_unmask) = Device::write(&guest.function, TABLE + 12, 4, 0) else {
        panic!("nobody was asked")
    };
    let state = guest.function.state();
    let other = Guest::new(|_, _| Act::AsItShould);
    other.function.restore(&state).unwrap();
    assert_eq!(Device::read(&other.function, TABLE + 12, 4).wait(), 1);
    assert_eq!(other.function.resume(TABLE + 12, 4, Some(0)).wait(), 0);
    assert_eq!(Device::read(&other.function, TABLE + 12, 4).wait(), 0);
}

#[test]
fn a_process_without_masks_of_its_own_is_not_asked() {
    let guest = Guest::of(Process::start_with(false, |_, _| Act::AsItShould));
    assert!(matches!(
        Device::write(&guest.function, TABLE + 12, 4, 0),
        Response::Done(0)
    ));
    assert_eq!(Device::read(&guest.function, TABLE + 12, 4).wait(), 0);
}

#[test]
fn an_event_that_was_signalled_and_not_sent_is_in_the_pending_bits() {
    let guest = Guest::new(|_, _| Act::AsItShould);
    assert_eq!(Device::read(&guest.function, 0xc00, 8).wait(), 0b10);
    assert!(guest.function.state().msix.unwrap().vectors[1].pending);
}

//! What registers and configuration space say, and how questions and answers go about.

use super::*;

#[test]
fn a_device_is_shown_as_it_describes_itself() {
    let guest = Guest::new(|_, _| Act::AsItShould);
    let config = |at, size| guest.function.ask_config(at, size).wait() & (u64::MAX >> (64 - 8 * u32::from(size)));
    assert_eq!(config(0, 4), 0x5678_1234);
    assert_eq!(config(8, 4), 0xff02_0103);
    // The size of BAR 0, which is ours.
    let _ = guest.function.write_config(0x10, 4, 0xffff_ffff);
    assert_eq!(config(0x10, 4), 0xffff_f000);
    // MSI is left out, and MSI-X is the last.
    assert_eq!((config(0x34, 1), config(0x40, 2)), (0x40, 0x7001));
    assert_eq!((config(0x60, 2), config(0x62, 2)), (0x0011, 0x8001));
    assert_eq!((config(0x64, 4), config(0x68, 4)), (TABLE, 0xc00));
    // A capability's bytes are the device's, its head is ours, in one access too.
    assert_eq!(config(0x72, 2), 0xaa08);
    assert_eq!(config(0x70, 8), 0xeedd_ccbb_aa08_6009);
    assert_eq!(config(0x70, 1), 0x09);
}

#[test]
fn what_is_the_device_s_in_configuration_space_is_written_there() {
    let guest = Guest::new(|_, _| Act::AsItShould);
    let written = |at: u64, size: u8, value: u64| {
        let _ = guest.function.write_config(at, size, value);
        let _ = guest.function.ask_config(0x74, 4).wait();
        let heard = guest.control.heard();
        let writes = heard
            .into_iter()
            .filter(|(header, _)| header.command == wire::command::REGION_WRITE);
        writes
            .map(|(_, body)| (u64::from(body[0]), body[16..].to_vec()))
            .collect::<Vec<_>>()
    };
    assert_eq!(written(0x44, 2, 0x0103), [(0x44, vec![3, 1])]);
    assert_eq!(written(0x70, 4, 0x4433_2211), [(0x72, vec![0x33]), (0x73, vec![0x44])]);
    assert_eq!(written(0x04, 2, 0x0402), [(0x04, vec![2, 4])], "Command is told");
    assert_eq!(
        written(0x60, 4, 0xc000_0000),
        [(0x62, vec![1, 0xc0])],
        "MSI-X's control is told as it is then"
    );
    assert_eq!(written(0x10, 4, 0xd000_0000), [], "a BAR is nobody else's business");
    assert_eq!(written(0x3c, 1, 9), []);
}

#[test]
fn who_waits_for_an_answer_brings_it_in() {
    let guest = Guest::new(|_, _| Act::AsItShould);
    let carried = || {
        let counters = guest.device.counters();
        counters.into_iter().find(|(name, _)| *name == "carried").unwrap().1
    };
    eventually("an answer that is brought in", || {
        assert_eq!(soon(&guest.read(8, 4)), 0x5a5a_5a5a);
        carried() > 0
    });
}

#[test]
fn registers_are_read_and_written_in_order() {
    let guest = Guest::new(|_, _| Act::AsItShould);
    assert_eq!(soon(&guest.read(8, 4)), 0x5a5a_5a5a);
    for (size, value) in [(1, 0x11), (2, 0x2222), (4, 0x3333_3333), (8, 0x4444_4444_4444_4444)] {
        assert!(
            matches!(Device::write(&guest.function, 8, size, value), Response::Done(0)),
            "posted"
        );
        assert_eq!(soon(&guest.read(8, size)), value);
    }
    let heard = guest.control.heard();
    let writes = heard
        .iter()
        .filter(|(header, _)| header.command == wire::command::REGION_WRITE);
    assert!(writes.clone().all(|(header, _)| header.flags == wire::flag::NO_REPLY));
    assert_eq!(writes.count(), 4);
    // Beyond the region nobody is asked.
    assert!(matches!(
        Device::read(&guest.function, 0xffe, 4),
        Response::Done(u64::MAX)
    ));
    assert!(matches!(
        Device::read(&guest.function, 2 << 60, 4),
        Response::Done(u64::MAX)
    ));
    assert_eq!(guest.control.heard().len(), 0);
}

#[test]
fn answers_find_their_questions_in_any_order() {
    let mut kept = Vec::new();
    let guest = Guest::new(move |header, body| {
        if header.command != wire::command::REGION_READ || body[8] != 0 {
            return Act::AsItShould;
        }
        let value = [body[0]; 4];
        kept.push(message(
            header.id,
            header.command,
            wire::flag::REPLY,
            0,
            &[body, &value],
        ));
        match kept.len() {
            4 => Act::Send(kept.drain(..).rev().flatten().collect()),
            _ => Act::Nothing,
        }
    });
    let tickets: Vec<_> = (0..3_u64).map(|at| guest.read(at * 4, 4)).collect();
    assert!(
        tickets.iter().all(|ticket| ticket.try_take().is_none()),
        "none waits for another"
    );
    let last = guest.read(12, 4);
    assert_eq!(
        tickets.iter().map(soon).collect::<Vec<_>>(),
        [0, 0x0404_0404, 0x0808_0808]
    );
    assert_eq!(soon(&last), 0x0c0c_0c0c);
}

#[test]
fn a_full_socket_holds_back_whoever_writes_and_loses_nothing() {
    let (go, wait) = mpsc::channel::<()>();
    let mut started = false;
    let guest = Guest::new(move |header, body| {
        if header.command == wire::command::REGION_WRITE && body[8] == 0 && !started {
            started = true;
            wait.recv().unwrap();
        }
        Act::AsItShould
    });
    // As many as a socket's buffer has room for, and one more, which waits.
    let mut posted = 0_u32;
    let waits = loop {
        match Device::write(&guest.function, 0x20, 4, posted.into()) {
            Response::Done(_) => posted += 1,
            Response::Later(ticket) => break ticket,
        }
        assert!(posted < 1_000_000, "nothing holds back who writes");
    };
    assert_eq!(waits.try_take(), None);
    let behind = guest.read(0x20, 4);
    go.send(()).unwrap();
    assert_eq!((soon(&waits), waits.is_lost()), (0, false));
    assert_eq!(soon(&behind), u64::from(posted), "the read sees the last write");
    let writes = guest
        .control
        .heard()
        .iter()
        .filter(|(header, _)| header.command == wire::command::REGION_WRITE)
        .count();
    assert_eq!(writes, posted as usize + 1, "each once");
}

#[test]
fn what_a_guest_can_have_owed_is_bounded() {
    let guest = Guest::new(
        |header, body| match is_access(header, body, wire::command::REGION_READ, 0x10) {
            true => Act::Nothing,
            false => Act::AsItShould,
        },
    );
    // As a guest that resets its processors while they wait: nobody holds these tickets any more.
    let lost = (0..10_000).filter(|_| guest.read(0x10, 1).is_lost()).count();
    assert!((1_000..10_000).contains(&lost), "{lost}");
}

#[test]
fn an_access_is_what_it_says() {
    let access = RegionAccess {
        offset: 0x1122_3344_5566_7788,
        region: 5,
        count: 4,
    };
    assert_eq!(
        access.bytes(),
        [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 5, 0, 0, 0, 4, 0, 0, 0]
    );
}

#[test]
fn whoever_else_waits_is_answered_too_and_so_is_the_process() {
    let guest = Guest::new(|_, _| Act::AsItShould);
    let mut stream = guest.control.streams.recv().unwrap();
    let function = &guest.function;
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(move || {
                for _ in 0..500 {
                    let Response::Later(ticket) = Device::read(function, 0x10, 1) else {
                        panic!("answered at once")
                    };
                    assert_eq!(soon(&ticket), 0x5a);
                }
            });
        }
    });
    for round in 0..20_u8 {
        // The connection is lent to whoever waits, who is gone when the process asks for something.
        for _ in 0..100 {
            assert_eq!(soon(&guest.read(0x10, 1)), 0x5a);
        }
        let body = [&0x100_u64.to_le_bytes()[..], &1_u64.to_le_bytes(), &[round]].concat();
        let ask = message(7, wire::command::DMA_WRITE, wire::flag::NO_REPLY, 0, &[&body]);
        stream.write_all(&ask).unwrap();
        eventually("the write", || {
            guest.memory.read_obj::<u8>(GuestAddress(0x100)).unwrap() == round
        });
    }
}

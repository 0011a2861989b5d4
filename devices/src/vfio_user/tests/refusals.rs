//! Processes that say what is not so, and what is made of it.

use super::*;

/// What a process may do to the read at 0x10, and whether it may come back after that.
#[test]
fn a_process_that_lies_in_an_answer_costs_its_device_and_nothing_else() {
    fn reply(header: &Header, body: &[u8], data: &[u8]) -> Vec<u8> {
        message(header.id, header.command, wire::flag::REPLY, 0, &[body, data])
    }
    fn with(header: &Header, body: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Act {
        let mut bytes = reply(header, body, &[1, 2, 3, 4]);
        change(&mut bytes);
        Act::Send(bytes)
    }
    type Lie = fn(&Header, &[u8]) -> Act;
    let lies: [(&str, Lie); 11] = [
        ("a wrong id", |header, body| {
            with(header, body, |bytes| bytes[0] ^= 0x40)
        }),
        ("a wrong command", |header, body| {
            with(header, body, |bytes| bytes[2] = 10)
        }),
        ("too little data", |header, body| {
            Act::Send(reply(header, body, &[1, 2, 3]))
        }),
        ("too much data", |header, body| Act::Send(reply(header, body, &[0; 5]))),
        ("another access", |header, body| {
            with(header, body, |bytes| bytes[16] ^= 4)
        }),
        ("another count", |header, body| {
            with(header, body, |bytes| bytes[28] = 8)
        }),
        ("no body", |header, _| Act::Send(reply(header, &[], &[]))),
        ("a huge size", |header, body| {
            with(header, body, |bytes| bytes[4..8].fill(0xff))
        }),
        ("a size that is none", |header, body| {
            with(header, body, |bytes| bytes[4..8].fill(0))
        }),
        ("garbage", |_, _| Act::Send(vec![0xa5; 4096])),
        ("two answers", |header, body| {
            let one = reply(header, body, &[1, 2, 3, 4]);
            Act::Send([&one[..], &one].concat())
        }),
    ];
    for (name, lie) in lies {
        let guest = Guest::new(
            move |header, body| match is_access(header, body, wire::command::REGION_READ, 0x10) {
                true => lie(header, body),
                false => Act::AsItShould,
            },
        );
        let (first, second) = (guest.read(0x10, 4), guest.read(0x20, 4));
        let answer = soon(&first);
        if name == "two answers" {
            assert_eq!(answer, 0x0403_0201, "{name}");
        } else {
            assert_eq!((answer, first.is_lost()), (u64::MAX, true), "{name}");
        }
        assert_eq!((soon(&second), second.is_lost()), (u64::MAX, true), "{name}");
        eventually("the connection ends", || !guest.device.is_connected());
        assert!(guest.read(0x20, 4).is_lost(), "{name}");
        // It is cut off, and not looked for again.
        thread::sleep(Duration::from_millis(10));
        assert_eq!(guest.control.streams.try_iter().count(), 1, "{name}");
    }
}

#[test]
fn an_error_is_an_answer_of_ones_and_no_lie() {
    let guest = Guest::new(
        |header, body| match is_access(header, body, wire::command::REGION_READ, 0x10) {
            true => Act::Send(message(header.id, header.command, 0x21, 5, &[])),
            false if is_access(header, body, wire::command::REGION_WRITE, 0x10) => {
                // As some do who have not noticed that nobody wants a reply.
                Act::Send(message(header.id, header.command, 0x21, 5, &[]))
            }
            false => Act::AsItShould,
        },
    );
    assert_eq!(soon(&guest.read(0x10, 4)), u64::MAX);
    assert!(matches!(Device::write(&guest.function, 0x10, 4, 1), Response::Done(0)));
    assert_eq!(soon(&guest.read(0x20, 4)), 0x5a5a_5a5a);
    assert_eq!(guest.device.counters()[0], ("refused", 2));
}

#[test]
fn another_device_is_not_taken_for_the_one_that_went() {
    let mut connections = 0;
    let guest = Guest::new(move |header, body| {
        connections += usize::from(header.command == wire::command::VERSION);
        let config = header.command == wire::command::REGION_READ && body[8..12] == 7_u32.to_le_bytes();
        if is_access(header, body, wire::command::REGION_READ, 0x10) {
            Act::Close
        } else if connections > 1 && config && body[0] == 0 {
            Act::Send(message(header.id, header.command, 1, 0, &[body, &[0xff; 4]]))
        } else {
            Act::AsItShould
        }
    });
    assert!(soon(&guest.read(0x10, 4)) == u64::MAX);
    guest.control.streams.recv().unwrap();
    guest.control.streams.recv_timeout(Duration::from_secs(30)).unwrap();
    assert!(
        guest.control.streams.recv_timeout(Duration::from_secs(2)).is_err(),
        "it is not asked a third time"
    );
    assert!(!guest.device.is_connected());
}

#[test]
fn a_process_that_cannot_be_used_is_refused_by_name() {
    fn refusal(whim: impl FnMut(&Header, &[u8]) -> Act + Send + 'static) -> VfioUserError {
        let control = Process::start(whim);
        connect(&control.path, &memory(true)).map(drop).unwrap_err()
    }
    let answers = |command: u16, body: &'static [u8]| {
        move |header: &Header, _: &[u8]| match header.command == command {
            true => Act::Send(message(header.id, header.command, 1, 0, &[body])),
            false => Act::AsItShould,
        }
    };
    use wire::command::*;
    let error = refusal(answers(VERSION, &[1, 0, 0, 0]));
    assert!(
        matches!(error, VfioUserError::Version { major: 1, minor: 0 }),
        "{error}"
    );
    let error = refusal(answers(VERSION, &[0, 0, 2, 0]));
    assert!(
        matches!(error, VfioUserError::Version { major: 0, minor: 2 }),
        "{error}"
    );
    let error = refusal(answers(VERSION, b"\0\0\x01\0{not json\0"));
    assert!(matches!(error, VfioUserError::Lie { .. }), "{error}");
    let error = refusal(answers(VERSION, &[0]));
    assert!(matches!(error, VfioUserError::Lie { .. }), "{error}");
    let error = refusal(answers(
        DEVICE_GET_INFO,
        &[16, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 5, 0, 0, 0],
    ));
    assert!(matches!(error, VfioUserError::Unusable { .. }), "{error}");
    let error = refusal(answers(DEVICE_GET_REGION_INFO, &[0; 32]));
    assert!(matches!(error, VfioUserError::Lie { .. }), "{error}");
    let error = refusal(answers(DEVICE_GET_REGION_INFO, &[0; 3]));
    assert!(matches!(error, VfioUserError::Lie { .. }), "{error}");
    let error = refusal(answers(
        DEVICE_GET_IRQ_INFO,
        &[16, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0xff, 0xff, 0, 0],
    ));
    assert!(matches!(error, VfioUserError::Lie { .. }), "{error}");
    let error = refusal(|header, _| match header.command {
        DMA_MAP => Act::Send(message(header.id, header.command, 0x21, 17, &[])),
        _ => Act::AsItShould,
    });
    assert!(
        matches!(
            error,
            VfioUserError::Refused {
                command: DMA_MAP,
                error: 17
            }
        ),
        "{error}"
    );
    let error = refusal(|header, _| match header.command {
        DEVICE_RESET => Act::Close,
        _ => Act::AsItShould,
    });
    assert!(matches!(error, VfioUserError::Gone), "{error}");
    let nobody = connect(Path::new("/nonexistent/socket"), &memory(true))
        .map(drop)
        .unwrap_err();
    assert!(matches!(nobody, VfioUserError::Connect { .. }), "{nobody}");
}

#[test]
fn file_descriptors_that_a_process_sends_are_not_kept() {
    let guest = Guest::new(|_, _| Act::AsItShould);
    let stream = guest.control.streams.recv().unwrap();
    let open = || {
        std::fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter_map(Result::ok)
            .filter(|entry| {
                std::fs::read_link(entry.path())
                    .is_ok_and(|to| to.to_string_lossy().contains("a-file-that-nobody-asked-for"))
            })
            .count()
    };
    let file = memfd_create("a-file-that-nobody-asked-for", MemfdFlags::CLOEXEC).unwrap();
    assert_eq!(open(), 1);
    let body = [0; 16];
    for id in 0..50 {
        session::send(
            &stream,
            &message(id, wire::command::DMA_READ, 0, 0, &[&body]),
            &[file.as_raw_fd()],
        )
        .unwrap();
    }
    assert_eq!(soon(&guest.read(0, 1)), 0x5a);
    eventually("all are closed", || open() == 1);
}

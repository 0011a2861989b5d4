//! Guest memory in the hands of a process.

use super::*;

#[test]
fn the_process_is_given_memory_and_events_as_files() {
    // The crate's own server knows what to do with them: see tests/vfio_user. Here it is what is said.
    let control = Process::start(|_, _| Act::AsItShould);
    let memory = memory(true);
    let _guest = connect(&control.path, &memory).unwrap();
    let heard = control.heard();
    let of = |command| {
        heard
            .iter()
            .filter(move |(header, _)| header.command == command)
            .map(|(_, body)| &body[..])
    };
    let map: Vec<_> = of(wire::command::DMA_MAP).collect();
    let expected = [&wire::words([32, 3])[..], &[0; 16], &MEMORY.to_le_bytes()].concat();
    assert_eq!(map, [&expected[..]]);
    let irqs: Vec<_> = of(wire::command::DEVICE_SET_IRQS).collect();
    // One event with each, for the process takes no more.
    assert_eq!(
        irqs,
        [wire::words([20, 0x24, 2, 0, 1]), wire::words([20, 0x24, 2, 1, 1])]
    );
    assert_eq!(of(wire::command::DEVICE_RESET).count(), 1);
}

#[test]
fn the_process_reads_and_writes_memory_by_messages() {
    let guest = Guest::new(|_, _| Act::AsItShould);
    let mut stream = guest.control.streams.recv().unwrap();
    guest.memory.write_slice(b"in the guest", GuestAddress(0x100)).unwrap();
    // The process's thread reads the replies too, and keeps them.
    let mut ask = |id: u16, command: u16, address: u64, count: u64, data: &[u8]| {
        let body = [&address.to_le_bytes()[..], &count.to_le_bytes(), data].concat();
        stream.write_all(&message(id, command, 0, 0, &[&body])).unwrap();
        let (header, body) = guest.control.log.recv_timeout(Duration::from_secs(30)).unwrap();
        assert_eq!((header.id, header.command), (id, command));
        (
            header.flags,
            header.error,
            body.get(16..).map(<[u8]>::to_vec).unwrap_or_default(),
        )
    };
    const READ: u16 = wire::command::DMA_READ;
    const WRITE: u16 = wire::command::DMA_WRITE;
    assert_eq!(ask(7, READ, 0x103, 9, &[]), (1, 0, b"the guest".to_vec()));
    assert_eq!(ask(8, WRITE, 0x100, 2, b"at"), (1, 0, vec![]));
    assert_eq!(
        *guest.writes.lock().unwrap(),
        [(0x100, 2)],
        "decoded instructions there are forgotten"
    );
    let refused = (0x21, 22, vec![]);
    assert_eq!(ask(9, READ, MEMORY - 4, 8, &[]), refused, "over the end");
    assert_eq!(ask(10, READ, u64::MAX - 3, 8, &[]), refused);
    assert_eq!(ask(11, WRITE, MEMORY, 1, &[1]), refused);
    assert_eq!(ask(12, READ, 0, u64::MAX, &[]), refused);
    assert_eq!(ask(13, READ, 0, (wire::MAX_DATA + 1) as u64, &[]), refused);
    assert_eq!(ask(14, 99, 0, 0, &[]), refused, "a command that nobody knows");
    let _ = guest.function.write_config(4, 2, 2);
    guest.control.log.recv_timeout(Duration::from_secs(30)).unwrap();
    assert_eq!(ask(15, READ, 0, 4, &[]), refused, "the function is no bus master");
    assert_eq!(guest.memory.read_obj::<[u8; 2]>(GuestAddress(0x100)).unwrap(), *b"at");
    assert!(guest.device.is_connected());
}

#[test]
fn while_the_machine_is_paused_memory_waits_and_goes_on_afterwards() {
    let guest = Guest::new(|_, _| Act::AsItShould);
    let mut stream = guest.control.streams.recv().unwrap();
    guest.device.set_paused(true);
    // Whatever it was doing when it was told, it has done when it answers again.
    assert_eq!(soon(&guest.read(0, 1)), 0x5a);
    let body = [&0x200_u64.to_le_bytes()[..], &1_u64.to_le_bytes(), &[9]].concat();
    stream
        .write_all(&message(1, wire::command::DMA_WRITE, 0, 0, &[&body]))
        .unwrap();
    // An answer behind it comes no earlier.
    let ticket = guest.read(0, 1);
    assert_eq!(ticket.wait_timeout(Duration::from_millis(100)), None);
    assert_eq!(guest.memory.read_obj::<u8>(GuestAddress(0x200)).unwrap(), 0);
    guest.device.set_paused(false);
    assert_eq!(soon(&ticket), 0x5a);
    assert_eq!(guest.memory.read_obj::<u8>(GuestAddress(0x200)).unwrap(), 9);
}

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::super::testing::{BUFFERS, Driver, VERSION_1, eventually};
use super::connection::BUFFER;
use super::hub::{MOST_CLIENTS, MOST_CONNECTIONS};
use super::packet::{HOST, STREAM, op, shutdown};
use super::*;

const CID: u64 = 42;
const RX: usize = 0;
const TX: usize = 1;
const EVENT: usize = 2;
/// What each of the driver's receive buffers holds, and how many there are.
const ROOM: u32 = 4096;
const COUNT: u16 = 16;
/// Where the driver's packets to the device are.
const OUT: u64 = BUFFERS + 0x4_0000;

/// A guest and a host around the device.
struct World {
    driver: Driver,
    device: Arc<Vsock>,
    folder: tempfile::TempDir,
    /// Packets taken so far.
    taken: u16,
    /// What the guest says of itself in every packet.
    buf_alloc: u32,
    consumed: u32,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let device = Arc::new(Vsock::new(CID, listener, path).unwrap());
        let mut world = Self {
            driver: Driver::new(Arc::clone(&device) as _),
            device,
            folder,
            taken: 0,
            buf_alloc: 1 << 20,
            consumed: 0,
        };
        world.run();
        world
    }

    fn run(&mut self) {
        self.driver.run(VERSION_1);
        self.taken = 0;
        for index in 0..COUNT {
            let at = BUFFERS + u64::from(index) * u64::from(ROOM);
            self.driver.offer(RX, &[(at, ROOM, true)]);
        }
        self.driver.notify(RX);
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("v.sock")
    }

    /// A program of the host that has said `line`.
    fn client(&self, line: &str) -> UnixStream {
        let mut client = UnixStream::connect(self.path()).unwrap();
        client.write_all(line.as_bytes()).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        client
    }

    /// The next packet that the guest gets; its buffer is used again.
    fn receive(&mut self) -> (Header, Vec<u8>) {
        eventually("a packet", || self.driver.used(RX) != self.taken);
        let (head, length) = self.driver.used_element(RX, self.taken);
        self.taken = self.taken.wrapping_add(1);
        let at = BUFFERS + u64::from(head) * u64::from(ROOM);
        let bytes = self.driver.get(at, length as usize);
        let header = Header::from_bytes(bytes[..HEADER].try_into().unwrap());
        assert_eq!(header.length as usize, bytes.len() - HEADER);
        assert_eq!((header.source_cid, header.destination_cid), (HOST, CID));
        self.driver.make_available(RX, head as u16);
        self.driver.notify(RX);
        (header, bytes[HEADER..].to_vec())
    }

    /// The next packet, which is of operation `op`.
    fn expect(&mut self, op: u16) -> (Header, Vec<u8>) {
        let (header, data) = self.receive();
        assert_eq!(header.op, op, "{header:?}");
        (header, data)
    }

    fn send_raw(&mut self, header: Header, data: &[u8]) {
        self.driver.put(OUT, &header.to_bytes());
        self.driver.put(OUT + HEADER as u64, data);
        let length = (HEADER + data.len()) as u32;
        assert_eq!(self.driver.request(TX, &[(OUT, length, false)]), 0);
    }

    /// Sends a packet from the guest's port `from` to the host's port `to`.
    fn send(&mut self, (from, to): (u32, u32), op: u16, flags: u32, data: &[u8]) {
        let header = Header {
            source_cid: CID,
            destination_cid: HOST,
            source_port: from,
            destination_port: to,
            length: data.len() as u32,
            kind: STREAM,
            op,
            flags,
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.consumed,
        };
        self.send_raw(header, data);
    }

    /// A client connected to the guest's port 52, and the connection's ends as [`send`](Self::send) takes them.
    fn connected(&mut self) -> (UnixStream, (u32, u32)) {
        let mut client = self.client("CONNECT 52\n");
        let (request, _) = self.expect(op::REQUEST);
        let ends = (52, request.source_port);
        self.send(ends, op::RESPONSE, 0, &[]);
        let mut line = vec![0; format!("OK {}\n", ends.1).len()];
        client.read_exact(&mut line).unwrap();
        assert_eq!(line, format!("OK {}\n", ends.1).as_bytes());
        (client, ends)
    }

    /// A connection that the guest has made to port 5000.
    fn called(&mut self) -> (UnixStream, (u32, u32)) {
        let listener = UnixListener::bind(self.folder.path().join("v.sock_5000")).unwrap();
        self.send((1024, 5000), op::REQUEST, 0, &[]);
        self.expect(op::RESPONSE);
        let (server, _) = listener.accept().unwrap();
        std::fs::remove_file(self.folder.path().join("v.sock_5000")).unwrap();
        server.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        (server, (1024, 5000))
    }

    fn sizes(&self) -> (usize, usize, usize) {
        lock(&self.device.shared.hub).sizes()
    }
}

fn ended(stream: &mut UnixStream) -> bool {
    matches!(stream.read(&mut [0]), Ok(0) | Err(_))
}

#[test]
fn the_configuration_is_the_guest_s_address() {
    let world = World::new();
    assert_eq!(world.driver.read(0x2000, 8), CID);
}

#[test]
fn a_client_of_the_host_is_connected_and_both_talk() {
    let mut world = World::new();
    let mut client = world.client("CONNECT 52\nearly");
    let (request, _) = world.expect(op::REQUEST);
    assert_eq!((request.destination_port, request.kind), (52, STREAM));
    assert_eq!(request.buf_alloc as usize, BUFFER);
    let ends = (52, request.source_port);
    world.send(ends, op::RESPONSE, 0, &[]);
    let mut reader = BufReader::new(client.try_clone().unwrap());
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert_eq!(line, format!("OK {}\n", ends.1));
    assert_eq!(world.expect(op::RW).1, b"early", "what followed the line");
    world.send(ends, op::RW, 0, b"hello\n");
    line.clear();
    reader.read_line(&mut line).unwrap();
    assert_eq!(line, "hello\n");
    client.write_all(b"again").unwrap();
    assert_eq!(world.expect(op::RW).1, b"again");
    assert_eq!(world.driver.counter("connections"), 1);
}

#[test]
fn a_guest_s_call_leads_to_the_socket_of_its_port() {
    let mut world = World::new();
    let (mut server, ends) = world.called();
    world.send(ends, op::RW, 0, b"ping");
    let mut bytes = [0; 4];
    server.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"ping");
    server.write_all(b"pong").unwrap();
    let (header, data) = world.expect(op::RW);
    assert_eq!((&data[..], header.fwd_cnt), (&b"pong"[..], 4));
    assert_eq!((header.source_port, header.destination_port), (5000, 1024));
}

#[test]
fn a_call_that_nobody_answers_and_packets_of_no_connection_are_reset() {
    let mut world = World::new();
    world.send((1024, 6000), op::REQUEST, 0, &[]);
    let (reset, _) = world.expect(op::RST);
    assert_eq!((reset.source_port, reset.destination_port), (6000, 1024));
    for op in [
        op::RESPONSE,
        op::RW,
        op::SHUTDOWN,
        op::CREDIT_UPDATE,
        op::CREDIT_REQUEST,
        0,
        99,
    ] {
        world.send((7, 8), op, 0, &[]);
        world.expect(op::RST);
    }
    // A reset is not answered, nor is what is addressed to somebody else or comes from there.
    world.send((7, 8), op::RST, 0, &[]);
    for (source_cid, destination_cid) in [(CID, 3), (HOST, HOST), (0, 0), (u64::MAX, HOST)] {
        let header = Header {
            source_cid,
            destination_cid,
            op: op::REQUEST,
            kind: STREAM,
            ..Header::default()
        };
        world.send_raw(header, &[]);
    }
    let header = Header {
        source_cid: CID,
        destination_cid: HOST,
        op: op::REQUEST,
        kind: 2,
        ..Header::default()
    };
    world.send_raw(header, &[]);
    assert_eq!(world.expect(op::RST).0.kind, 2, "a seqpacket socket");
    assert_eq!(world.sizes(), (0, 0, 0));
}

#[test]
fn a_host_that_hangs_up_has_its_last_words_delivered_first() {
    let mut world = World::new();
    let (mut client, ends) = world.connected();
    client.write_all(b"last words").unwrap();
    drop(client);
    assert_eq!(world.expect(op::RW).1, b"last words");
    let (header, _) = world.expect(op::SHUTDOWN);
    assert_eq!(header.flags, shutdown::BOTH);
    // What was under way is swallowed.
    world.send(ends, op::RW, 0, b"too late");
    world.send(ends, op::RST, 0, &[]);
    assert_eq!(world.sizes().0, 0);
}

#[test]
fn each_side_may_end_its_half() {
    let mut world = World::new();
    let (mut client, ends) = world.connected();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(world.expect(op::SHUTDOWN).0.flags, shutdown::SEND);
    world.send(ends, op::RW, 0, b"still");
    world.send(ends, op::SHUTDOWN, shutdown::SEND, &[]);
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"still");
    world.send(ends, op::SHUTDOWN, shutdown::RECEIVE, &[]);
    world.expect(op::RST);
    assert_eq!(world.sizes().0, 0);
}

#[test]
fn a_guest_that_hangs_up_is_answered_by_a_reset_when_the_host_has_everything() {
    let mut world = World::new();
    let (mut client, ends) = world.connected();
    world.send(ends, op::RW, 0, b"bye");
    world.send(ends, op::SHUTDOWN, shutdown::BOTH, &[]);
    world.expect(op::RST);
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"bye");
}

#[test]
fn a_guest_that_refuses_has_the_client_hung_up_on() {
    let mut world = World::new();
    let mut client = world.client("CONNECT 52\n");
    let (request, _) = world.expect(op::REQUEST);
    world.send((52, request.source_port), op::RST, 0, &[]);
    assert!(ended(&mut client));
}

#[test]
fn the_guest_is_sent_no_more_than_it_has_room_for() {
    let mut world = World::new();
    world.buf_alloc = 1000;
    let (mut client, ends) = world.connected();
    client.write_all(&[7; 3000]).unwrap();
    assert_eq!(world.expect(op::RW).1.len(), 1000);
    world.expect(op::CREDIT_REQUEST);
    world.consumed = 400;
    world.send(ends, op::CREDIT_UPDATE, 0, &[]);
    assert_eq!(world.expect(op::RW).1.len(), 400);
    world.expect(op::CREDIT_REQUEST);
    // A guest that claims to have consumed more than it was sent has no room, rather than very much.
    world.consumed = 5000;
    world.send(ends, op::CREDIT_UPDATE, 0, &[]);
    world.send(ends, op::CREDIT_REQUEST, 0, &[]);
    world.expect(op::CREDIT_UPDATE);
    world.consumed = 1400;
    world.send(ends, op::CREDIT_UPDATE, 0, &[]);
    assert_eq!(world.expect(op::RW).1.len(), 1000);
}

#[test]
fn the_guest_s_credit_is_told_and_kept() {
    let mut world = World::new();
    let (mut client, ends) = world.connected();
    let part = [5; 4096];
    // The host's socket holds some, the device the credit; nothing is lost.
    let mut sent = 0;
    let told = loop {
        world.send(ends, op::RW, 0, &part);
        sent += part.len() as u32;
        if world.driver.used(RX) != world.taken {
            break world.expect(op::CREDIT_UPDATE).0;
        }
        assert!(sent <= 2 * BUFFER as u32, "no news of the credit");
    };
    assert!(told.fwd_cnt >= BUFFER as u32 / 2 && told.fwd_cnt <= sent);
    let mut read = vec![0; sent as usize];
    client.read_exact(&mut read).unwrap();
    assert!(read.iter().all(|byte| *byte == 5));
}

#[test]
fn a_guest_that_overdraws_its_credit_is_reset() {
    let mut world = World::new();
    let (_client, ends) = world.connected();
    let part = [5; 0x8000];
    for _ in 0..1000 {
        world.send(ends, op::RW, 0, &part);
        while world.driver.used(RX) != world.taken {
            let (header, _) = world.receive();
            if header.op == op::RST {
                assert_eq!(header.destination_port, 52);
                assert_eq!(world.sizes().0, 0);
                return;
            }
        }
    }
    panic!("it may send without end");
}

#[test]
fn what_breaks_the_rules_of_a_connection_resets_it() {
    type Breach = fn(&mut World, (u32, u32));
    let breaches: [Breach; 5] = [
        |world, ends| world.send(ends, op::REQUEST, 0, &[]),
        |world, ends| world.send(ends, op::RESPONSE, 0, &[]),
        |world, ends| world.send(ends, 0, 0, &[]),
        |world, ends| world.send(ends, 77, 0, &[]),
        |world, ends| {
            world.send(ends, op::SHUTDOWN, shutdown::SEND, &[]);
            world.send(ends, op::RW, 0, b"after the end");
        },
    ];
    for (index, breach) in breaches.iter().enumerate() {
        let mut world = World::new();
        let (mut client, ends) = world.connected();
        breach(&mut world, ends);
        world.expect(op::RST);
        assert!(ended(&mut client), "{index}");
        assert_eq!(world.sizes().0, 0);
    }
    // Data before the answer.
    let mut world = World::new();
    let _client = world.client("CONNECT 52\n");
    let (request, _) = world.expect(op::REQUEST);
    world.send((52, request.source_port), op::RW, 0, b"x");
    world.expect(op::RST);
}

#[test]
fn clients_that_talk_nonsense_or_nothing_are_let_go() {
    let mut world = World::new();
    for line in [
        "HELLO\n",
        "CONNECT\n",
        "CONNECT x\n",
        "CONNECT 4294967296\n",
        "CONNECT -1\n",
        "\n",
        "CONNECT 000000000000000000000000000000000000052\n",
    ] {
        assert!(ended(&mut world.client(line)), "{line}");
    }
    drop(world.client("CONN"));
    let mut silent: Vec<_> = (0..MOST_CLIENTS + 1).map(|_| world.client("")).collect();
    assert!(ended(&mut silent[0]), "the oldest makes room");
    assert!(world.sizes().1 <= MOST_CLIENTS);
    world.connected();
}

#[test]
fn a_client_that_leaves_before_the_guest_has_answered_is_forgotten() {
    let mut world = World::new();
    let client = world.client("CONNECT 52\n");
    let (request, _) = world.expect(op::REQUEST);
    drop(client);
    let (reset, _) = world.expect(op::RST);
    assert_eq!(reset.source_port, request.source_port);
    assert_eq!(world.sizes().0, 0);
}

#[test]
fn a_guest_that_calls_and_hangs_up_without_end_and_takes_no_packet_leaves_nothing_behind() {
    let world = World::new();
    let _listener = UnixListener::bind(world.folder.path().join("v.sock_5000")).unwrap();
    let mut hub = lock(&world.device.shared.hub);
    for op in [op::REQUEST, op::RST].into_iter().cycle().take(200) {
        let header = Header {
            source_cid: CID,
            destination_cid: HOST,
            source_port: 1024,
            destination_port: 5000,
            kind: STREAM,
            op,
            ..Header::default()
        };
        hub.receive(&header, &[]);
        assert!(hub.queued() <= hub.sizes().0);
    }
    assert_eq!(hub.sizes(), (0, 0, 0));
}

#[test]
fn there_are_only_so_many_connections() {
    let mut world = World::new();
    let path = world.folder.path().join("v.sock_9");
    let listener = UnixListener::bind(path).unwrap();
    let mut servers = Vec::new();
    let mut refused = 0;
    for from in 0..MOST_CONNECTIONS as u32 + 5 {
        world.send((from, 9), op::REQUEST, 0, &[]);
        let (header, _) = world.receive();
        match header.op {
            op::RESPONSE => servers.push(listener.accept().unwrap()),
            op::RST => refused += 1,
            other => panic!("{other}"),
        }
    }
    assert_eq!((servers.len(), refused), (MOST_CONNECTIONS, 5));
    assert_eq!(world.sizes().0, servers.len());
    world.driver.negotiate(VERSION_1);
    assert_eq!(world.sizes(), (0, 0, 0), "a reset of the device ends them all");
    world.run();
    world.connected();
}

#[test]
fn a_restored_guest_is_told_that_its_connections_are_gone() {
    let mut old = World::new();
    let (_client, ends) = old.connected();
    old.driver.offer(EVENT, &[(OUT + 0x2000, 4, true)]);
    old.driver.notify(EVENT);
    assert!(old.driver.device.set_paused(true, Duration::from_secs(60)));
    assert_eq!(old.driver.used(EVENT), 0);
    let (state, function) = (old.driver.device.state().unwrap(), old.driver.function.state());

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v.sock");
    let device = Arc::new(Vsock::new(CID, UnixListener::bind(&path).unwrap(), path).unwrap());
    old.driver.put(OUT + 0x2000, &[0xff; 4]);
    let driver = Driver::with(Arc::clone(&device) as _, old.driver.memory.clone());
    assert!(driver.device.set_paused(true, Duration::ZERO));
    driver.function.restore(&function).unwrap();
    driver.device.restore(&state).unwrap();
    driver.device.set_paused(false, Duration::ZERO);
    eventually("the event", || driver.used(EVENT) == 1);
    assert_eq!(driver.get(OUT + 0x2000, 4), [0; 4]);
    // The old machine goes on with its own.
    drop(driver);
    old.driver.device.set_paused(false, Duration::ZERO);
    let _ = ends;
}

#[test]
fn packets_that_are_none_are_given_back() {
    let mut world = World::new();
    let (_client, ends) = world.connected();
    let header = |length| Header {
        source_cid: CID,
        destination_cid: HOST,
        source_port: ends.0,
        destination_port: ends.1,
        length,
        kind: STREAM,
        op: op::RW,
        ..Header::default()
    };
    let driver = &mut world.driver;
    for (length, buffer) in [(0, 43), (5, 48), (u32::MAX, 4096), (65537, 0x1_0100)] {
        driver.put(OUT, &header(length).to_bytes());
        assert_eq!(driver.request(TX, &[(OUT, buffer, false)]), 0);
    }
    assert_eq!(driver.request(TX, &[(1 << 40, 64, false)]), 0);
    assert_eq!(driver.counter("malformed"), 5);
    assert_eq!(world.sizes().0, 1);
}

#[test]
fn a_packet_that_cannot_be_written_costs_its_connection() {
    let mut world = World::new();
    // The good buffers are used up first.
    let (mut client, _ends) = world.connected();
    let negotiated = world.driver.counter("malformed");
    world.driver.offer(EVENT, &[(OUT, 4, true)]);
    world.driver.negotiate(VERSION_1);
    assert!(ended(&mut client));
    world.driver.run(VERSION_1);
    world.taken = 0;
    let _client = world.client("CONNECT 52\n");
    world.driver.offer(RX, &[(OUT, 20, true)]);
    world.driver.offer(RX, &[(1 << 40, 4096, true)]);
    world.driver.notify(RX);
    eventually("both", || world.driver.used(RX) == 2);
    assert_eq!(world.driver.counter("malformed"), negotiated + 2);
    world.driver.offer(RX, &[(BUFFERS, 4096, true)]);
    world.driver.notify(RX);
    eventually("the reset", || world.driver.used(RX) == 3);
    let header = Header::from_bytes(&world.driver.get(BUFFERS, HEADER).try_into().unwrap());
    assert_eq!(header.op, op::RST);
}

#[test]
fn the_socket_goes_with_the_device() {
    let world = World::new();
    let path = world.path();
    assert!(Path::new(&path).exists());
    let World {
        driver, device, folder, ..
    } = world;
    drop((driver, device));
    assert!(!path.exists());
    drop(folder);
}

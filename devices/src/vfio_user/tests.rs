//! A client and processes that serve it well, badly, late or not at all. The processes are threads here;
//! `tests/vfio_user` has real ones.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EFD_NONBLOCK;

use super::wire::{Header, RegionAccess, message};
use super::*;
use crate::bus::{Device, Ticket};
use crate::pci::Message;
use crate::pci::testing::Inbox as Messages_;

const MEMORY: u64 = 1 << 20;
/// The bus's offset of BAR 0, and of MSI-X's table in it.
const TABLE: u64 = 0x800;

/// Guest memory that another process could map, and one that only messages reach.
fn memory(shared: bool) -> GuestMemoryMmap {
    let file = shared.then(|| {
        let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, MEMORY).unwrap();
        FileOffset::new(File::from(file), 0)
    });
    GuestMemoryMmap::from_ranges_with_files([(GuestAddress(0), MEMORY as usize, file)]).unwrap()
}

/// Takes messages, and hands out events.
#[derive(Default)]
struct Events {
    inbox: Messages_,
    events: Mutex<Vec<EventFd>>,
}

impl Messages for Events {
    fn send(&self, message: Message) {
        self.inbox.send(message);
    }

    fn route(&self, vector: u16, message: Option<Message>) {
        self.inbox.route(vector, message);
    }

    fn is_pending(&self, vector: u16) -> bool {
        vector == 1
    }
}

impl EventMessages for Events {
    fn event(&self, vector: u16) -> io::Result<EventFd> {
        let event = EventFd::new(EFD_NONBLOCK)?;
        let mut events = self.events.lock().unwrap();
        assert_eq!(events.len(), usize::from(vector));
        events.push(event.try_clone()?);
        Ok(event)
    }
}

/// What a process does with a message, in place of what it should.
enum Act {
    AsItShould,
    Send(Vec<u8>),
    Nothing,
    Close,
}

type Whim = Box<dyn FnMut(&Header, &[u8]) -> Act + Send>;

/// A process of the tests' own: BAR 0 of 4 KiB remembers, and has MSI-X with two vectors.
struct Process {
    bar: Vec<u8>,
    config: Vec<u8>,
    maskable: bool,
    log: mpsc::Sender<(Header, Vec<u8>)>,
    whim: Whim,
}

/// The test's end of a [`Process`].
struct Control {
    _folder: tempfile::TempDir,
    path: PathBuf,
    log: mpsc::Receiver<(Header, Vec<u8>)>,
    /// The process's end of the socket, once it is connected.
    streams: mpsc::Receiver<UnixStream>,
}

impl Control {
    /// The commands that arrived since, but those of the beginning.
    fn heard(&self) -> Vec<(Header, Vec<u8>)> {
        self.log.try_iter().collect()
    }
}

fn config() -> Vec<u8> {
    let mut config = vec![0; 0x100];
    let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x00, &[0x34, 0x12, 0x78, 0x56, 0, 0, 0x10, 0]);
    put(0x08, &[3, 1, 2, 0xff]);
    put(0x34, &[0x40]);
    // Power management, MSI, MSI-X, and something of the vendor's.
    put(0x40, &[0x01, 0x48, 0x03, 0x00, 0x08, 0x00, 0x00, 0x00]);
    put(0x48, &[0x05, 0x60]);
    put(0x60, &[0x11, 0x70, 1, 0]);
    put(0x64, &(TABLE as u32).to_le_bytes());
    put(0x68, &0xc00_u32.to_le_bytes());
    put(0x70, &[0x09, 0x00, 0x08, 0xaa, 0xbb, 0xcc, 0xdd, 0xee]);
    config
}

impl Process {
    /// Starts one that does as `whim` says, with every connection anew.
    fn start(whim: impl FnMut(&Header, &[u8]) -> Act + Send + 'static) -> Control {
        Self::start_with(true, whim)
    }

    fn start_with(maskable: bool, whim: impl FnMut(&Header, &[u8]) -> Act + Send + 'static) -> Control {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let (log, heard) = mpsc::channel();
        let (tell, streams) = mpsc::channel();
        let mut process = Self {
            bar: vec![0x5a; 0x1000],
            config: config(),
            maskable,
            log,
            whim: Box::new(whim),
        };
        thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                if tell.send(stream.try_clone().unwrap()).is_err() {
                    return;
                }
                let _ended = process.serve(stream);
            }
        });
        Control {
            _folder: folder,
            path,
            log: heard,
            streams,
        }
    }

    fn serve(&mut self, mut stream: UnixStream) -> io::Result<()> {
        loop {
            let mut header = [0; wire::HEADER];
            stream.read_exact(&mut header)?;
            let header = Header::parse(header);
            let mut body = vec![0; header.size as usize - wire::HEADER];
            stream.read_exact(&mut body)?;
            let _ = self.log.send((header, body.clone()));
            if header.is_reply() {
                continue;
            }
            let reply = match (self.whim)(&header, &body) {
                Act::AsItShould => self.reply(&header, &body),
                Act::Send(bytes) => Some(bytes),
                Act::Nothing => None,
                Act::Close => return stream.shutdown(std::net::Shutdown::Both),
            };
            if let Some(reply) = reply {
                stream.write_all(&reply)?;
            }
        }
    }

    fn reply(&mut self, header: &Header, body: &[u8]) -> Option<Vec<u8>> {
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
        let word = |at: usize| u32::from_le_bytes(body[at..at + 4].try_into().unwrap());
        let body = match header.command {
            wire::command::VERSION => [&[0, 0, 1, 0][..], b"{\"capabilities\":{\"max_msg_fds\":1}}\0"].concat(),
            wire::command::DEVICE_GET_INFO => words(&[16, 3, 9, 5]),
            wire::command::DEVICE_GET_REGION_INFO => {
                let size = match word(8) {
                    0 => 0x1000,
                    7 => 0x100,
                    _ => 0,
                };
                words(&[32, 3, word(8), 0, size, 0, 0, 0])
            }
            wire::command::DEVICE_GET_IRQ_INFO => words(&[16, 1 | u32::from(self.maskable) << 1, word(8), 2]),
            wire::command::REGION_READ | wire::command::REGION_WRITE => {
                let (at, count) = (word(0) as usize, word(12) as usize);
                let space = if word(8) == 7 { &mut self.config } else { &mut self.bar };
                if header.command == wire::command::REGION_WRITE {
                    space[at..at + count].copy_from_slice(&body[16..]);
                    body[..16].to_vec()
                } else {
                    [&body[..16], &space[at..at + count]].concat()
                }
            }
            _ => Vec::new(),
        };
        (header.flags & wire::flag::NO_REPLY == 0)
            .then(|| message(header.id, header.command, wire::flag::REPLY, 0, &[&body]))
    }
}

/// A guest's end: the function, and what is behind it.
struct Guest {
    control: Control,
    device: Arc<UserDevice>,
    function: Function,
    events: Arc<Events>,
    memory: GuestMemoryMmap,
    writes: Arc<Mutex<Vec<(u64, u64)>>>,
}

fn connect(path: &Path, memory: &GuestMemoryMmap) -> Result<(Arc<UserDevice>, Function, Arc<Events>), VfioUserError> {
    let events = Arc::new(Events::default());
    let dma = Dma::new(memory.clone(), Arc::new(|_: u64, _: u64| {}));
    let (device, function) = UserDevice::connect("device", path, &dma, Arc::clone(&events) as _)?;
    Ok((device, function, events))
}

impl Guest {
    fn new(whim: impl FnMut(&Header, &[u8]) -> Act + Send + 'static) -> Self {
        Self::of(Process::start(whim))
    }

    fn of(control: Control) -> Self {
        let (memory, events, writes) = (
            memory(true),
            Arc::new(Events::default()),
            Arc::<Mutex<Vec<_>>>::default(),
        );
        let told = Arc::clone(&writes);
        let watcher = move |address, length| told.lock().unwrap().push((address, length));
        let dma = Dma::new(memory.clone(), Arc::new(watcher));
        let (device, function) = UserDevice::connect("device", &control.path, &dma, Arc::clone(&events) as _).unwrap();
        let _ = function.write_config(4, 2, 6);
        let _ = function.write_config(0x62, 2, 0x8000);
        // What was said so far is of no interest to any test but those of the beginning.
        let _ = function.ask_config(0x44, 2).wait();
        control.heard();
        Self {
            control,
            device,
            function,
            events,
            memory,
            writes,
        }
    }

    fn read(&self, offset: u64, size: u8) -> Ticket {
        match Device::read(&self.function, offset, size) {
            Response::Later(ticket) => ticket,
            Response::Done(value) => panic!("answered at once: {value:#x}"),
        }
    }
}

/// The answer of a ticket that is answered soon, waited for as a vCPU does.
fn soon(ticket: &Ticket) -> u64 {
    ticket.hasten();
    ticket.wait_timeout(Duration::from_secs(30)).expect("no answer")
}

fn eventually(what: &str, mut happens: impl FnMut() -> bool) {
    let start = Instant::now();
    while !happens() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what} does not happen");
        thread::sleep(Duration::from_millis(1));
    }
}

fn is_access(header: &Header, body: &[u8], command: u16, offset: u64) -> bool {
    header.command == command && body[..8] == offset.to_le_bytes() && body[8..12] == 0_u32.to_le_bytes()
}

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

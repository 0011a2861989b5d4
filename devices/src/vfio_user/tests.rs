//! A client and processes that serve it well, badly, late or not at all. The processes are threads here;
//! `tests/vfio_user` has real ones.

mod life;
mod memory;
mod refusals;
mod registers;
mod vectors;

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

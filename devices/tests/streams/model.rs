//! Drivers made of bytes, a host that says what nobody expects, and what a sane driver finds after them.

#[path = "../driver/mod.rs"]
mod driver;

use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use driver::{Driver, MEMORY, eventually};
use reprise_devices::Output;
use reprise_devices::virtio::{Balloon, BalloonOptions, Console, ConsoleSize, VirtioDevice, VirtioPci, Vsock};
use vm_memory::{Bytes, GuestAddress};

/// A console, sockets, a balloon.
pub const KINDS: u8 = 3;

const BUFFERS: u64 = 0x2_0000;
const PAGE: u64 = 4096;
/// The guest's CID, and a port of the host that nobody listens at.
const CID: u64 = 3;
const NOBODY: u32 = 7;
/// Bytes of the header of a packet between sockets; REQUEST, RST, and the type of a stream.
const HEADER: usize = 44;
const REQUEST: u16 = 1;
const RST: u16 = 3;
const STREAM: u16 = 1;

/// What was printed.
#[derive(Clone, Default)]
struct Printed(Arc<Mutex<Vec<u8>>>);

impl Write for Printed {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut printed = self.0.lock().unwrap();
        // A hostile driver prints all memory over and over.
        if printed.len() > 1 << 20 {
            printed.clear();
        }
        printed.extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The host's side.
enum Host {
    Console(Arc<Console>, Printed),
    Sockets(PathBuf, Vec<UnixStream>),
    Balloon(Arc<Mutex<Vec<(u64, u64)>>>),
}

impl Host {
    fn new(which: u8, folder: &std::path::Path) -> (Arc<dyn VirtioDevice>, Self) {
        match which % KINDS {
            0 => {
                let printed = Printed::default();
                let output = Output::new(Box::new(printed.clone())).unwrap();
                let console = Arc::new(Console::new(Arc::new(output)).unwrap());
                (
                    Arc::clone(&console) as Arc<dyn VirtioDevice>,
                    Self::Console(console, printed),
                )
            }
            1 => {
                let path = folder.join("v.sock");
                let listener = UnixListener::bind(&path).unwrap();
                let device = Vsock::new(CID, listener, path.clone()).unwrap();
                (Arc::new(device), Self::Sockets(path, Vec::new()))
            }
            _ => {
                let given = Arc::new(Mutex::new(Vec::new()));
                let list = Arc::clone(&given);
                let options = BalloonOptions {
                    size: 8 * PAGE,
                    deflate_on_oom: true,
                    free_page_reporting: true,
                };
                let host = move |address: u64, length: u64| {
                    // The device leaves it to the host to refuse what is no memory.
                    assert!(
                        address.is_multiple_of(PAGE) && length.is_multiple_of(PAGE),
                        "{address:#x} {length:#x}"
                    );
                    match address.checked_add(length).is_some_and(|end| end <= MEMORY) {
                        true => {
                            let mut list = list.lock().unwrap();
                            list.truncate(1000);
                            list.push((address, length));
                            Ok(())
                        }
                        false => Err(std::io::ErrorKind::InvalidInput.into()),
                    }
                };
                let balloon = Arc::new(Balloon::new(options, Box::new(host)));
                (balloon, Self::Balloon(given))
            }
        }
    }

    /// Says something that nobody expects.
    fn act(&mut self, device: &VirtioPci, a: u8, b: u8) {
        match self {
            Self::Console(console, _) => {
                console.enqueue(&vec![b; usize::from(a) * 40]);
                console.resize(ConsoleSize {
                    columns: a.into(),
                    rows: b.into(),
                });
            }
            Self::Sockets(path, streams) => match a % 4 {
                0 if streams.len() < 40 => {
                    let stream = UnixStream::connect(path).unwrap();
                    stream.set_nonblocking(true).unwrap();
                    streams.push(stream);
                }
                1 => drop(streams.pop()),
                _ => {
                    if let Some(stream) = streams.last_mut() {
                        let _ = match a % 8 {
                            2 => stream.write(format!("CONNECT {}\n", b % 16).as_bytes()),
                            3 => stream.write(&vec![b; usize::from(a) * 300]),
                            _ => stream.write(&[b; 3]),
                        };
                    }
                }
            },
            Self::Balloon(_) => {
                let _ = device.resize(u64::from(a) * PAGE);
            }
        }
    }
}

/// A driver in its right mind.
trait Sane {
    fn offer(&self, queue: u64, address: u64, length: u32, flags: u16);
    fn sane_console(&self, console: &Console, printed: &Printed);
    fn sane_sockets(&self);
    fn sane_balloon(&self, given: &Mutex<Vec<(u64, u64)>>);
}

impl Sane for Driver {
    /// Offers one buffer of queue `queue`, and waits until it is used.
    fn offer(&self, queue: u64, address: u64, length: u32, flags: u16) {
        let used = self.used(queue);
        self.describe(queue, u64::from(used), address, length, flags, 0);
        self.make_available(queue, used.wrapping_add(1));
        self.notify(queue);
    }

    fn sane_console(&self, console: &Console, printed: &Printed) {
        self.memory.write_slice(b"sane\n", GuestAddress(BUFFERS)).unwrap();
        self.offer(1, BUFFERS, 5, 0);
        eventually("that it is printed", || printed.0.lock().unwrap().ends_with(b"sane\n"));
        // What was typed at the hostile driver comes first.
        eventually("that it is typed", || {
            console.enqueue(b"typed");
            let used = self.used(0);
            self.offer(0, BUFFERS, PAGE as u32, 2);
            eventually("input", || self.used(0) != used);
            let mut page = [0; PAGE as usize];
            self.memory.read_slice(&mut page, GuestAddress(BUFFERS)).unwrap();
            page.windows(5).any(|window| window == b"typed")
        });
    }

    /// Nobody listens at the host's port, which the guest is told.
    fn sane_sockets(&self) {
        let mut packet = [0; HEADER];
        packet[..8].copy_from_slice(&CID.to_le_bytes());
        packet[8..16].copy_from_slice(&2_u64.to_le_bytes());
        packet[16..20].copy_from_slice(&1000_u32.to_le_bytes());
        packet[20..24].copy_from_slice(&NOBODY.to_le_bytes());
        packet[28..30].copy_from_slice(&STREAM.to_le_bytes());
        packet[30..32].copy_from_slice(&REQUEST.to_le_bytes());
        packet[36..40].copy_from_slice(&PAGE.to_le_bytes()[..4]);
        let sent = GuestAddress(BUFFERS + PAGE);
        self.memory.write_slice(&packet, sent).unwrap();
        self.offer(1, sent.0, HEADER as u32, 0);
        eventually("a refusal", || {
            let used = self.used(0);
            self.offer(0, BUFFERS, PAGE as u32, 2);
            // Clients of the host that are still there come first.
            eventually("a packet", || self.used(0) != used);
            let mut answer = [0; HEADER];
            self.memory.read_slice(&mut answer, GuestAddress(BUFFERS)).unwrap();
            let field = |at: usize| u16::from_le_bytes([answer[at], answer[at + 1]]);
            (field(30), field(20)) == (RST, 1000)
        });
    }

    fn sane_balloon(&self, given: &Mutex<Vec<(u64, u64)>>) {
        given.lock().unwrap().clear();
        self.memory
            .write_obj((BUFFERS / PAGE) as u32 + 1, GuestAddress(BUFFERS))
            .unwrap();
        self.offer(0, BUFFERS, 4, 0);
        eventually("that a page is given back", || {
            given.lock().unwrap().contains(&(BUFFERS + PAGE, PAGE))
        });
    }
}

/// The first byte says which device, and what the driver accepts; then operations of six bytes, whose first has the queue in its
/// upper bits. The number of requests that were served.
pub fn operate(bytes: &[u8]) -> u64 {
    let Some((which, operations)) = bytes.split_first() else {
        return 0;
    };
    let folder = tempfile::tempdir().unwrap();
    let (device, mut host) = Host::new(*which, folder.path());
    let world = Driver::new(device);
    // All that the device itself offers, and some of the transport's.
    let own = |offered| offered & 0xff_ffff;
    world.set_up(|offered| own(offered) | if which & 0x80 != 0 { 3 << 28 } else { 0 });
    for operation in operations.chunks_exact(6) {
        let [what, a, b, c, d, e] = *operation else {
            unreachable!("chunks of six")
        };
        let queue = u64::from(what >> 5) % world.queues;
        match what % 8 {
            // A descriptor; its address is anywhere near memory, and its length up to 4 GiB.
            0 => {
                let address = u64::from(b) << 12 | u64::from(a) << 4;
                let length = (u32::from(c) << 4) << (e & 0x17);
                world.describe(queue, a.into(), address, length, u16::from(d) & 7, u16::from(d >> 4));
            }
            1 => world.make_available(queue, u16::from(a) | u16::from(b) << 8),
            2 => world.notify(queue),
            // A register, sometimes of the device's own.
            3 => {
                let offset = u64::from(a & 0x3f) + if e & 1 == 0 { 0 } else { 0x2000 };
                world.write(offset, 1 << (b % 4), u64::from(c) << (8 * (d % 8)));
            }
            // Page numbers, text, or whatever else a buffer holds.
            4 => {
                let at = GuestAddress(BUFFERS + u64::from(a) * 16);
                world.memory.write_obj([b, c, d, e, 0, b, 0, c], at).unwrap();
            }
            5 => host.act(&world.device, a, b),
            6 => world.settle(),
            // A packet of the guest's, with some sense.
            _ => {
                let mut packet = [0; HEADER];
                packet[0] = CID as u8;
                packet[8] = 2;
                packet[16] = b % 16;
                packet[20] = c % 16;
                packet[24] = d;
                packet[25] = d >> 4;
                packet[28] = STREAM as u8;
                packet[30] = e % 9;
                packet[32] = e >> 4;
                packet[37] = e;
                packet[41] = d;
                let at = GuestAddress(BUFFERS + u64::from(a) * 64);
                world.memory.write_slice(&packet, at).unwrap();
            }
        }
    }
    let requests = world.counter("requests");
    assert!(world.take_furthest() <= MEMORY, "outside memory");

    // After that, a sane driver and a sane host.
    world.function.write_config(4, 2, 6);
    world.set_up(own);
    world.take_furthest();
    match &mut host {
        Host::Console(console, printed) => world.sane_console(console, printed),
        Host::Sockets(_, streams) => {
            streams.clear();
            world.sane_sockets();
            assert!(world.take_furthest() > BUFFERS, "a device that writes says so");
        }
        Host::Balloon(given) => world.sane_balloon(given),
    }
    requests
}

//! What a register of a device in another process costs: `cargo bench -p reprise-devices --bench vfio_user`.
//!
//! * a read, from the bus to the answer, of the example device in a process of its own, beside two round trips by nothing but a
//!   socket: a message of the same size to a process that sends one of the size of the reply back, and the very same question to
//!   the very same server, which takes two reads and two writes of its socket for each (`vfio_user` 0.1). Some of each in turn, as
//!   often as makes what else the host does even;
//! * how fast another thread is while one makes 10,000 reads that are each answered after 1 ms.

use std::env;
use std::error::Error;
use std::fs::{self, File};
use std::hint::black_box;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use reprise_devices::pci::{Function, Message, Messages};
use reprise_devices::vfio_user::{EventMessages, UserDevice};
use reprise_devices::virtio::Dma;
use reprise_devices::{Device, Response};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vfio_bindings::bindings::vfio::vfio_region_info;
use vfio_user::{DmaMapFlags, DmaUnmapFlags, Server, ServerBackend, ServerRegion};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

#[path = "../examples/user_device.rs"]
mod example;

/// In the environment of a process that is to serve, what it serves.
const SERVES: &str = "REPRISE_BENCH_SERVES";
/// Bytes of a question for a register of four bytes, and of its answer.
const QUESTION: usize = 32;
const ANSWER: usize = 36;
const TURNS: usize = 40;
const ROUNDS: usize = 1_000;
const LATE_READS: u32 = 10_000;

struct NoMessages;

impl Messages for NoMessages {
    fn send(&self, _message: Message) {}
}

impl EventMessages for NoMessages {
    fn event(&self, _vector: u16) -> io::Result<EventFd> {
        EventFd::new(0)
    }
}

/// This program again, serving at a socket.
struct Process(Child);

impl Process {
    fn start(what: &str, socket: &Path) -> Self {
        let mut command = Command::new(env::current_exe().expect("this program has a path"));
        let child = command.arg(socket).env(SERVES, what).spawn().expect("a process");
        while !is_listened_on(socket) {
            thread::sleep(Duration::from_millis(1));
        }
        Self(child)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether connecting to `socket` would do (proc_pid_net(5)): one that is only there yet refuses.
fn is_listened_on(socket: &Path) -> bool {
    let sockets = fs::read_to_string("/proc/net/unix").expect("the host's sockets");
    let listening = |line: &str| line.split_whitespace().nth(3) == Some("00010000");
    let path = socket.to_str().expect("a path in UTF-8");
    sockets.lines().any(|line| line.ends_with(path) && listening(line))
}

/// Sends back an answer's bytes for a question's.
fn echo(socket: &Path) -> io::Result<()> {
    let (mut stream, _) = UnixListener::bind(socket)?.accept()?;
    let mut bytes = [0; QUESTION];
    loop {
        stream.read_exact(&mut bytes)?;
        stream.write_all(&[0; ANSWER])?;
    }
}

/// A device whose only register is read after a millisecond.
struct Late;

impl ServerBackend for Late {
    fn region_read(&mut self, region: u32, _: u64, data: &mut [u8]) -> io::Result<()> {
        data.fill(0);
        if region == 0 {
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn region_write(&mut self, _: u32, _: u64, _: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn dma_map(&mut self, _: DmaMapFlags, _: u64, _: u64, _: u64, _: Option<File>) -> io::Result<()> {
        Ok(())
    }

    fn dma_unmap(&mut self, _: DmaUnmapFlags, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn reset(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn set_irqs(&mut self, _: u32, _: u32, _: u32, _: u32, _: Vec<File>) -> io::Result<()> {
        Ok(())
    }
}

fn serve_late(socket: &Path) -> Result<(), Box<dyn Error>> {
    let region = |(index, size)| {
        let region_info = vfio_region_info {
            index,
            size,
            flags: 3,
            ..Default::default()
        };
        ServerRegion {
            region_info,
            sparse_areas: Vec::new(),
            mmap_fd: None,
        }
    };
    let regions = (0..).zip([0x1000, 0, 0, 0, 0, 0, 0, 0x100, 0]).map(region);
    Ok(Server::new(socket, false, Vec::new(), regions.collect())?.run(&mut Late)?)
}

fn connect(socket: &Path) -> (Arc<UserDevice>, Function) {
    let file = memfd_create("guest", MemfdFlags::CLOEXEC).expect("a file in memory");
    ftruncate(&file, 1 << 20).expect("its size");
    let ranges = [(GuestAddress(0), 1 << 20, Some(FileOffset::new(file.into(), 0)))];
    let memory = GuestMemoryMmap::from_ranges_with_files(ranges).expect("memory");
    let dma = Dma::new(memory, Arc::new(|_: u64, _: u64| {}));
    UserDevice::connect("device", socket, &dma, Arc::new(NoMessages)).expect("the device")
}

fn read(function: &Function) -> u64 {
    match Device::read(function, 0, 4) {
        Response::Done(value) => value,
        Response::Later(ticket) => ticket.wait(),
    }
}

/// The middle one.
fn median<T: PartialOrd + Copy>(values: &mut [T]) -> T {
    values.sort_unstable_by(|a, b| a.partial_cmp(b).expect("no NaN"));
    values[values.len() / 2]
}

/// The middle one of the times, in seconds, that `round` takes.
fn seconds(mut round: impl FnMut()) -> f64 {
    let time = |_| {
        let start = Instant::now();
        round();
        start.elapsed().as_secs_f64()
    };
    median(&mut (0..ROUNDS).map(time).collect::<Vec<_>>())
}

fn round_trips(folder: &Path) {
    let socket = folder.join("echo");
    let _echo = Process::start("echo", &socket);
    let mut stream = UnixStream::connect(&socket).expect("a connection");
    let mut answer = [0; ANSWER];
    let socket = folder.join("device");
    let _process = Process::start("example", &socket);
    let (_device, function) = connect(&socket);
    assert_eq!(read(&function), u64::from(u32::from_le_bytes(*b"RPRS")));
    let socket = folder.join("asked");
    let _asked = Process::start("example", &socket);
    let mut server = UnixStream::connect(&socket).expect("a connection");
    let question = question();
    let [mut bare, mut served, mut register, mut ratios, mut overheads] = [(); 5].map(|()| Vec::new());
    for _ in 0..TURNS {
        let [own, same] = [(&mut stream, [0; QUESTION]), (&mut server, question)].map(|(stream, question)| {
            seconds(|| {
                stream.write_all(&question).expect("a question");
                stream.read_exact(&mut answer).expect("an answer");
            })
        });
        let theirs = seconds(|| _ = black_box(read(&function)));
        bare.push(own);
        served.push(same);
        register.push(theirs);
        ratios.push(theirs / own);
        overheads.push(theirs / same);
    }
    let [bare, served, register] = [bare, served, register].map(|mut times| 1e6 * median(&mut times));
    let [ratio, overhead] = [ratios, overheads].map(|mut ratios| median(&mut ratios));
    println!("a register: {register:.1} us; a bare socket: {bare:.1} us; ratio {ratio:.2}");
    println!("the same server by a bare socket: {served:.1} us; ratio {overhead:.2}");
    println!("figures: {:?}", Device::counters(&function));
}

/// What asks for the first register: REGION_READ with id 1, of four bytes at 0 of BAR 0.
fn question() -> [u8; QUESTION] {
    let mut question = [0; QUESTION];
    for (at, byte) in [(0, 1), (2, 9), (4, QUESTION as u8), (28, 4)] {
        question[at] = byte;
    }
    question
}

/// How fast another thread is beside reads that are late.
fn late(folder: &Path) {
    let counter = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let other = {
        let (counter, stop) = (Arc::clone(&counter), Arc::clone(&stop));
        thread::spawn(move || {
            while !stop.load(Relaxed) {
                black_box((0..1000_u64).fold(0, |sum, n| black_box(sum ^ n)));
                counter.fetch_add(1, Relaxed);
            }
        })
    };
    let rate = |during: &mut dyn FnMut()| {
        let (start, before) = (Instant::now(), counter.load(Relaxed));
        during();
        (counter.load(Relaxed) - before) as f64 / start.elapsed().as_secs_f64()
    };
    let alone = rate(&mut || thread::sleep(Duration::from_secs(3)));
    let socket = folder.join("late");
    let _process = Process::start("late", &socket);
    let (_device, function) = connect(&socket);
    let beside = rate(&mut || {
        for _ in 0..LATE_READS {
            black_box(read(&function));
        }
    });
    stop.store(true, Relaxed);
    other.join().expect("it counts");
    println!(
        "another thread beside {LATE_READS} late reads: {:.3} of what it does alone",
        beside / alone
    );
}

fn main() {
    if let Ok(what) = env::var(SERVES) {
        let socket = env::args_os().nth(1).expect("a socket");
        let _ended = match what.as_str() {
            "echo" => echo(socket.as_ref()).map_err(Into::into),
            "late" => serve_late(socket.as_ref()),
            _ => example::main(),
        };
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    round_trips(folder.path());
    late(folder.path());
}

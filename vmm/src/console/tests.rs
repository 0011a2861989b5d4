use std::io::{Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener;
use std::sync::mpsc::{Receiver, Sender, channel};

use reprise_devices::{Bus, NoInterrupt, Response, Serial, Space};
use rustix::termios::{LocalModes, tcgetattr};

use super::*;

/// A serial port on a bus, as a guest sees it.
struct Guest {
    bus: Bus,
    serial: Arc<Serial>,
}

const COM1: u64 = reprise_devices::serial::COM1;

impl Guest {
    fn on(console: &Console) -> Self {
        Self::leaving(console, || ())
    }

    fn leaving(console: &Console, on_leave: impl Fn() + Send + Sync + 'static) -> Self {
        let (bus, serial) = (
            Bus::new(),
            Arc::new(Serial::new(Arc::new(NoInterrupt), Arc::clone(console.output()))),
        );
        serial.attach(&bus).unwrap();
        console.attach(&serial, on_leave);
        Self { bus, serial }
    }

    fn print(&self, text: &[u8]) {
        for byte in text {
            match self.bus.write(Space::Port, COM1, 1, (*byte).into()) {
                Response::Done(_) => (),
                Response::Later(ticket) => drop(ticket.wait()),
            }
        }
    }

    /// Reads `count` bytes, waiting for each.
    fn read(&self, count: usize) -> Vec<u8> {
        let read = |offset| self.bus.read(Space::Port, COM1 + offset, 1).wait();
        let mut bytes = Vec::new();
        while bytes.len() < count {
            // Line status register, data ready.
            if read(5) & 1 == 0 {
                std::thread::yield_now();
            } else {
                bytes.push(u8::try_from(read(0)).unwrap());
            }
        }
        bytes
    }
}

fn expect(stream: &mut impl Read, text: &[u8]) {
    let mut bytes = vec![0; text.len()];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(String::from_utf8_lossy(&bytes), String::from_utf8_lossy(text));
}

#[test]
fn a_file_has_what_the_guest_printed_once_the_console_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let console = Console::file(&path).unwrap();
    Guest::on(&console).print(b"hello\n");
    console.detach();
    drop(console);
    assert_eq!(std::fs::read(path).unwrap(), b"hello\n");
}

#[test]
fn a_stream_carries_both_ways_and_its_end_does_not_stop_the_guest() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let console = Console::stream(theirs).unwrap();
    let guest = Guest::on(&console);
    let mut ours = ours;
    guest.print(b"login: ");
    expect(&mut ours, b"login: ");
    ours.write_all(b"root\n").unwrap();
    assert_eq!(guest.read(5), b"root\n");
    drop(ours);
    guest.print(&[b'x'; 100_000]);
    console.detach();
}

#[test]
fn input_longer_than_the_receiver_and_typed_before_the_guest_reads_is_not_lost() {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let console = Console::stream(theirs).unwrap();
    let pasted: Vec<u8> = (0..100_000_u32).map(|n| (n % 251) as u8).collect();
    let typing = std::thread::spawn({
        let pasted = pasted.clone();
        move || {
            ours.write_all(&pasted).unwrap();
            ours
        }
    });
    let guest = Guest::on(&console);
    assert!(guest.read(pasted.len()) == pasted);
    drop(typing.join().unwrap());
    console.detach();
}

#[test]
fn a_console_ends_while_nobody_reads_what_was_typed() {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let console = Console::stream(theirs).unwrap();
    let guest = Guest::on(&console);
    ours.set_nonblocking(true).unwrap();
    while ours.write(&[b'x'; 4096]).is_ok() {}
    assert_eq!(guest.read(1), b"x");
    console.detach();
    drop(console);
}

#[test]
fn clients_of_a_socket_come_and_go_and_get_what_they_missed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("console");
    let console = Console::socket(&path).unwrap();
    assert_eq!(console.path(), Some(&*path));
    let guest = Guest::on(&console);
    guest.print(b"booting\n");
    for missed in [b"booting\n", b"resting\n"] {
        let mut client = UnixStream::connect(&path).unwrap();
        expect(&mut client, missed);
        client.write_all(b"hello\n").unwrap();
        assert_eq!(guest.read(6), b"hello\n");
        guest.print(b"goodbye\n");
        expect(&mut client, b"goodbye\n");
        drop(client);
        guest.print(b"resting\n");
    }
    console.detach();
    drop(guest);
    drop(console);
    assert!(!path.exists(), "no socket is left behind");
}

#[test]
fn a_socket_somebody_listens_on_is_refused_and_a_dead_one_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("console");
    let other = UnixListener::bind(&path).unwrap();
    assert!(matches!(Console::socket(&path), Err(ConsoleError::SocketInUse { path: named }) if named == path));
    drop(other);
    assert!(path.exists(), "left behind by its owner");
    drop(Console::socket(&path).unwrap());

    std::fs::write(&path, "somebody's file").unwrap();
    assert!(matches!(Console::socket(&path), Err(ConsoleError::Socket { .. })));
    assert_eq!(std::fs::read(&path).unwrap(), b"somebody's file");
    let nowhere = Path::new("/nowhere/at/all");
    assert!(matches!(Console::socket(nowhere), Err(ConsoleError::Socket { path, .. }) if path == nowhere));
    assert!(matches!(Console::file(nowhere), Err(ConsoleError::File { path, .. }) if path == nowhere));
}

#[test]
fn a_pseudo_terminal_is_raw_and_carries_both_ways() {
    let console = Console::pty().unwrap();
    let path = console.path().unwrap().to_owned();
    assert!(std::fs::metadata(&path).unwrap().file_type().is_char_device());
    let mut terminal = File::options().read(true).write(true).open(&path).unwrap();
    assert!(!tcgetattr(&terminal).unwrap().local_modes.contains(LocalModes::ECHO));
    let guest = Guest::on(&console);
    guest.print(b"guest# ");
    expect(&mut terminal, b"guest# ");
    terminal.write_all(b"uname\r").unwrap();
    assert_eq!(guest.read(6), b"uname\r");
    console.detach();
}

#[test]
fn a_guest_goes_on_printing_to_a_pseudo_terminal_that_nobody_opens() {
    let console = Console::pty().unwrap();
    let guest = Guest::on(&console);
    guest.print(&vec![b'x'; 2 * reprise_devices::output::DEFAULT_CAPACITY]);
    console.detach();
}

#[test]
fn one_console_serves_one_machine_after_the_other() {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let console = Console::stream(theirs).unwrap();
    let first = Guest::on(&console);
    first.print(b"1");
    console.detach();
    drop(first);
    ours.write_all(b"between").unwrap();
    let second = Guest::on(&console);
    second.print(b"2");
    expect(&mut ours, b"12");
    assert_eq!(second.read(7), b"between");
    assert!(second.serial.state().input.is_empty());
    console.detach();
}

#[test]
fn whoever_leaves_leaves_the_machine_that_is_attached() {
    let (told, left): (Sender<&str>, Receiver<&str>) = channel();
    let console = Console::null();
    console.port.leave();
    let first = told.clone();
    let guest = Guest::leaving(&console, move || first.send("first").unwrap());
    console.port.leave();
    drop(guest);
    let _guest = Guest::leaving(&console, move || told.send("second").unwrap());
    console.port.leave();
    console.detach();
    console.port.leave();
    assert_eq!(left.iter().collect::<Vec<_>>(), ["first", "second"]);
}

#[test]
fn a_mode_that_needs_a_path_says_which() {
    for (mode, field) in [(ConsoleMode::File, "file"), (ConsoleMode::Socket, "socket")] {
        let error = Console::open(&ConsoleConfig::of(mode)).unwrap_err();
        assert!(
            matches!(error, ConsoleError::MissingPath { what, .. } if what == field),
            "{error:?}"
        );
    }
    assert!(Console::open(&ConsoleConfig::default()).unwrap().is_none(), "off");
}

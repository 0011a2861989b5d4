//! A connection in use: accesses go out as they are made, answers are matched by their ids as they come.
//!
//! # Invariants
//! - Whoever asks waits for nobody: what the socket does not take at once is kept and sent by the link's thread, and an answer
//!   comes through a [`Ticket`].
//! - Accesses reach the process in the order in which they were made, each once. A write is posted: it is done when the socket
//!   has it; a socket that is full holds back whoever writes, by a ticket.
//! - Whatever the process sends, it reaches guest memory alone, and costs no more than a message's bytes. One that breaks the
//!   protocol is cut off for good.
//! - When a connection ends, everything that is owed is answered with all ones, and so is every access from then on, until the
//!   process is there again.
//!
//! # Life
//! connected -socket closed-> gone -[`REDIAL`], again and again-> connected; -protocol broken-> cut off. Dropped, it ends its
//! thread.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::RecvFlags;

use super::error::VfioUserError;
use super::session;
use super::wire::{self, Body, Header, Inbox, MAX_DATA, RegionAccess, command, flag, message, words};
use crate::bus::{Completion, Response, Ticket};
use crate::sync::lock;
use crate::thread::{ThreadKind, begin};
use crate::virtio::Dma;

/// How long a process may stay away before it is looked for again.
const REDIAL: Duration = Duration::from_millis(500);
/// Answers that a process may owe. Only one that answers nothing while its guest resets processors comes near.
const MAX_OWED: usize = 4096;
/// Writes that may wait for room in the socket: as many processors as reset themselves while the process takes nothing.
const MAX_UNSENT: usize = 4096;
/// Bytes of answers that may wait for room in the socket before no more questions are read.
const MAX_BACKLOG: usize = 4 * MAX_DATA;
/// EINVAL: what a process is told that reaches for memory which is not there.
const INVALID: u32 = 22;
/// The id of commands that are not to be replied to.
const POSTED: u16 = 0;

/// What a link counts.
#[derive(Debug, Default)]
struct Counters {
    refused: AtomicU64,
    dma: AtomicU64,
    dma_refused: AtomicU64,
    reconnections: AtomicU64,
}

/// A process, as the devices' side sees it.
pub(super) struct Link {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    name: String,
    dma: Dma,
    state: Mutex<State>,
    /// Rung when there is something to send, or the thread shall look at its flags.
    bell: OwnedFd,
    ended: AtomicBool,
    paused: AtomicBool,
    /// Whether the function may access memory.
    master: AtomicBool,
    counters: Counters,
}

/// The connection, while there is one.
#[derive(Default)]
struct State {
    line: Option<Line>,
}

struct Line {
    stream: Arc<UnixStream>,
    last_id: u16,
    owed: HashMap<u16, Owed>,
    unsent: VecDeque<Unsent>,
    /// Bytes in `unsent`.
    backlog: usize,
}

/// An answer that is owed.
struct Owed {
    command: u16,
    /// The access, if it is one, whose reply repeats it.
    access: Option<RegionAccess>,
    completion: Completion,
}

/// A message that is not, or not all, in the socket.
struct Unsent {
    bytes: Vec<u8>,
    sent: usize,
    /// Who is told when it is.
    told: Option<Completion>,
}

/// How a link comes to a connection: the first, and those after the process was gone.
pub(super) type Redial = Box<dyn FnMut(&OwnedFd) -> Result<(UnixStream, Inbox), VfioUserError> + Send>;

impl Link {
    /// A link that has nobody at its other end yet.
    pub fn new(name: &str, dma: Dma) -> io::Result<Self> {
        Ok(Self {
            shared: Arc::new(Shared {
                name: name.to_owned(),
                dma,
                state: Mutex::default(),
                bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
                ended: AtomicBool::new(false),
                paused: AtomicBool::new(false),
                master: AtomicBool::new(false),
                counters: Counters::default(),
            }),
            thread: None,
        })
    }

    /// Goes on with `stream`, of which `inbox` has arrived, and has `redial` make a new connection when that is gone.
    pub fn start(&mut self, stream: UnixStream, inbox: Inbox, redial: Redial) -> io::Result<()> {
        let stream = self.shared.connected(stream);
        let theirs = Arc::clone(&self.shared);
        let thread = thread::Builder::new().name(self.shared.name.clone()).spawn(move || {
            begin(ThreadKind::Queue);
            theirs.run(stream, inbox, redial);
        })?;
        self.thread = Some(thread);
        Ok(())
    }

    /// What becomes readable when the link ends, or has something else to do.
    pub fn bell(&self) -> &OwnedFd {
        &self.shared.bell
    }

    /// Asks for `size` bytes, 1 to 8, at `offset` of a region.
    pub fn read(&self, region: u32, offset: u64, size: u8) -> Response {
        let access = RegionAccess {
            offset,
            region,
            count: size.into(),
        };
        self.shared.ask(command::REGION_READ, &access.bytes(), Some(access))
    }

    /// Posts a write of the low `size` bytes of `value`.
    pub fn write(&self, region: u32, offset: u64, size: u8, value: u64) -> Response {
        let access = RegionAccess {
            offset,
            region,
            count: size.into(),
        };
        let data = &value.to_le_bytes()[..usize::from(size.min(8))];
        let bytes = message(
            POSTED,
            command::REGION_WRITE,
            flag::NO_REPLY,
            0,
            &[&access.bytes(), data],
        );
        self.shared.post(bytes)
    }

    /// Says that `vector` of MSI-X is masked or is not from now on; answered when the process knows.
    pub fn set_masked(&self, vector: u16, masked: bool) -> Response {
        let action = match masked {
            true => wire::set_irqs::ACTION_MASK,
            false => wire::set_irqs::ACTION_UNMASK,
        };
        let flags = wire::set_irqs::DATA_NONE | action;
        let ask = words([20, flags, wire::MSIX_IRQ, vector.into(), 1]);
        self.shared.ask(command::DEVICE_SET_IRQS, &ask, None)
    }

    /// Says whether the function may access memory.
    pub fn set_master(&self, master: bool) {
        self.shared.master.store(master, Relaxed);
    }

    /// Stops (true) or continues (false) serving the process's accesses to guest memory.
    pub fn set_paused(&self, paused: bool) {
        self.shared.paused.store(paused, Relaxed);
        self.shared.ring();
    }

    /// Whether the process is there.
    pub fn is_connected(&self) -> bool {
        lock(&self.shared.state).line.is_some()
    }

    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let counters = &self.shared.counters;
        let load = |counter: &AtomicU64| counter.load(Relaxed);
        vec![
            ("refused", load(&counters.refused)),
            ("dma", load(&counters.dma)),
            ("dma_refused", load(&counters.dma_refused)),
            ("reconnections", load(&counters.reconnections)),
            ("connected", self.is_connected().into()),
        ]
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.ended.store(true, Relaxed);
        self.shared.ring();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(device = self.shared.name, "the thread of a device panicked");
        }
    }
}

/// Why a connection is not read any further.
enum Stop {
    Ended,
    Broken(VfioUserError),
}

impl From<VfioUserError> for Stop {
    fn from(error: VfioUserError) -> Self {
        Self::Broken(error)
    }
}

impl Shared {
    /// Rings the bell. It can only fail for having been rung 2^64 - 2 times since the thread last looked.
    fn ring(&self) {
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }

    fn connected(&self, stream: UnixStream) -> Arc<UnixStream> {
        let stream = Arc::new(stream);
        lock(&self.state).line = Some(Line {
            stream: Arc::clone(&stream),
            last_id: 0,
            owed: HashMap::new(),
            unsent: VecDeque::new(),
            backlog: 0,
        });
        stream
    }

    /// Sends a command whose reply is the answer.
    fn ask(&self, command: u16, body: &[u8], access: Option<RegionAccess>) -> Response {
        let (ticket, completion) = Ticket::pair();
        let mut state = lock(&self.state);
        // Without a line the completion is dropped, which answers.
        if let Some(line) = state.line.as_mut() {
            let Some(id) = line.free_id() else {
                return Response::Later(ticket);
            };
            line.owed.insert(
                id,
                Owed {
                    command,
                    access,
                    completion,
                },
            );
            line.send(self, message(id, command, 0, 0, &[body]));
        }
        Response::Later(ticket)
    }

    /// Sends a command that has no reply.
    fn post(&self, bytes: Vec<u8>) -> Response {
        let mut state = lock(&self.state);
        let Some(line) = state.line.as_mut() else {
            let (ticket, _lost) = Ticket::pair();
            return Response::Later(ticket);
        };
        let had_room = line.unsent.is_empty();
        if line.unsent.len() < MAX_UNSENT {
            line.send(self, bytes);
        }
        let (ticket, completion) = Ticket::pair();
        match line.unsent.back_mut() {
            None => return Response::Done(0),
            Some(last) if had_room || last.told.is_none() => last.told = Some(completion),
            // Too many wait: this one is lost.
            Some(_) => {}
        }
        Response::Later(ticket)
    }

    fn run(&self, mut stream: Arc<UnixStream>, mut inbox: Inbox, mut redial: Redial) {
        loop {
            let Err(stop) = self.serve(&stream, &mut inbox) else {
                return;
            };
            // Whoever waits is answered as the line goes, and may ask again: not with the lock held.
            let line = lock(&self.state).line.take();
            drop(line);
            let Stop::Broken(error) = stop else { return };
            let comes_back = error.may_come_back();
            tracing::warn!(
                device = self.name,
                %error,
                "a device in another process is gone; its registers read as ones{}",
                if comes_back { " until it is there again" } else { "" }
            );
            loop {
                if !self.rest(comes_back) {
                    return;
                }
                match redial(&self.bell) {
                    Ok((new, arrived)) => {
                        stream = self.connected(new);
                        inbox = arrived;
                        self.counters.reconnections.fetch_add(1, Relaxed);
                        tracing::info!(device = self.name, "a device in another process is there again");
                        break;
                    }
                    Err(error) if error.may_come_back() || matches!(error, VfioUserError::Ended) => {}
                    Err(error) => {
                        tracing::warn!(device = self.name, %error, "a device in another process cannot come back");
                        // Until the link ends.
                        while self.rest(false) {}
                        return;
                    }
                }
            }
        }
    }

    /// Waits until it is time to look for the process again, or for ever; false if the link ends.
    fn rest(&self, for_a_while: bool) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(self.bell.as_fd(), PollFlags::IN)];
        let while_ = Timespec::try_from(REDIAL).ok().filter(|_| for_a_while);
        loop {
            if self.ended.load(Relaxed) {
                return false;
            }
            match poll(&mut fds, while_.as_ref()) {
                Ok(0) => return true,
                Ok(_) => self.hush(),
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }

    /// Stops the bell.
    fn hush(&self) {
        let _was_silent = rustix::io::read(&self.bell, &mut [0; 8]);
    }

    /// Reads and writes until the connection or the link ends.
    fn serve(&self, stream: &UnixStream, inbox: &mut Inbox) -> Result<(), Stop> {
        let mut bytes = vec![0; 64 << 10];
        // A message that cannot be served before the machine goes on, and whatever is behind it.
        let mut held = false;
        loop {
            if self.ended.load(Relaxed) {
                return Err(Stop::Ended);
            }
            let paused = self.paused.load(Relaxed);
            if !held || !paused {
                held = self.take(inbox, paused)?;
            }
            let mut told = Vec::new();
            let (sends, reads) = {
                let mut state = lock(&self.state);
                let line = state.line.as_mut().ok_or(Stop::Ended)?;
                line.flush(&mut told)?;
                (!line.unsent.is_empty(), line.backlog < MAX_BACKLOG && !held)
            };
            // Whoever is told may ask again: not with the lock held.
            told.into_iter().for_each(|told| told.complete(0));
            let mut wanted = PollFlags::empty();
            wanted.set(PollFlags::IN, reads);
            wanted.set(PollFlags::OUT, sends);
            let mut fds = [
                PollFd::from_borrowed_fd(stream.as_fd(), wanted),
                PollFd::from_borrowed_fd(self.bell.as_fd(), PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(error) => return Err(Stop::Broken(VfioUserError::Socket { source: error.into() })),
            }
            if !fds[1].revents().is_empty() {
                self.hush();
            }
            let seen = fds[0].revents();
            if seen.intersects(PollFlags::IN) {
                match rustix::net::recv(stream, &mut bytes[..], RecvFlags::DONTWAIT) {
                    Ok((0, _)) => return Err(Stop::Broken(VfioUserError::Gone)),
                    Ok((length, _)) => inbox.push(&bytes[..length]),
                    Err(Errno::AGAIN | Errno::INTR) => {}
                    Err(Errno::CONNRESET) => return Err(Stop::Broken(VfioUserError::Gone)),
                    Err(error) => return Err(Stop::Broken(VfioUserError::Socket { source: error.into() })),
                }
            } else if seen.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL) {
                return Err(Stop::Broken(VfioUserError::Gone));
            }
        }
    }

    /// Takes the messages that have arrived; true if one has to wait until the machine goes on.
    fn take(&self, inbox: &mut Inbox, paused: bool) -> Result<bool, VfioUserError> {
        while let Some((header, body)) = inbox.next()? {
            if header.is_reply() {
                self.answered(header, body)?;
            } else if paused {
                inbox.put_back(header);
                return Ok(true);
            } else {
                self.asked(header, body)?;
            }
        }
        Ok(false)
    }

    /// The process has answered.
    fn answered(&self, header: Header, body: &[u8]) -> Result<(), VfioUserError> {
        if header.id == POSTED && header.is_error() {
            // A write that failed, of which nobody wanted to know.
            self.counters.refused.fetch_add(1, Relaxed);
            return Ok(());
        }
        let owed = {
            let mut state = lock(&self.state);
            state.line.as_mut().and_then(|line| line.owed.remove(&header.id))
        };
        let Some(owed) = owed.filter(|owed| owed.command == header.command) else {
            let (id, command) = (header.id, header.command);
            let what = format!("it answers command {command} with id {id}, which nobody asked");
            return Err(VfioUserError::lie(what));
        };
        if header.is_error() {
            self.counters.refused.fetch_add(1, Relaxed);
            owed.completion.complete(u64::MAX);
            return Ok(());
        }
        let value = match owed.access {
            None => 0,
            Some(access) => {
                let data = body.strip_prefix(&access.bytes());
                let Some(data) = data.filter(|data| data.len() == access.count as usize) else {
                    return Err(VfioUserError::lie("it answers another access than was made"));
                };
                let mut value = [0; 8];
                value[..data.len()].copy_from_slice(data);
                u64::from_le_bytes(value)
            }
        };
        owed.completion.complete(value);
        Ok(())
    }

    /// The process asks for something.
    fn asked(&self, header: Header, body: &[u8]) -> Result<(), VfioUserError> {
        let reply = |parts: &[&[u8]]| message(header.id, header.command, flag::REPLY, 0, parts);
        let served = match header.command {
            command::DMA_READ | command::DMA_WRITE => self.dma(header, body)?.map(|parts| reply(&[&parts])),
            _ => None,
        };
        let bytes = served.unwrap_or_else(|| {
            self.counters.dma_refused.fetch_add(1, Relaxed);
            message(header.id, header.command, flag::REPLY | flag::ERROR, INVALID, &[])
        });
        if header.flags & flag::NO_REPLY == 0 {
            let mut state = lock(&self.state);
            if let Some(line) = state.line.as_mut() {
                line.send(self, bytes);
            }
        }
        Ok(())
    }

    /// Carries out an access to guest memory; what its reply says, or `None` if it is refused.
    fn dma(&self, header: Header, body: &[u8]) -> Result<Option<Vec<u8>>, VfioUserError> {
        let mut rest = Body(body);
        let (Some(address), Some(count)) = (rest.u64(), rest.u64()) else {
            return Err(VfioUserError::lie("an access to memory is too short"));
        };
        let data = rest.rest();
        let mut reply = Vec::from(&body[..16]);
        let length = usize::try_from(count).ok().filter(|length| *length <= MAX_DATA);
        let Some(length) = length.filter(|_| self.master.load(Relaxed)) else {
            return Ok(None);
        };
        let done = if header.command == command::DMA_READ {
            reply.resize(16 + length, 0);
            self.dma.read(address, &mut reply[16..])
        } else if data.len() == length {
            self.dma.write(address, data)
        } else {
            return Err(VfioUserError::lie("a write to memory has another length than it says"));
        };
        self.counters.dma.fetch_add(1, Relaxed);
        Ok(done.is_ok().then_some(reply))
    }
}

impl Line {
    /// An id that no command has which is not answered; `None` if too many are not.
    fn free_id(&mut self) -> Option<u16> {
        if self.owed.len() >= MAX_OWED {
            return None;
        }
        loop {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            if !self.owed.contains_key(&self.last_id) {
                return Some(self.last_id);
            }
        }
    }

    /// Sends `bytes` behind all others. What fails is found by the link's thread too.
    fn send(&mut self, of: &Shared, bytes: Vec<u8>) {
        let sent = match self.unsent.is_empty() {
            true => session::send(&self.stream, &bytes, &[]).unwrap_or(0),
            false => 0,
        };
        if sent < bytes.len() {
            self.backlog += bytes.len();
            self.unsent.push_back(Unsent {
                bytes,
                sent,
                told: None,
            });
            of.ring();
        }
    }

    /// Sends what could not be sent; those to be told go to `told`.
    fn flush(&mut self, told: &mut Vec<Completion>) -> Result<(), VfioUserError> {
        while let Some(first) = self.unsent.front_mut() {
            match session::send(&self.stream, &first.bytes[first.sent..], &[]) {
                Ok(length) => first.sent += length,
                Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(VfioUserError::Gone),
                Err(error) => return Err(VfioUserError::Socket { source: error.into() }),
            }
            if first.sent == first.bytes.len()
                && let Some(done) = self.unsent.pop_front()
            {
                self.backlog -= done.bytes.len();
                told.extend(done.told);
            }
        }
        Ok(())
    }
}

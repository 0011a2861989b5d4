//! A connection in use: accesses go out as they are made, answers are matched by their ids as they come.
//!
//! # Invariants
//! - What arrives is read by one at a time: the link's thread, or for a moment whoever waits for an answer ([`Carrier`]). As long
//!   as each finds its own answer, the connection is theirs ([`Shared::lent`]) and the thread is not woken; it looks again after
//!   [`LEASE`], and at once if anything is left for it. A process that speaks of itself is left to the thread.
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

mod habit;
mod line;
mod reader;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::mem;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

use super::error::VfioUserError;
use super::wire::{self, Inbox, MAX_DATA, RegionAccess, command, flag, message, words};
use crate::bus::{Carrier, Response, Ticket};
use crate::sync::lock;
use crate::thread::{ThreadKind, begin};
use crate::virtio::Dma;
use habit::Habit;
use line::{Line, Owed};
use reader::{MOMENT, Reader};

/// How long a process may stay away before it is looked for again.
const REDIAL: Duration = Duration::from_millis(500);
/// For how long the thread leaves a connection to those who find their own answers, unless they go on with it.
const LEASE: Duration = Duration::from_millis(2);
/// Answers that a process may owe. Only one that answers nothing while its guest resets processors comes near.
const MAX_OWED: usize = 4096;
/// Writes that may wait for room in the socket: as many processors as reset themselves while the process takes nothing.
const MAX_UNSENT: usize = 4096;
/// Bytes of answers that may wait for room in the socket before no more questions are read.
const MAX_BACKLOG: usize = 4 * MAX_DATA;
/// The id of commands that are not to be replied to.
const POSTED: u16 = 0;

/// What a link counts.
#[derive(Debug, Default)]
struct Counters {
    refused: AtomicU64,
    dma: AtomicU64,
    dma_refused: AtomicU64,
    reconnections: AtomicU64,
    carried: AtomicU64,
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
    /// Taken before `state` if both are.
    reader: Mutex<Reader>,
    /// Whether whoever waits has found its own answer since the thread looked, so that the thread needs not be woken.
    lent: AtomicBool,
    /// Whether somebody had to leave its answer to whoever was reading.
    missed: AtomicBool,
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
                reader: Mutex::new(Reader {
                    inbox: Inbox::default(),
                    held: false,
                    broken: None,
                    habit: Habit::default(),
                    talks: 0,
                    bytes: vec![0; 64 << 10],
                }),
                lent: AtomicBool::new(false),
                missed: AtomicBool::new(false),
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
        let stream = self.shared.connected(stream, inbox)?;
        let theirs = Arc::clone(&self.shared);
        let thread = thread::Builder::new().name(self.shared.name.clone()).spawn(move || {
            begin(ThreadKind::UserDevice);
            theirs.run(stream, redial);
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
            ("carried", load(&counters.carried)),
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

    /// Goes on with `stream`, of which `inbox` has arrived.
    fn connected(&self, stream: UnixStream, inbox: Inbox) -> io::Result<Arc<UnixStream>> {
        // Whoever is not to wait says so.
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(MOMENT))?;
        let stream = Arc::new(stream);
        let mut reader = lock(&self.reader);
        (reader.inbox, reader.held, reader.broken) = (inbox, false, None);
        lock(&self.state).line = Some(Line {
            stream: Arc::clone(&stream),
            last_id: 0,
            owed: HashMap::new(),
            unsent: VecDeque::new(),
            backlog: 0,
        });
        Ok(stream)
    }

    /// What arrives, unless somebody else reads it.
    fn try_reader(&self) -> Option<MutexGuard<'_, Reader>> {
        match self.reader.try_lock() {
            Ok(reader) => Some(reader),
            // Valid at each step, so a panic elsewhere is not ours to spread.
            Err(TryLockError::Poisoned(reader)) => Some(reader.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Sends a command whose reply is the answer.
    fn ask(self: &Arc<Self>, command: u16, body: &[u8], access: Option<RegionAccess>) -> Response {
        let (ticket, completion) = Ticket::pair();
        let ticket = ticket.carried_by(Arc::clone(self) as Arc<dyn Carrier>);
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

    fn run(&self, mut stream: Arc<UnixStream>, mut redial: Redial) {
        loop {
            let Err(stop) = self.serve(&stream) else {
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
                let again = redial(&self.bell).and_then(|(new, arrived)| {
                    let connected = self.connected(new, arrived);
                    connected.map_err(|source| VfioUserError::Socket { source })
                });
                match again {
                    Ok(new) => {
                        stream = new;
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
    fn serve(&self, stream: &UnixStream) -> Result<(), Stop> {
        // Whether somebody was reading when the thread wanted to.
        let mut busy = false;
        let lease = Timespec::try_from(LEASE).ok();
        loop {
            if self.ended.load(Relaxed) {
                return Err(Stop::Ended);
            }
            // Whoever reads in our place rings when there is something left to do.
            let (held, speaks) = match self.try_reader() {
                Some(mut reader) => {
                    self.go_on(&mut reader)?;
                    (reader.held, reader.talks > 0)
                }
                None => (false, false),
            };
            let mut told = Vec::new();
            let (sends, reads) = {
                let mut state = lock(&self.state);
                let line = state.line.as_mut().ok_or(Stop::Ended)?;
                line.flush(&mut told)?;
                (!line.unsent.is_empty(), line.has_room() && !held)
            };
            let missed = self.missed.swap(false, SeqCst);
            let lent = self.lent.swap(false, SeqCst) && !missed && !speaks || mem::take(&mut busy);
            // Whoever is told may ask again: not with the lock held.
            told.into_iter().for_each(|told| told.complete(0));
            let wanted = |wanted, flag| if wanted { flag } else { PollFlags::empty() };
            let mut fds = [
                PollFd::from_borrowed_fd(
                    stream.as_fd(),
                    wanted(sends, PollFlags::OUT) | wanted(reads && !lent, PollFlags::IN),
                ),
                PollFd::from_borrowed_fd(self.bell.as_fd(), PollFlags::IN),
            ];
            match poll(&mut fds, lease.as_ref().filter(|_| reads && lent)) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(error) => return Err(Stop::Broken(VfioUserError::Socket { source: error.into() })),
            }
            if !fds[1].revents().is_empty() {
                self.hush();
            }
            let seen = fds[0].revents();
            let gone = seen.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL);
            // What a process has said before it went counts: who reads in our place is waited for then.
            let reader = match (reads, gone) {
                (true, true) => Some(lock(&self.reader)),
                (true, false) if seen.contains(PollFlags::IN) => {
                    let reader = self.try_reader();
                    busy = reader.is_none();
                    reader
                }
                (false, true) => return Err(Stop::Broken(VfioUserError::Gone)),
                _ => None,
            };
            if let Some(mut reader) = reader
                && !self.receive(stream, &mut reader, false)?
                && gone
            {
                return Err(Stop::Broken(VfioUserError::Gone));
            }
        }
    }
}

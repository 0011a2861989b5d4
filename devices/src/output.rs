//! Where a console's bytes go: a bounded queue, and a thread that carries it to the world.
//!
//! # Purpose
//! A guest prints byte after byte; a console is a terminal, a file or a socket, which is slow at times and goes away at
//! others. [`Output`] stands between them with one promise to each side:
//! - A consumer that is merely slow loses nothing. When the queue is full the byte is still taken, but its write is
//!   answered late ([`Response::Later`]): the vCPU parks, so that the guest prints as fast as the consumer reads, and the
//!   VMM stays awake.
//! - A consumer that is dead does not hold the guest. One that refuses (an error) loses what it refused. One that takes
//!   nothing for as long as our patience, while the queue is full, is *stalled*: from then on what does not fit is lost,
//!   at once, until it takes something again. Both are counted and logged.
//!
//! # Invariants
//! - Bytes leave in the order they came.
//! - At most twice the capacity is held: one queue filling, one batch on its way; a few bytes more while vCPUs are parked.
//! - No vCPU thread ever calls the sink.
//!
//! # Life
//! The writer sleeps while there is nothing. The first byte wakes it, and it lingers for two milliseconds so that a line
//! goes out as one write; a prompt without a line feed needs no more to be seen. Dropping the last handle writes what is
//! left, for as long as patience lasts (a stalled consumer has used it up), and ends the thread.

use std::io::{ErrorKind, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use std::{fmt, mem};

use serde::{Deserialize, Serialize};

use crate::bus::{Completion, Response, Ticket};
use crate::sync::lock;
use crate::thread::{ThreadKind, begin};

/// Bytes held before the guest is slowed down, unless told otherwise.
pub const DEFAULT_CAPACITY: usize = 256 << 10;
/// How long a consumer may take nothing at all, unless told otherwise. A guest kernel that prints with its console lock
/// held is patient for about twenty seconds before its watchdog complains.
pub const DEFAULT_PATIENCE: Duration = Duration::from_secs(5);

/// How long the writer waits for more after the first byte.
const LINGER: Duration = Duration::from_millis(2);
/// A batch of this size goes out without lingering.
const BATCH: usize = 4 << 10;
/// How long to wait before a sink that would block is tried again.
const RETRY: Duration = Duration::from_millis(10);
/// Late answers outstanding at once. There is one for each parked vCPU, so this only bounds a caller that does not park.
const MAX_PARKED: usize = 4 << 10;

/// What an [`Output`] remembers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct OutputState {
    /// The bytes that the guest has printed and the consumer has not taken, oldest first. Those that the consumer is just
    /// about to take are among them: it may see them twice, but they are never lost.
    pub queued: Vec<u8>,
}

/// A console's output. Shared by the device that feeds it and the machine that drains it.
pub struct Output {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

struct Shared {
    capacity: usize,
    patience: Duration,
    state: Mutex<State>,
    /// Tells the writer: there is something to do.
    work: Condvar,
    /// Tells those who drain or watch: the writer has got further.
    progress: Condvar,
}

#[derive(Default)]
struct State {
    queue: Vec<u8>,
    /// The batch that the writer is in the sink with, and how many bytes of it the sink has dealt with.
    sending: Arc<Vec<u8>>,
    sent: usize,
    /// Writes whose bytes are in the queue, answered as soon as it has room.
    parked: Vec<Completion>,
    writer: Writer,
    /// Somebody waits for the queue to be empty.
    drains: usize,
    watched: bool,
    stalled: bool,
    closed: bool,
    /// Closed, and patience is over.
    abandoned: bool,
    written: u64,
    lost: u64,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Writer {
    /// Waits for the first byte and must be woken.
    Idle,
    /// Waits for more bytes, and looks by itself soon.
    Lingering,
    /// Is in the sink, and looks when it comes back.
    Writing,
    /// Has ended, or never was.
    #[default]
    Gone,
}

impl Output {
    /// An output to `sink`, which is only ever called from the output's own thread.
    ///
    /// # Errors
    /// The host's, if it has no thread to give.
    pub fn new(sink: Box<dyn Write + Send>) -> std::io::Result<Self> {
        Self::with_limits(sink, DEFAULT_CAPACITY, DEFAULT_PATIENCE)
    }

    /// As [`new`](Self::new), slowing the guest down at `capacity` bytes (at least 1) and losing what does not fit after
    /// the consumer took nothing for `patience`.
    ///
    /// # Errors
    /// The host's, if it has no thread to give.
    pub fn with_limits(sink: Box<dyn Write + Send>, capacity: usize, patience: Duration) -> std::io::Result<Self> {
        let state = State {
            writer: Writer::Idle,
            ..State::default()
        };
        let shared = Arc::new(Shared::new(state, capacity.max(1), patience));
        let writer = thread::Builder::new().name("console-out".into()).spawn({
            let shared = Arc::clone(&shared);
            move || {
                begin(ThreadKind::Console);
                shared.carry(sink);
            }
        })?;
        Ok(Self {
            shared,
            writer: Some(writer),
        })
    }

    /// An output that nobody reads: every byte is lost, and no thread stands behind it.
    #[must_use]
    pub fn discard() -> Self {
        Self {
            shared: Arc::new(Shared::new(State::default(), 0, Duration::ZERO)),
            writer: None,
        }
    }

    /// Takes one byte. [`Response::Later`] if the consumer must catch up before the next one.
    pub fn push(&self, byte: u8) -> Response {
        let mut state = lock(&self.shared.state);
        if state.writer == Writer::Gone {
            state.lost += 1;
            return Response::Done(0);
        }
        let full = state.queue.len() >= self.shared.capacity;
        if full && (state.stalled || state.parked.len() >= MAX_PARKED || !self.watch(&mut state)) {
            state.lost += 1;
            return Response::Done(0);
        }
        state.queue.push(byte);
        // Waking costs a system call, so it is done for the first byte of a batch and when there is no need to linger.
        match state.writer {
            Writer::Idle => self.shared.work.notify_all(),
            Writer::Lingering if state.queue.len() == BATCH || full => self.shared.work.notify_all(),
            _ => (),
        }
        if !full {
            return Response::Done(0);
        }
        let (ticket, completion) = Ticket::pair();
        state.parked.push(completion);
        Response::Later(ticket)
    }

    /// Takes bytes from the front of `bytes` and says how many. If those are not all, the ticket is answered when the consumer
    /// has caught up, and there may be room for the others.
    pub fn push_all(&self, bytes: &[u8]) -> (usize, Option<Ticket>) {
        let mut state = lock(&self.shared.state);
        if state.writer == Writer::Gone {
            state.lost += bytes.len() as u64;
            return (bytes.len(), None);
        }
        let room = self.shared.capacity.saturating_sub(state.queue.len()).min(bytes.len());
        let (taken, rest) = bytes.split_at(room);
        state.queue.extend(taken);
        match state.writer {
            Writer::Idle => self.shared.work.notify_all(),
            Writer::Lingering if state.queue.len() >= BATCH => self.shared.work.notify_all(),
            _ => (),
        }
        if rest.is_empty() {
            return (room, None);
        }
        if state.stalled || state.parked.len() >= MAX_PARKED || !self.watch(&mut state) {
            state.lost += rest.len() as u64;
            return (bytes.len(), None);
        }
        let (ticket, completion) = Ticket::pair();
        state.parked.push(completion);
        // A full queue is not lingered over.
        self.shared.work.notify_all();
        (room, Some(ticket))
    }

    /// Waits until every byte taken so far has reached the sink or was lost; false if `timeout` passed first.
    pub fn drain(&self, timeout: Duration) -> bool {
        let mut state = lock(&self.shared.state);
        state.drains += 1;
        self.shared.work.notify_all();
        let busy = |state: &mut State| match state.writer {
            Writer::Gone => false,
            Writer::Writing => true,
            Writer::Idle | Writer::Lingering => !state.queue.is_empty(),
        };
        let waited = self.shared.progress.wait_timeout_while(state, timeout, busy);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.drains -= 1;
        !busy(&mut state)
    }

    /// The bytes that have not reached the sink. [`drain`](Self::drain) first, and there are few.
    #[must_use]
    pub fn state(&self) -> OutputState {
        let state = lock(&self.shared.state);
        let sending = state.sending.get(state.sent..).unwrap_or_default();
        OutputState {
            queued: [sending, &state.queue].concat(),
        }
    }

    /// Prints what had not reached another output's sink, after what is queued here. It is taken whole, though it be more
    /// than the capacity; the guest is slowed down until that is gone.
    pub fn restore(&self, state: &OutputState) {
        let mut own = lock(&self.shared.state);
        if own.writer == Writer::Gone {
            own.lost += state.queued.len() as u64;
            return;
        }
        own.queue.extend(&state.queued);
        self.shared.work.notify_all();
    }

    /// Bytes that reached the sink.
    #[must_use]
    pub fn written(&self) -> u64 {
        lock(&self.shared.state).written
    }

    /// Bytes that nobody took.
    #[must_use]
    pub fn lost(&self) -> u64 {
        lock(&self.shared.state).lost
    }

    /// Makes sure that somebody notices if the consumer stalls. False if that cannot be had.
    ///
    /// A full queue is rare, so the watching thread lives only while a write is parked.
    fn watch(&self, state: &mut State) -> bool {
        if !state.watched {
            let shared = Arc::clone(&self.shared);
            let watcher = thread::Builder::new().name("console-watch".into()).spawn(move || {
                begin(ThreadKind::Console);
                shared.watch();
            });
            state.watched = watcher.is_ok();
        }
        state.watched
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        let Some(writer) = self.writer.take() else { return };
        let mut state = lock(&self.shared.state);
        state.closed = true;
        self.shared.work.notify_all();
        self.shared.progress.notify_all();
        // Who is stalled has had that patience already.
        let patience = if state.stalled {
            Duration::ZERO
        } else {
            self.shared.patience
        };
        let alive = |state: &mut State| state.writer != Writer::Gone;
        let waited = self.shared.progress.wait_timeout_while(state, patience, alive);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.abandoned = true;
        let gone = state.writer == Writer::Gone;
        drop(state);
        if gone {
            // Its last act was to say so. A panic in the sink has been reported by the panic hook.
            let _ = writer.join();
        } else {
            tracing::warn!("a console takes nothing; its output is abandoned");
        }
    }
}

impl Shared {
    fn new(state: State, capacity: usize, patience: Duration) -> Self {
        Self {
            capacity,
            patience,
            state: Mutex::new(state),
            work: Condvar::new(),
            progress: Condvar::new(),
        }
    }

    /// The writer's life.
    fn carry(self: Arc<Self>, mut sink: Box<dyn Write + Send>) {
        // A sink that panics must not leave a guest waiting.
        let _ended = Ended(&self);
        let mut refused = false;
        while let Some(batch) = self.next_batch() {
            let taken = self.write(&mut sink, &batch);
            let result = taken.and_then(|()| sink.flush());
            if let Err(error) = &result
                && !refused
            {
                tracing::warn!(%error, "a console refuses its output");
            }
            refused = result.is_err();
        }
    }

    /// Waits for bytes and takes them out of the queue; `None` once closed and empty.
    fn next_batch(&self) -> Option<Arc<Vec<u8>>> {
        let mut state = lock(&self.state);
        state.writer = Writer::Idle;
        state.sending = Arc::default();
        state.sent = 0;
        if state.queue.is_empty() {
            self.progress.notify_all();
        }
        let nothing = |state: &mut State| state.queue.is_empty() && !state.closed;
        state = self
            .work
            .wait_while(state, nothing)
            .unwrap_or_else(PoisonError::into_inner);
        if state.queue.is_empty() {
            return None;
        }
        state.writer = Writer::Lingering;
        let linger = |state: &mut State| {
            state.queue.len() < BATCH && state.parked.is_empty() && state.drains == 0 && !state.closed
        };
        let lingered = self.work.wait_timeout_while(state, LINGER, linger);
        (state, _) = lingered.unwrap_or_else(PoisonError::into_inner);
        state.writer = Writer::Writing;
        let batch = Arc::new(mem::take(&mut state.queue));
        state.sending = Arc::clone(&batch);
        let parked = mem::take(&mut state.parked);
        drop(state);
        answer(parked);
        Some(batch)
    }

    /// Writes all of `batch`; what the sink refuses is lost.
    fn write(&self, sink: &mut dyn Write, batch: &[u8]) -> std::io::Result<()> {
        let mut rest = batch;
        while !rest.is_empty() {
            let result = match sink.write(rest) {
                Ok(0) => Err(ErrorKind::WriteZero.into()),
                result => result,
            };
            let mut state = lock(&self.state);
            match result {
                Ok(taken) => {
                    rest = rest.get(taken..).unwrap_or_default();
                    state.written += taken as u64;
                    state.sent += taken;
                    state.stalled = false;
                    self.progress.notify_all();
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => (),
                Err(error) if error.kind() == ErrorKind::WouldBlock && !state.abandoned => {
                    drop(self.work.wait_timeout(state, RETRY));
                }
                Err(error) => {
                    state.lost += rest.len() as u64;
                    state.sent = batch.len();
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// The watcher's life: as long as writes are parked.
    fn watch(&self) {
        let mut state = lock(&self.state);
        while !state.parked.is_empty() {
            let seen = state.written;
            let still = |state: &mut State| state.written == seen && !state.parked.is_empty() && !state.closed;
            let waited = self.progress.wait_timeout_while(state, self.patience, still);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            if state.written == seen && !state.parked.is_empty() {
                state.stalled = true;
                tracing::warn!(patience = ?self.patience, "a console takes nothing; what does not fit is lost");
                state = self.release(state);
            }
        }
        state.watched = false;
    }

    fn release<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let parked = mem::take(&mut state.parked);
        drop(state);
        answer(parked);
        lock(&self.state)
    }
}

/// Answers parked writes. Called without the lock, since an answer may run a waker.
fn answer(parked: Vec<Completion>) {
    for completion in parked {
        completion.complete(0);
    }
}

/// Says, when the writer ends for whatever reason, that it has.
struct Ended<'a>(&'a Shared);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        state.writer = Writer::Gone;
        state.lost += mem::take(&mut state.queue).len() as u64;
        state.sending = Arc::default();
        self.0.progress.notify_all();
        drop(self.0.release(state));
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Output")
            .field("written", &self.written())
            .field("lost", &self.lost())
            .finish()
    }
}

#[cfg(test)]
mod tests;

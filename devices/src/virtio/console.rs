//! virtio-console: one port, with a size that may change and an emergency write (virtio 1.2, "Console Device").
//!
//! # Invariants
//! - What the guest prints leaves in order and once, though a buffer be taken in several parts and saved in between.
//! - No vCPU waits for whoever reads: a buffer that does not fit stays with the device until there is room.
//! - Input that the guest has no buffers for waits here, [`CAPACITY`] bytes at most, and the rest with whoever feeds it.
//!
//! # Life
//! [`enqueue`](Console::enqueue) takes what fits; when it has refused something, the function given to
//! [`on_room`](Console::on_room) is called as soon as there is room. A reset of the device loses no input.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{fmt, io};

use serde::{Deserialize, Serialize};

use super::bell::Bell;
use super::chain::{Chain, ChainError};
use super::device::{ConfigChange, DeviceKind, DeviceStateError, Handled, QueueHandler, VirtioDevice};
use crate::output::{Output, OutputState};
use crate::sync::lock;

/// Bytes of input that wait at most.
pub const CAPACITY: usize = 4096;

/// VIRTIO_CONSOLE_F_SIZE and VIRTIO_CONSOLE_F_EMERG_WRITE.
const SIZE: u64 = 1 << 0;
const EMERG_WRITE: u64 = 1 << 2;

/// Descriptors of each of its queues.
const QUEUE_SIZE: u16 = 64;
/// The queue of buffers to be filled with input; the other is that of what is printed.
const RECEIVE: u16 = 0;
/// Bytes carried at once.
const PART: usize = 4096;
/// How long whoever reads may take for what was printed before the device is saved.
const PATIENCE: Duration = Duration::from_millis(100);
/// Bytes printed of one buffer before the thread looks whether it shall pause.
const MOST_AT_ONCE: u64 = 1 << 20;
/// Offset of emerg_wr in the configuration structure, which ends with it.
const EMERG_WR: usize = 8;
const CONFIG_LENGTH: usize = 12;

/// A terminal's size in characters; zero where nobody knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ConsoleSize {
    /// Columns.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
}

/// The guest's console.
pub struct Console {
    shared: Arc<Shared>,
}

struct Shared {
    output: Arc<Output>,
    input: Mutex<Input>,
    /// Rings when input comes.
    arrived: Bell,
    /// Rings when the output has room again.
    room: Arc<Bell>,
    size: Mutex<ConsoleSize>,
    change: Mutex<Option<ConfigChange>>,
    /// Bytes of the buffer at the head of the transmit queue that were printed.
    printed: AtomicU64,
    /// The transmit queue goes on where another device's stood.
    resumes: AtomicBool,
    received: AtomicU64,
    transmitted: AtomicU64,
}

#[derive(Default)]
struct Input {
    pending: VecDeque<u8>,
    /// Something was refused since there last was room.
    refused: bool,
    notify: Option<Arc<dyn Fn() + Send + Sync>>,
}

/// What the device remembers.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ConsoleState {
    size: ConsoleSize,
    pending: Vec<u8>,
    printed: u64,
    output: OutputState,
}

impl Console {
    /// A console that prints into `output`.
    ///
    /// # Errors
    /// The host's, if it has no event descriptors.
    pub fn new(output: Arc<Output>) -> io::Result<Self> {
        Ok(Self {
            shared: Arc::new(Shared {
                output,
                input: Mutex::default(),
                arrived: Bell::new()?,
                room: Arc::new(Bell::new()?),
                size: Mutex::default(),
                change: Mutex::default(),
                printed: AtomicU64::new(0),
                resumes: AtomicBool::new(false),
                received: AtomicU64::new(0),
                transmitted: AtomicU64::new(0),
            }),
        })
    }

    /// Where it prints.
    #[must_use]
    pub fn output(&self) -> &Arc<Output> {
        &self.shared.output
    }

    /// Takes as much input as there is room for, from the front, and says how much that was.
    pub fn enqueue(&self, bytes: &[u8]) -> usize {
        let mut input = lock(&self.shared.input);
        let taken = bytes.len().min(CAPACITY - input.pending.len());
        input.pending.extend(&bytes[..taken]);
        input.refused |= taken < bytes.len();
        drop(input);
        if taken > 0 {
            self.shared.arrived.ring();
        }
        taken
    }

    /// Has `notify` called whenever there is room after [`enqueue`](Self::enqueue) refused something. It is called on a
    /// queue's thread and must not block; it may enqueue.
    pub fn on_room(&self, notify: impl Fn() + Send + Sync + 'static) {
        lock(&self.shared.input).notify = Some(Arc::new(notify));
    }

    /// The terminal has this size now; the guest is told if that is another one.
    pub fn resize(&self, size: ConsoleSize) {
        let before = std::mem::replace(&mut *lock(&self.shared.size), size);
        if before != size
            && let Some(change) = &*lock(&self.shared.change)
        {
            change.announce();
        }
    }
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console").field("output", &self.shared.output).finish()
    }
}

impl VirtioDevice for Console {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Console
    }

    fn features(&self) -> u64 {
        SIZE | EMERG_WRITE
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 2]
    }

    fn config(&self) -> Vec<u8> {
        let size = *lock(&self.shared.size);
        let mut config = Vec::with_capacity(CONFIG_LENGTH);
        config.extend(size.columns.to_le_bytes());
        config.extend(size.rows.to_le_bytes());
        // max_nr_ports is nobody's without VIRTIO_CONSOLE_F_MULTIPORT; emerg_wr is only written.
        config.resize(CONFIG_LENGTH, 0);
        config
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        // "The device transmits the lower byte" (virtio 1.2, "Device Operation", emerg_wr). What does not fit is lost then: who
        // is in an emergency does not wait.
        let place = (EMERG_WR as u64).checked_sub(offset).map(|place| place as usize);
        if let Some(byte) = place.and_then(|place| data.get(place)) {
            let _ = self.shared.output.push(*byte);
        }
    }

    fn connect(&self, change: ConfigChange) {
        *lock(&self.shared.change) = Some(change);
    }

    fn save(&self) -> Vec<u8> {
        // What goes out now need not be saved.
        self.shared.output.drain(PATIENCE);
        let state = ConsoleState {
            output: self.shared.output.state(),
            size: *lock(&self.shared.size),
            pending: lock(&self.shared.input).pending.iter().copied().collect(),
            printed: self.shared.printed.load(Ordering::SeqCst),
        };
        postcard::to_stdvec(&state).expect("plain data is written to memory")
    }

    fn restore(&self, saved: &[u8]) -> Result<(), DeviceStateError> {
        let state: ConsoleState = postcard::from_bytes(saved).map_err(DeviceStateError::new)?;
        if state.pending.len() > CAPACITY {
            return Err(DeviceStateError::new(format_args!(
                "it holds {} bytes of input; expected at most {CAPACITY}",
                state.pending.len()
            )));
        }
        *lock(&self.shared.size) = state.size;
        lock(&self.shared.input).pending = state.pending.into();
        self.shared.printed.store(state.printed, Ordering::SeqCst);
        self.shared.resumes.store(true, Ordering::SeqCst);
        self.shared.output.restore(&state.output);
        Ok(())
    }

    fn handler(&self, index: u16) -> Box<dyn QueueHandler> {
        let shared = Arc::clone(&self.shared);
        if index == RECEIVE {
            Box::new(Receiver(shared))
        } else {
            Box::new(Transmitter(shared))
        }
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("received", self.shared.received.load(Ordering::Relaxed)),
            ("transmitted", self.shared.transmitted.load(Ordering::Relaxed)),
        ]
    }
}

/// Fills the guest's buffers with input.
struct Receiver(Arc<Shared>);

impl QueueHandler for Receiver {
    fn handle(&mut self, chain: &Chain<'_>) -> Result<Handled, ChainError> {
        let shared = &self.0;
        let most = usize::try_from(chain.writable()).unwrap_or(CAPACITY);
        if most == 0 {
            return Err(ChainError::Short);
        }
        // Before looking, so that what comes after it rings again.
        shared.arrived.hush();
        let bytes: Vec<u8> = lock(&shared.input).pending.iter().take(most).copied().collect();
        if bytes.is_empty() {
            return Ok(Handled::NotNow);
        }
        chain.write(0, &bytes)?;
        let mut input = lock(&shared.input);
        // Nobody else takes any.
        let taken = bytes.len().min(input.pending.len());
        input.pending.drain(..taken);
        let notify = input.notify.clone().filter(|_| std::mem::take(&mut input.refused));
        drop(input);
        shared.received.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        if let Some(notify) = notify {
            notify();
        }
        Ok(Handled::Used(bytes.len() as u32))
    }

    fn source(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.arrived.as_fd())
    }
}

/// Prints what is in the guest's buffers.
struct Transmitter(Arc<Shared>);

impl QueueHandler for Transmitter {
    fn begin(&mut self, _features: u64) {
        if !self.0.resumes.swap(false, Ordering::SeqCst) {
            self.0.printed.store(0, Ordering::SeqCst);
        }
    }

    fn handle(&mut self, chain: &Chain<'_>) -> Result<Handled, ChainError> {
        let shared = &self.0;
        let length = chain.readable();
        let mut at = shared.printed.swap(0, Ordering::SeqCst);
        // A guest may offer 4 GiB; the queue's thread lets go now and then.
        let end = length.min(at.saturating_add(MOST_AT_ONCE));
        let mut buffer = [0; PART];
        while at < end {
            let part = &mut buffer[..usize::try_from(end - at).unwrap_or(PART).min(PART)];
            chain.read(at, part)?;
            let (taken, ticket) = shared.output.push_all(part);
            at += taken as u64;
            shared.transmitted.fetch_add(taken as u64, Ordering::Relaxed);
            if let Some(ticket) = ticket {
                shared.room.hush();
                let room = Arc::clone(&shared.room);
                ticket.on_ready(move || room.ring());
                shared.printed.store(at, Ordering::SeqCst);
                return Ok(Handled::NotNow);
            }
        }
        if at < length {
            shared.printed.store(at, Ordering::SeqCst);
            shared.room.ring();
            return Ok(Handled::NotNow);
        }
        Ok(Handled::Used(0))
    }

    fn source(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.room.as_fd())
    }
}

#[cfg(test)]
mod tests;

//! Input on its way to the guest: to the serial port or the virtio console.
//!
//! # Purpose
//! Their receivers hold few bytes and a guest may not read them for long. What it has no room for waits here, and is
//! handed over by whoever comes by: the thread that reads input, or the vCPU that has just made room.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use reprise_devices::Serial;
use reprise_devices::virtio::{self, ConsoleSize};

/// Bytes that wait at most.
const CAPACITY: usize = 64 << 10;

/// A device of a guest that takes what is typed. Nothing here blocks.
pub trait Keyboard: Send + Sync {
    /// Takes as many bytes as there is room for, from the front, and says how many.
    fn enqueue(&self, bytes: &[u8]) -> usize;
    /// Has `notify` called when there is room after something was refused.
    fn on_room(&self, notify: Box<dyn Fn() + Send + Sync>);
    /// The terminal has this size now.
    fn resize(&self, size: ConsoleSize);
}

impl Keyboard for Serial {
    fn enqueue(&self, bytes: &[u8]) -> usize {
        self.enqueue(bytes)
    }

    fn on_room(&self, notify: Box<dyn Fn() + Send + Sync>) {
        self.on_room(notify);
    }

    /// A serial line has none.
    fn resize(&self, _size: ConsoleSize) {}
}

impl Keyboard for virtio::Console {
    fn enqueue(&self, bytes: &[u8]) -> usize {
        self.enqueue(bytes)
    }

    fn on_room(&self, notify: Box<dyn Fn() + Send + Sync>) {
        self.on_room(notify);
    }

    fn resize(&self, size: ConsoleSize) {
        self.resize(size);
    }
}

/// The way from a console's input to the device of the machine that is attached to it.
pub struct Port {
    state: Mutex<State>,
    room: Condvar,
}

#[derive(Default)]
struct State {
    pending: VecDeque<u8>,
    keyboard: Option<Arc<dyn Keyboard>>,
    size: Option<ConsoleSize>,
    on_leave: Option<Arc<dyn Fn() + Send + Sync>>,
}

impl Port {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            room: Condvar::new(),
        })
    }

    pub fn attach(self: &Arc<Self>, keyboard: &Arc<dyn Keyboard>, on_leave: Arc<dyn Fn() + Send + Sync>) {
        let mut state = self.lock();
        state.keyboard = Some(Arc::clone(keyboard));
        state.on_leave = Some(on_leave);
        let size = state.size;
        drop(state);
        if let Some(size) = size {
            keyboard.resize(size);
        }
        // Weak, for the device is held here in turn.
        let port: Weak<Self> = Arc::downgrade(self);
        keyboard.on_room(Box::new(move || {
            if let Some(port) = port.upgrade() {
                port.pump();
            }
        }));
        self.pump();
    }

    pub fn detach(&self) {
        let mut state = self.lock();
        let gone = (state.keyboard.take(), state.on_leave.take());
        drop(state);
        drop(gone);
    }

    /// Takes what there is room for, from the front, and says how much that was.
    pub fn push(&self, bytes: &[u8]) -> usize {
        let mut state = self.lock();
        let room = bytes.len().min(CAPACITY - state.pending.len());
        state.pending.extend(&bytes[..room]);
        drop(state);
        self.pump();
        room
    }

    /// Waits until there is room, or for `timeout`.
    pub fn wait_for_room(&self, timeout: Duration) {
        let full = |state: &mut State| state.pending.len() >= CAPACITY;
        drop(self.room.wait_timeout_while(self.lock(), timeout, full));
    }

    /// The terminal has this size now.
    pub fn resize(&self, size: ConsoleSize) {
        let mut state = self.lock();
        state.size = Some(size);
        let keyboard = state.keyboard.clone();
        drop(state);
        if let Some(keyboard) = keyboard {
            keyboard.resize(size);
        }
    }

    /// A person wants to leave.
    pub fn leave(&self) {
        let on_leave = self.lock().on_leave.clone();
        if let Some(on_leave) = on_leave {
            on_leave();
        }
    }

    /// Hands over what the receiver has room for. Never blocks: it also runs on vCPU threads.
    fn pump(&self) {
        let mut state = self.lock();
        let Some(keyboard) = state.keyboard.clone() else {
            return;
        };
        while !state.pending.is_empty() {
            let (front, _) = state.pending.as_slices();
            let taken = keyboard.enqueue(front);
            if taken == 0 {
                break;
            }
            state.pending.drain(..taken);
        }
        drop(state);
        self.room.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Valid at each step, so a panic elsewhere is not ours to spread.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("Port")
            .field("pending", &state.pending.len())
            .field("attached", &state.keyboard.is_some())
            .finish()
    }
}

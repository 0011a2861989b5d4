//! Input on its way to the serial port.
//!
//! # Purpose
//! The port's receiver holds few bytes and a guest may not read them for long. What it has no room for waits here, and is
//! handed over by whoever comes by: the thread that reads input, or the vCPU that has just made room.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use reprise_devices::Serial;

/// Bytes that wait at most.
const CAPACITY: usize = 64 << 10;

/// The way from a console's input to the serial port of the machine that is attached to it.
pub struct Port {
    state: Mutex<State>,
    room: Condvar,
}

#[derive(Default)]
struct State {
    pending: VecDeque<u8>,
    serial: Option<Arc<Serial>>,
    on_leave: Option<Arc<dyn Fn() + Send + Sync>>,
}

impl Port {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            room: Condvar::new(),
        })
    }

    pub fn attach(self: &Arc<Self>, serial: &Arc<Serial>, on_leave: Arc<dyn Fn() + Send + Sync>) {
        let mut state = self.lock();
        state.serial = Some(Arc::clone(serial));
        state.on_leave = Some(on_leave);
        drop(state);
        // Weak, for the serial port is held here in turn.
        let port: Weak<Self> = Arc::downgrade(self);
        serial.on_room(move || {
            if let Some(port) = port.upgrade() {
                port.pump();
            }
        });
        self.pump();
    }

    pub fn detach(&self) {
        let mut state = self.lock();
        let gone = (state.serial.take(), state.on_leave.take());
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
        let Some(serial) = state.serial.clone() else { return };
        while !state.pending.is_empty() {
            let (front, _) = state.pending.as_slices();
            let taken = serial.enqueue(front);
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
            .field("attached", &state.serial.is_some())
            .finish()
    }
}

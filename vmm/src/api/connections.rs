//! Who is connected, and who makes room when there are too many.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::task::AbortHandle;

/// Connections at one time.
pub(super) const LIMIT: usize = 64;

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    /// Calls under way that must not be cut off: 0 or 1, as HTTP/1 has one request at a time.
    calls: AtomicUsize,
    /// When it last did something worth staying for.
    active: Mutex<Instant>,
}

/// Marks its connection as busy while it lives.
#[derive(Debug)]
pub(super) struct Busy(Arc<Connection>);

impl Connection {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            calls: AtomicUsize::new(0),
            active: Mutex::new(Instant::now()),
        })
    }

    pub(super) fn busy(self: &Arc<Self>) -> Busy {
        self.calls.fetch_add(1, Ordering::Relaxed);
        Busy(self.clone())
    }

    /// A whole request has arrived.
    pub(super) fn touch(&self) {
        *self.active.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Since when it is idle, if it is.
    fn idle_since(&self) -> Option<Instant> {
        if self.calls.load(Ordering::Relaxed) > 0 {
            return None;
        }
        Some(*self.active.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.touch();
        self.0.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

/// All connections.
#[derive(Debug, Default)]
pub(super) struct Connections {
    open: Vec<(Arc<Connection>, AbortHandle)>,
}

impl Connections {
    /// Makes room for one more, if need be at the cost of the one that has been idle longest. False if all are busy.
    pub(super) fn make_room(&mut self) -> bool {
        self.open.retain(|(_, task)| !task.is_finished());
        if self.open.len() < LIMIT {
            return true;
        }
        let idle = self
            .open
            .iter()
            .enumerate()
            .filter_map(|(i, (connection, _))| Some((connection.idle_since()?, i)));
        let Some((_, longest)) = idle.min() else { return false };
        self.open.swap_remove(longest).1.abort();
        true
    }

    pub(super) fn add(&mut self, connection: Arc<Connection>, task: AbortHandle) {
        self.open.push((connection, task));
    }
}

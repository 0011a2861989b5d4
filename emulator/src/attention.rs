//! How other threads get a running CPU's attention.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Signals to one CPU, which it looks at between blocks of instructions.
#[derive(Debug, Default)]
pub struct Attention {
    signals: AtomicU32,
    /// The CPU is executing, and may hold translations that let it write without asking.
    running: AtomicBool,
}

/// The CPU's owner wants to be heard: an interrupt is pending, say.
const OWNER: u32 = 1;
/// Translations for writing are to be dropped, since a page became code.
const DROP_WRITES: u32 = 2;

impl Attention {
    /// Makes the CPU return [`Exit::Attention`](crate::Exit::Attention) before the next block.
    pub fn call(&self) {
        self.signals.fetch_or(OWNER, Ordering::SeqCst);
    }

    /// Something was signalled.
    #[inline(always)]
    pub(crate) fn any(&self) -> bool {
        self.signals.load(Ordering::Acquire) != 0
    }

    /// Takes the owner's signal.
    pub(crate) fn take_call(&self) -> bool {
        self.signals.fetch_and(!OWNER, Ordering::SeqCst) & OWNER != 0
    }

    /// Tells whether translations for writing are to be dropped; the caller does it before
    /// [`Attention::writes_dropped`].
    pub(crate) fn wants_writes_dropped(&self) -> bool {
        self.signals.load(Ordering::SeqCst) & DROP_WRITES != 0
    }

    /// Says that no translation for writing is left.
    pub(crate) fn writes_dropped(&self) {
        self.signals.fetch_and(!DROP_WRITES, Ordering::SeqCst);
    }

    /// Marks the CPU as executing or not. One that is not need not answer [`Attention::request_drop`]; it sees the
    /// request when it begins again.
    pub(crate) fn set_running(&self, running: bool) {
        self.running.store(running, Ordering::SeqCst);
    }

    pub(crate) fn request_drop(&self) {
        self.signals.fetch_or(DROP_WRITES, Ordering::SeqCst);
    }

    /// The CPU can no longer write without asking.
    pub(crate) fn has_dropped(&self) -> bool {
        !self.running.load(Ordering::SeqCst) || !self.wants_writes_dropped()
    }
}

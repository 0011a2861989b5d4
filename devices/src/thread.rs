//! The beginning of every thread that devices have: where a program may confine it.

use std::sync::OnceLock;

/// What a thread is there for, and so what it asks of the operating system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ThreadKind {
    /// It serves a queue of a virtio device: it reads and writes files that are open.
    Queue,
    /// It carries what a console prints.
    Console,
    /// It carries what is typed into a console to the guest.
    Keyboard,
    /// It speaks with a device in another process, or carries its interrupts.
    UserDevice,
}

static HOOK: OnceLock<fn(ThreadKind)> = OnceLock::new();

/// Has each thread that devices make from now on call `hook` before it does anything else. Only the first call counts.
pub fn on_start(hook: fn(ThreadKind)) {
    let _ = HOOK.set(hook);
}

/// Says that the calling thread begins.
pub fn begin(kind: ThreadKind) {
    if let Some(hook) = HOOK.get() {
        hook(kind);
    }
}

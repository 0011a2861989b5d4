//! How a thread is got out of KVM_RUN.
//!
//! # How it works
//! Whoever kicks sets the flag that makes the next KVM_RUN return at once, and then, should the vCPU's thread be inside one,
//! sends it a signal. The order makes this free of races: a thread that enters between the two finds the flag set.

use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use reprise_emulator::Attention;

use super::sys::{self, ExitFlag};
use crate::Kick;

/// Kicks one vCPU.
#[derive(Debug)]
pub struct KvmKick {
    kicked: AtomicBool,
    flag: ExitFlag,
    /// The thread that is inside KVM_RUN; 0 if none is.
    inside: AtomicI32,
    /// The emulator that finishes the vCPU's instructions, once there is one.
    emulator: Mutex<Option<Arc<Attention>>>,
}

impl KvmKick {
    /// Of the vCPU that `flag` belongs to.
    pub fn new(flag: ExitFlag) -> Arc<Self> {
        Arc::new(Self {
            kicked: AtomicBool::new(false),
            flag,
            inside: AtomicI32::new(0),
            emulator: Mutex::default(),
        })
    }

    /// Who kicks calls this emulator too.
    pub fn also(&self, emulator: Arc<Attention>) {
        *self.emulator.lock().unwrap_or_else(PoisonError::into_inner) = Some(emulator);
    }

    /// The calling thread goes into KVM_RUN, which `run` is.
    pub fn inside<R>(&self, run: impl FnOnce() -> R) -> R {
        self.inside.store(sys::thread_id(), Ordering::SeqCst);
        let result = run();
        self.inside.store(0, Ordering::SeqCst);
        result
    }

    /// Whether somebody has kicked since this was asked last.
    pub fn take(&self) -> bool {
        // In this order: what is set in between is not lost, but at worst makes KVM_RUN return once too often.
        self.flag.set(false);
        self.kicked.swap(false, Ordering::SeqCst)
    }

    /// Makes the next KVM_RUN only complete the last exit and return.
    pub fn complete_only(&self) {
        self.flag.set(true);
    }

    /// After [`complete_only`](Self::complete_only): KVM_RUN runs again, unless somebody has kicked meanwhile.
    pub fn completed(&self) {
        self.flag.set(false);
        if self.kicked.load(Ordering::SeqCst) {
            self.flag.set(true);
        }
    }
}

impl Kick for KvmKick {
    fn kick(&self) {
        self.kicked.store(true, Ordering::SeqCst);
        self.flag.set(true);
        let inside = self.inside.load(Ordering::SeqCst);
        if inside != 0 {
            sys::signal_thread(inside);
        }
        if let Some(emulator) = &*self.emulator.lock().unwrap_or_else(PoisonError::into_inner) {
            emulator.call();
        }
    }
}

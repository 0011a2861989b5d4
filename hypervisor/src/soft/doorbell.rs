//! What makes a vCPU look up.
//!
//! # Purpose
//! Other threads post work to a vCPU (an interrupt, a start-up IPI, a kick) in the place where that work lives, and then
//! ring. A running CPU sees its [`Attention`] between blocks of instructions; a halted one sleeps on the bell. One that
//! waits for a device is with its owner, who is [called](Doorbell::call_owner) for what must not wait for the device.
//! # Invariants
//! - Post first, ring then; the vCPU answers first ([`Doorbell::answer`]), looks then. So no work is overlooked.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use reprise_emulator::Attention;

/// The bell of one vCPU, and the means to sleep on it.
#[derive(Default)]
pub struct Doorbell {
    /// What the CPU looks at while it runs, once there is a CPU.
    attention: OnceLock<Arc<Attention>>,
    rung: AtomicBool,
    sleep: Mutex<()>,
    wake: Condvar,
    owner: Mutex<Option<Call>>,
}

/// How the owner of a vCPU is called.
type Call = Arc<dyn Fn() + Send + Sync>;

impl Doorbell {
    /// Connects the bell to its CPU. The first CPU stays.
    pub fn connect(&self, attention: &Arc<Attention>) {
        self.attention.get_or_init(|| Arc::clone(attention));
    }

    /// What the CPU looks at while it runs; none as long as there is no CPU.
    pub fn attention(&self) -> Option<&Attention> {
        self.attention.get().map(Arc::as_ref)
    }

    /// Rings: the vCPU stops running, or wakes.
    pub fn ring(&self) {
        if !self.rung.swap(true, Ordering::SeqCst) {
            if let Some(attention) = self.attention.get() {
                attention.call();
            }
            // The lock orders this after a sleeper's last look at `rung`, so that the wake-up finds it asleep.
            drop(self.sleep.lock().unwrap_or_else(PoisonError::into_inner));
            self.wake.notify_all();
        }
    }

    /// Has the owner called with `call` from now on.
    pub fn connect_owner(&self, call: Call) {
        *self.owner.lock().unwrap_or_else(PoisonError::into_inner) = Some(call);
    }

    /// Rings, and calls the owner: what was posted ends even the wait for a device.
    pub fn call_owner(&self) {
        self.ring();
        let call = self.owner.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(call) = call {
            call();
        }
    }

    /// Whether somebody rang and nobody answered yet.
    pub fn rung(&self) -> bool {
        self.rung.load(Ordering::SeqCst)
    }

    /// Takes notice of every ring so far; what was posted before them is visible now.
    pub fn answer(&self) {
        self.rung.swap(false, Ordering::SeqCst);
    }

    /// Sleeps until somebody rings, at most `limit` long; at once if it has been rung.
    pub fn sleep(&self, limit: Option<Duration>) {
        let guard = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = |(): &mut ()| !self.rung();
        match limit {
            Some(limit) => drop(self.wake.wait_timeout_while(guard, limit, idle)),
            None => drop(self.wake.wait_while(guard, idle)),
        }
    }
}

impl fmt::Debug for Doorbell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Doorbell")
            .field("rung", &self.rung)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_before_the_sleep_is_not_slept_through() {
        let bell = Doorbell::default();
        bell.ring();
        bell.sleep(None);
        assert!(bell.rung());
        bell.answer();
        assert!(!bell.rung());
    }

    #[test]
    fn a_ring_wakes_the_sleeper_each_time() {
        let bell = Doorbell::default();
        let posted = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..1000 {
                    posted.fetch_add(1, Ordering::SeqCst);
                    bell.ring();
                }
            });
            while posted.load(Ordering::SeqCst) < 1000 {
                bell.sleep(None);
                bell.answer();
            }
        });
    }

    #[test]
    fn a_sleep_with_a_limit_ends_without_a_ring() {
        Doorbell::default().sleep(Some(Duration::from_millis(1)));
    }
}

//! What makes a vCPU look up.
//!
//! # Purpose
//! Other threads post work to a vCPU (an interrupt, a start-up IPI, a kick) in the place where that work lives, and then
//! ring. A running CPU sees its [`Attention`] between blocks of instructions; a halted one sleeps on the bell.
//! # Invariants
//! - Post first, ring then; the vCPU answers first ([`Doorbell::answer`]), looks then. So no work is overlooked.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use reprise_emulator::Attention;

/// The bell of one vCPU, and the means to sleep on it.
#[derive(Debug, Default)]
pub struct Doorbell {
    /// What the CPU looks at while it runs, once there is a CPU.
    attention: OnceLock<Arc<Attention>>,
    rung: AtomicBool,
    sleep: Mutex<()>,
    wake: Condvar,
}

impl Doorbell {
    /// Connects the bell to its CPU. The first CPU stays.
    pub fn connect(&self, attention: &Arc<Attention>) {
        self.attention.get_or_init(|| Arc::clone(attention));
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

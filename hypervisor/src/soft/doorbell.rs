//! What makes a vCPU look up.
//!
//! # Purpose
//! Other threads post work to a vCPU (an interrupt, a start-up IPI, a kick) in the place where that work lives, and then
//! ring. A running CPU polls [`Doorbell::flag`] between blocks of instructions; a halted one sleeps on the bell.
//! # Invariants
//! - Post first, ring then; the vCPU answers first ([`Doorbell::answer`]), looks then. So no work is overlooked.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// The attention flag of one vCPU, and the means to sleep on it.
#[derive(Debug, Default)]
pub struct Doorbell {
    rung: Arc<AtomicBool>,
    sleep: Mutex<()>,
    wake: Condvar,
}

impl Doorbell {
    /// The flag a running CPU polls: true while nobody has answered.
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.rung)
    }

    /// Rings: the vCPU stops running, or wakes.
    pub fn ring(&self) {
        if !self.rung.swap(true, Ordering::SeqCst) {
            // The lock orders this after a sleeper's last look at the flag, so that the wake-up finds it asleep.
            drop(self.sleep.lock().unwrap_or_else(PoisonError::into_inner));
            self.wake.notify_all();
        }
    }

    /// Takes notice of every ring so far; what was posted before them is visible now.
    pub fn answer(&self) {
        self.rung.swap(false, Ordering::SeqCst);
    }

    /// Sleeps until somebody rings, at most `limit` long; at once if it has been rung.
    pub fn sleep(&self, limit: Option<Duration>) {
        let guard = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = |(): &mut ()| !self.rung.load(Ordering::SeqCst);
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
        assert!(bell.flag().load(Ordering::SeqCst));
        bell.answer();
        assert!(!bell.flag().load(Ordering::SeqCst));
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

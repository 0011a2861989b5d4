//! The time-stamp counters of a machine's vCPUs: how fast they count, and where they begin.
//!
//! KVM counts time-stamps by the host's own counter, whether the machine is paused or not, and lets nobody read two counters
//! at one moment. So counters that differ by less than a millisecond, which no two that the guest set apart do, are taken to
//! be one.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::tsc::TscRate;

/// What is taken to be one moment, in nanoseconds.
const MOMENT: u64 = 1_000_000;

/// What the vCPUs of a machine share of their counters.
#[derive(Debug, Default)]
pub struct Counters {
    /// The host's rate, in kHz; 0 until there is a vCPU.
    host: AtomicU32,
    /// The rate that was restored, in kHz; 0 if none was.
    restored: AtomicU32,
    /// Where the counter that was looked at last begins.
    start: Mutex<Option<u64>>,
}

impl Counters {
    /// The rate of a new vCPU's counter.
    pub fn count_at(&self, khz: u32) {
        self.host.store(khz, Ordering::SeqCst);
    }

    /// The counters are to count at `rate`.
    pub fn restore(&self, rate: TscRate) {
        self.restored.store(rate.khz(), Ordering::SeqCst);
        self.forget();
    }

    /// How fast they count.
    pub fn rate(&self) -> TscRate {
        let khz = match self.restored.load(Ordering::SeqCst) {
            0 => self.host.load(Ordering::SeqCst),
            khz => khz,
        };
        TscRate::new(khz).unwrap_or(TscRate::GIGAHERTZ)
    }

    /// Where a counter begins that was seen to begin at `start`.
    pub fn start(&self, start: u64) -> u64 {
        let mut known = self.start.lock().unwrap_or_else(PoisonError::into_inner);
        let near = self.rate().ticks(MOMENT) as i64;
        match *known {
            Some(known) if (start.wrapping_sub(known) as i64).abs() < near => known,
            _ => *known.insert(start),
        }
    }

    /// The clock has been stopped or put elsewhere, so counters begin elsewhere.
    pub fn forget(&self) {
        *self.start.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_that_are_close_are_one() {
        let counters = Counters::default();
        counters.count_at(2_000_000);
        assert_eq!(counters.start(u64::MAX - 5), u64::MAX - 5);
        assert_eq!(counters.start(1_000_000), u64::MAX - 5, "half a millisecond later");
        assert_eq!(counters.start(10_000_000), 10_000_000);
        counters.forget();
        assert_eq!(counters.start(10_000_007), 10_000_007);
    }

    #[test]
    fn a_restored_rate_goes_before_the_hosts() {
        let counters = Counters::default();
        assert_eq!(counters.rate(), TscRate::GIGAHERTZ);
        counters.count_at(2_000_000);
        assert_eq!(counters.rate().khz(), 2_000_000);
        counters.restore(TscRate::GIGAHERTZ);
        assert_eq!(counters.rate(), TscRate::GIGAHERTZ);
    }
}

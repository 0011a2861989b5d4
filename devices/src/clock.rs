//! Time, handed to the devices that tell it.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// What time it is, twice: for people and for measuring.
///
/// Devices never ask the host themselves, so that a test owns time and a paused or replayed machine can hold it still.
pub trait Clock: Send + Sync {
    /// Seconds since 1970-01-01T00:00:00Z, without leap seconds; negative before.
    fn unix_seconds(&self) -> i64;

    /// Nanoseconds since some fixed moment; never less than before.
    fn monotonic_nanoseconds(&self) -> u64;
}

/// The host's clocks.
#[derive(Debug, Clone, Copy)]
pub struct HostClock {
    started: Instant,
}

impl HostClock {
    /// The host's clocks, measuring from now.
    #[must_use]
    pub fn new() -> Self {
        Self {
            started: Instant::now(),
        }
    }
}

impl Default for HostClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for HostClock {
    fn unix_seconds(&self) -> i64 {
        let seconds = |duration: std::time::Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => seconds(since),
            Err(before) => -seconds(before.duration()),
        }
    }

    fn monotonic_nanoseconds(&self) -> u64 {
        // 2^64 nanoseconds are 584 years.
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

//! Time, handed to the devices that tell it.

use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::sync::lock;

/// What time it is, twice: for people and for measuring.
///
/// Devices never ask the host themselves, so that a test owns time and a paused or replayed machine can hold it still.
pub trait Clock: Send + Sync {
    /// Seconds since 1970-01-01T00:00:00Z, without leap seconds; negative before.
    fn unix_seconds(&self) -> i64;

    /// Nanoseconds since some fixed moment; never less than before.
    fn monotonic_nanoseconds(&self) -> u64;
}

/// The host's clocks; the measuring one can be stopped.
#[derive(Debug)]
pub struct HostClock {
    started: Instant,
    standing: Mutex<Standing>,
}

/// When the measuring clock stood still, in nanoseconds since it was started.
#[derive(Debug, Default)]
struct Standing {
    /// The moment since which it has stood, if it does.
    since: Option<u64>,
    /// What it is behind by that it does not stand now: how long it stood before that, all in all. Wraps, as a clock that
    /// goes on from another one's time may be ahead.
    before: u64,
}

/// What a [`HostClock`] remembers. The time for people is the host's.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HostClockState {
    /// The measuring clock, in nanoseconds.
    pub monotonic: u64,
}

/// The latest a clock is set to: there are 292 years left to it.
const LATEST: u64 = u64::MAX / 2;

impl HostClock {
    /// The host's clocks, measuring from now.
    #[must_use]
    pub fn new() -> Self {
        Self {
            started: Instant::now(),
            standing: Mutex::default(),
        }
    }

    /// Stops (true) or continues (false) the measuring clock: a paused machine's timers stand still together, or its
    /// kernel finds one of them wrong. The time for people goes on.
    pub fn set_paused(&self, paused: bool) {
        // Read under the lock: what another thread was told before this is not later than the moment of stopping.
        let mut standing = lock(&self.standing);
        standing.set(paused, self.elapsed());
    }

    /// The measuring clock as it stands.
    #[must_use]
    pub fn state(&self) -> HostClockState {
        HostClockState {
            monotonic: self.monotonic_nanoseconds(),
        }
    }

    /// Sets the measuring clock to where another one stood. Devices that measured by it before are restored after it.
    pub fn restore(&self, state: &HostClockState) {
        let mut standing = lock(&self.standing);
        standing.show(state.monotonic.min(LATEST), self.elapsed());
    }

    fn elapsed(&self) -> u64 {
        // 2^64 nanoseconds are 584 years.
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Standing {
    fn set(&mut self, paused: bool, elapsed: u64) {
        if paused {
            self.since.get_or_insert(elapsed);
        } else if let Some(since) = self.since.take() {
            self.before = self.before.wrapping_add(elapsed - since);
        }
    }

    fn shown(&self, elapsed: u64) -> u64 {
        self.since.unwrap_or(elapsed).wrapping_sub(self.before)
    }

    fn show(&mut self, now: u64, elapsed: u64) {
        self.before = self.since.unwrap_or(elapsed).wrapping_sub(now);
    }
}

impl Default for HostClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for HostClock {
    fn unix_seconds(&self) -> i64 {
        let seconds = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => seconds(since),
            Err(before) => -seconds(before.duration()),
        }
    }

    fn monotonic_nanoseconds(&self) -> u64 {
        let standing = lock(&self.standing);
        standing.shown(self.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_paused_clock_stands_and_goes_on_from_there() {
        let mut standing = Standing::default();
        assert_eq!(standing.shown(10), 10);
        standing.set(true, 20);
        standing.set(true, 25);
        assert_eq!(standing.shown(30), 20);
        standing.set(false, 50);
        assert_eq!(standing.shown(50), 20);
        standing.set(false, 55);
        assert_eq!(standing.shown(60), 30);
        standing.set(true, 70);
        standing.set(false, 71);
        assert_eq!(standing.shown(71), 40);
    }

    #[test]
    fn a_clock_goes_on_from_where_another_stood_be_that_before_or_ahead_of_it() {
        for stood in [0, 7, 1 << 40, LATEST] {
            let mut standing = Standing::default();
            standing.show(stood, 100);
            assert_eq!((standing.shown(100), standing.shown(130)), (stood, stood + 30));
            standing.set(true, 130);
            standing.show(stood, 140);
            assert_eq!(standing.shown(150), stood, "it still stands");
            standing.set(false, 160);
            assert_eq!(standing.shown(165), stood + 5);
        }
        let clock = HostClock::new();
        clock.restore(&HostClockState { monotonic: u64::MAX });
        assert!(clock.monotonic_nanoseconds() >= LATEST);
    }

    #[test]
    fn the_host_is_past_2020_and_its_measure_never_falls() {
        let clock = HostClock::new();
        assert!(clock.unix_seconds() > 1_577_836_800);
        let mut last = 0;
        for round in 0..100 {
            clock.set_paused(round % 3 == 0);
            let now = clock.monotonic_nanoseconds();
            assert!(now >= last);
            last = now;
        }
    }
}

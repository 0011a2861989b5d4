//! The clock of one virtual machine.
//!
//! # Purpose
//! One count of nanoseconds from which every timer and counter of the machine is derived: the time-stamp counters, the
//! local APIC timers, the PIT, kvmclock. The time-stamp counter runs at exactly 1 GHz, so a tick of it *is* a nanosecond
//! of this clock; nothing is calibrated or scaled, and a deadline in ticks is a deadline in time.
//! # Invariants
//! - Never runs backwards, on whatever thread it is read, unless it is set to where another one stood.
//! - Stands still while the machine is paused, and goes on from there.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The frequency of the time-stamp counters and of the local APIC timers' input, in kHz.
pub const TSC_KHZ: u32 = 1_000_000;

/// No machine's clock is set to this or beyond: 146 years are left to it, and sums with what a timer counts fit.
pub const LATEST: u64 = 1 << 62;

/// What `held_at` holds while the clock runs.
const RUNS: u64 = u64::MAX;

/// Nanoseconds since the machine was made, less the time it was paused.
#[derive(Debug)]
pub struct Clock {
    origin: Instant,
    /// Even while nobody changes the two fields below: readers that see it odd, or changed, read again.
    generation: AtomicU64,
    /// The host's time less this one's, while it runs; wraps, as a restored clock may be ahead of the host's.
    lag: AtomicU64,
    /// The time at which the clock was stopped, or [`RUNS`].
    held_at: AtomicU64,
    changing: Mutex<()>,
}

impl Clock {
    /// A clock that starts now, at 0.
    pub fn new() -> Self {
        Self {
            origin: Instant::now(),
            generation: AtomicU64::new(0),
            lag: AtomicU64::new(0),
            held_at: AtomicU64::new(RUNS),
            changing: Mutex::new(()),
        }
    }

    /// The time in nanoseconds.
    pub fn now(&self) -> u64 {
        loop {
            let before = self.generation.load(Ordering::Acquire);
            if before & 1 == 0 {
                let held = self.held_at.load(Ordering::Relaxed);
                let lag = self.lag.load(Ordering::Relaxed);
                let now = if held == RUNS {
                    self.host().wrapping_sub(lag)
                } else {
                    held
                };
                fence(Ordering::Acquire);
                if self.generation.load(Ordering::Relaxed) == before {
                    return now;
                }
            }
            std::hint::spin_loop();
        }
    }

    /// Stops (true) or continues (false) the clock; saying the same twice changes nothing.
    pub fn set_paused(&self, paused: bool) {
        let _changing = self.changing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let held = self.held_at.load(Ordering::Relaxed);
        if paused == (held != RUNS) {
            return;
        }
        self.change(|| {
            let host = self.host();
            if paused {
                let now = host.wrapping_sub(self.lag.load(Ordering::Relaxed));
                self.held_at.store(now, Ordering::Relaxed);
            } else {
                self.lag.store(host.wrapping_sub(held), Ordering::Relaxed);
                self.held_at.store(RUNS, Ordering::Relaxed);
            }
        });
    }

    /// Stops the clock and sets it to `now`, below [`LATEST`], from where it will go on.
    pub fn hold_at(&self, now: u64) {
        let _changing = self.changing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.change(|| self.held_at.store(now, Ordering::Relaxed));
    }

    /// Whether the clock stands still.
    pub fn is_held(&self) -> bool {
        self.held_at.load(Ordering::Relaxed) != RUNS
    }

    /// Lets `change` change the fields that readers take together. One at a time.
    fn change(&self, change: impl FnOnce()) {
        self.generation.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::Release);
        change();
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// How long the host has to wait from now until the clock says `deadline`: nothing if that is past, `None` if the
    /// clock stands still.
    pub fn until(&self, deadline: u64) -> Option<Duration> {
        let now = self.now();
        if now >= deadline {
            return Some(Duration::ZERO);
        }
        (!self.is_held()).then(|| Duration::from_nanos(deadline - now))
    }

    /// The host's time of day, since 1970, at which this clock said 0: what a guest adds to this clock to know the date.
    pub fn wall_at_zero(&self) -> Duration {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        wall.saturating_sub(Duration::from_nanos(self.now()))
    }

    /// The time since `origin` on the host, in nanoseconds: 584 years fit.
    fn host(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(RUNS - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_paused_clock_stands_still_and_goes_on_from_there() {
        let clock = Clock::new();
        clock.set_paused(true);
        let held = clock.now();
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(clock.now(), held);
        clock.set_paused(false);
        let now = clock.now();
        assert!(now >= held);
        assert!(now <= clock.host() - 2_000_000, "the pause must not count");
    }

    #[test]
    fn a_clock_goes_on_from_where_another_one_stood_be_that_before_or_ahead_of_it() {
        let clock = Clock::new();
        for stood in [0, 1 << 40, LATEST - 1] {
            clock.hold_at(stood);
            assert_eq!((clock.now(), clock.is_held()), (stood, true));
            clock.set_paused(false);
            let now = clock.now();
            assert!(now >= stood && now - stood < 60_000_000_000, "{now} after {stood}");
        }
    }

    #[test]
    fn pausing_twice_is_pausing_once() {
        let clock = Clock::new();
        clock.set_paused(true);
        let held = clock.now();
        clock.set_paused(true);
        assert_eq!(clock.now(), held);
        clock.set_paused(false);
        clock.set_paused(false);
        assert!(clock.now() >= held);
    }

    #[test]
    fn a_stopped_clock_gives_no_waiting_time_for_what_is_to_come() {
        let clock = Clock::new();
        clock.set_paused(true);
        assert_eq!(clock.until(clock.now()), Some(Duration::ZERO));
        assert_eq!(clock.until(clock.now() + 1), None);
    }

    #[test]
    fn readers_on_other_threads_never_see_time_run_backwards() {
        let clock = Clock::new();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut last = 0;
                    for _ in 0..20_000 {
                        let now = clock.now();
                        assert!(now >= last);
                        last = now;
                    }
                });
            }
            for round in 0..1000 {
                clock.set_paused(round % 2 == 0);
            }
        });
    }
}

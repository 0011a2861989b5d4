//! Rate limits: how many bytes and requests a device serves in a time.
//!
//! # Purpose
//! A bucket holds tokens, one for each byte or request, and fills at a steady rate. A request is begun when no bucket is in
//! debt, and takes what it turns out to need, even if that is more than there is: so a request of any size is served at last,
//! the one after it waits for what both took, and the rate is kept over time.
//!
//! # Invariants
//! - In any stretch of time, requests take no more than the bucket's size, what flows in meanwhile, the burst if it was not yet
//!   taken, and what one request of each queue that shares the limiter takes beyond.
//! - A limit of 0 tokens, or one that fills in no time, is none.
//!
//! # Life
//! A [`RateLimiter`] is shared by all queues that it limits together, those of one device or of a group of disks. A snapshot does
//! not hold it: a restored machine begins with full buckets.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use super::chain::{Chain, ChainError};
use super::device::{Handled, QueueHandler};
use crate::clock::Clock;
use crate::sync::lock;

/// The least and the most that a waiting queue sleeps before it looks again.
const SHORTEST_SLEEP: Duration = Duration::from_micros(50);
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);

/// A bucket's measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    /// Tokens that it holds.
    pub size: u64,
    /// Tokens that are there at first besides, once.
    pub one_time_burst: u64,
    /// The time in which it fills.
    pub refill_time: Duration,
}

/// The limits of a device or a group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RateLimits {
    /// Of bytes moved between guest memory and device, requests' headers among them.
    pub bandwidth: Option<Bucket>,
    /// Of requests.
    pub ops: Option<Bucket>,
}

/// What is left in a bucket. Tokens are counted in shares, of which a token has as many as the refill time has nanoseconds, so
/// that a nanosecond brings exactly `size` shares.
#[derive(Debug)]
struct Level {
    size: i128,
    refill_time: i128,
    /// In shares; below zero is a debt.
    shares: i128,
    /// In tokens.
    burst: u64,
    /// When it was last filled, in nanoseconds.
    filled: u64,
}

impl Level {
    fn new(bucket: &Bucket, now: u64) -> Option<Self> {
        // As i128 the product of any two of these fits.
        let refill_time = i128::from(u64::try_from(bucket.refill_time.as_nanos()).unwrap_or(u64::MAX));
        let size = i128::from(bucket.size.min(i64::MAX as u64));
        (size > 0 && refill_time > 0).then(|| Self {
            size,
            refill_time,
            shares: size.saturating_mul(refill_time),
            burst: bucket.one_time_burst,
            filled: now,
        })
    }

    fn fill(&mut self, now: u64) {
        let elapsed = i128::from(now.saturating_sub(self.filled));
        self.filled = now;
        let full = self.size.saturating_mul(self.refill_time);
        self.shares = self.shares.saturating_add(elapsed.saturating_mul(self.size)).min(full);
    }

    /// How long until the debt is paid, in nanoseconds.
    fn debt(&self) -> u64 {
        if self.shares > 0 || self.burst > 0 {
            return 0;
        }
        // One share beyond nothing.
        let missing = 1 - self.shares;
        u64::try_from((missing + self.size - 1) / self.size).unwrap_or(u64::MAX)
    }

    fn take(&mut self, tokens: u64) {
        let burst = tokens.min(self.burst);
        self.burst -= burst;
        let shares = i128::from(tokens - burst).saturating_mul(self.refill_time);
        self.shares = self.shares.saturating_sub(shares);
    }
}

/// Buckets that several queues share.
pub struct RateLimiter {
    clock: Arc<dyn Clock>,
    bandwidth: Option<Mutex<Level>>,
    ops: Option<Mutex<Level>>,
}

impl RateLimiter {
    /// Full buckets of `limits`, by the time of `clock`.
    #[must_use]
    pub fn new(limits: &RateLimits, clock: Arc<dyn Clock>) -> Self {
        let now = clock.monotonic_nanoseconds();
        let level = |bucket: Option<Bucket>| bucket.and_then(|bucket| Level::new(&bucket, now)).map(Mutex::new);
        Self {
            bandwidth: level(limits.bandwidth),
            ops: level(limits.ops),
            clock,
        }
    }

    /// How long the next request has to wait; zero if it need not.
    #[must_use]
    pub fn wait(&self) -> Duration {
        let now = self.clock.monotonic_nanoseconds();
        let debt = |level: &Option<Mutex<Level>>| {
            level.as_ref().map_or(0, |level| {
                let mut level = lock(level);
                level.fill(now);
                level.debt()
            })
        };
        Duration::from_nanos(debt(&self.bandwidth).max(debt(&self.ops)))
    }

    /// Takes tokens for `ops` requests that moved `bytes`, whether they are there or not.
    pub fn take(&self, ops: u64, bytes: u64) {
        let now = self.clock.monotonic_nanoseconds();
        for (level, tokens) in [(&self.ops, ops), (&self.bandwidth, bytes)] {
            if let Some(level) = level {
                let mut level = lock(level);
                // What has flowed in by now is there first, or it would flow in after what is taken now and not overflow.
                level.fill(now);
                level.take(tokens);
            }
        }
    }
}

impl fmt::Debug for RateLimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimiter")
            .field("bandwidth", &self.bandwidth)
            .field("ops", &self.ops)
            .finish_non_exhaustive()
    }
}

/// A handler whose requests are limited.
struct Limited {
    inner: Box<dyn QueueHandler>,
    limiter: Arc<RateLimiter>,
    timer: OwnedFd,
    /// It is the limiter that the last request waits for, and not the handler.
    held_back: bool,
    /// Bytes of the group of chains that is under way, which was let through as a whole.
    group: Option<u64>,
}

/// `handler` under `limiter`, if there is one.
pub(super) fn limited(handler: Box<dyn QueueHandler>, limiter: Option<Arc<RateLimiter>>) -> Box<dyn QueueHandler> {
    let Some(limiter) = limiter else {
        return handler;
    };
    let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
    match timerfd_create(TimerfdClockId::Monotonic, flags) {
        Ok(timer) => Box::new(Limited {
            inner: handler,
            limiter,
            timer,
            held_back: false,
            group: None,
        }),
        Err(error) => {
            tracing::error!(%error, "the host has no timer for a rate limiter; a queue is not limited");
            handler
        }
    }
}

impl Limited {
    /// Sets the timer. Should that fail, the last setting stands or none; the next notification looks again.
    fn sleep(&self, time: Duration) {
        let time = time.clamp(SHORTEST_SLEEP, LONGEST_SLEEP);
        let timer = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec {
                tv_sec: time.as_secs() as i64,
                tv_nsec: time.subsec_nanos().into(),
            },
        };
        if let Err(error) = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &timer) {
            tracing::error!(%error, "a rate limiter's timer cannot be set");
        }
    }
}

impl QueueHandler for Limited {
    fn begin(&mut self, features: u64) {
        self.group = None;
        self.inner.begin(features);
    }

    fn handle(&mut self, chain: &Chain<'_>) -> Result<Handled, ChainError> {
        self.held_back = false;
        if self.group.is_none() {
            let wait = self.limiter.wait();
            if !wait.is_zero() {
                self.held_back = true;
                self.sleep(wait);
                return Ok(Handled::NotNow);
            }
        }
        let handled = self.inner.handle(chain);
        match handled {
            Ok(Handled::NotNow) => {}
            Ok(Handled::Held(written)) => {
                let bytes = self.group.unwrap_or(0) + chain.readable() + u64::from(written);
                self.group = Some(bytes);
            }
            Ok(Handled::Used(written)) => {
                let bytes = self.group.take().unwrap_or(0) + chain.readable() + u64::from(written);
                self.limiter.take(1, bytes);
            }
            // A driver that sends nonsense is no faster for it.
            Err(_) => {
                self.group = None;
                self.limiter.take(1, 0);
            }
        }
        handled
    }

    fn put_back(&mut self, all: bool) {
        self.group = None;
        self.inner.put_back(all);
    }

    fn source(&self) -> Option<BorrowedFd<'_>> {
        if self.held_back {
            Some(self.timer.as_fd())
        } else {
            self.inner.source()
        }
    }
}

#[cfg(test)]
mod tests;

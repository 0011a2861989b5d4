//! Any device made late: [`Delayed`] stands before it on the bus and keeps its answers back for a while.
//!
//! # Purpose
//! Whoever asks a device has to cope with an answer that comes late, from another thread, or never. Our own devices are
//! prompt, and so would hardly ever try that. With every device delayed by a random time, a whole guest does.
//!
//! # Invariants
//! - The access itself happens once and at once, before the guest is told to wait: only the answer is late. So an
//!   interrupt that follows from the access may arrive before its answer, as with a device in another process.
//! - One thread answers for all delayed devices of a machine ([`Delays`]). Nobody is called with a lock held.
//! - While paused ([`Delays::set_paused`]) no time passes and no answer is given, so that what is saved is one moment.
//! - What waits can be saved ([`Delays::state`]) and restored: [`Delayed`] then hands out a new ticket for each access that
//!   is [resumed](Device::resume), with the answer that the device gave when it was asked. Of two vCPUs that wait for
//!   the same access to the same register, either may get either answer: both accesses were under way, so they have no order.
//! - What waits is bounded by what is awaited: questions that nobody waits for any more are forgotten now and then.
//!
//! # Life
//! asked -(the device answers, at once or through a ticket of its own)-> due -(the delay is over)-> answered.

mod timer;

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Device, Response, Ticket};
use timer::{Access, Drawn, Timer};

/// How late a device's answers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lateness {
    /// By a random time of at least `min` and at most `max`, evenly distributed.
    Within {
        /// The shortest time.
        min: Duration,
        /// The longest time; not below `min`.
        max: Duration,
    },
    /// They never come: the device is asked, and its answer kept back for ever.
    Never,
    /// The device is not asked, and its ticket dropped, as if it had gone away.
    Lost,
}

/// How a device is delayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delay {
    /// By how much.
    pub lateness: Lateness,
    /// The number of accesses before that, which are answered at once.
    pub after: u64,
    /// Where the random times begin. The same seed gives the same times, other ones for each device.
    pub seed: u64,
}

/// What keeps the answers of delayed devices: a timer with a thread of its own. Dropped, it answers all that is owed with
/// all ones, and the devices are prompt from then on.
pub struct Delays {
    timer: Arc<Timer>,
    thread: Option<JoinHandle<()>>,
}

impl Delays {
    /// A timer without devices.
    ///
    /// # Errors
    /// The operating system's, if there can be no thread for it.
    pub fn new() -> io::Result<Self> {
        let timer = Arc::new(Timer::default());
        let theirs = Arc::clone(&timer);
        let thread = thread::Builder::new()
            .name("delays".to_owned())
            .spawn(move || theirs.run())?;
        Ok(Self {
            timer,
            thread: Some(thread),
        })
    }

    /// `device`, delayed.
    pub fn wrap(&self, device: Arc<dyn Device>, delay: Delay) -> Arc<Delayed> {
        let slot = self.timer.enrol(device.name(), delay);
        Arc::new(Delayed {
            device,
            timer: Arc::clone(&self.timer),
            slot,
        })
    }

    /// Forgets the device called `name`, which is gone: it is no part of [`state`](Self::state) any more.
    pub fn forget(&self, name: &str) {
        self.timer.forget(name);
    }

    /// Stops (true) or continues (false) the time of all delays. Once stopped, no answer is given until continued.
    pub fn set_paused(&self, paused: bool) {
        self.timer.set_paused(paused);
    }

    /// What is owed and what comes next. To be taken while paused, together with the states of the devices themselves.
    #[must_use]
    pub fn state(&self) -> DelaysState {
        DelaysState {
            devices: self.timer.state(),
        }
    }

    /// Replaces what is owed and what comes next. The accesses in it wait until they are [resumed](Device::resume).
    ///
    /// # Errors
    /// [`NotDelayed`] if there is a device in `state` that is not delayed here; nothing has changed then.
    pub fn restore(&self, state: DelaysState) -> Result<(), NotDelayed> {
        self.timer.restore(state.devices)
    }
}

impl Drop for Delays {
    fn drop(&mut self) {
        self.timer.stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of delayed answers panicked");
        }
    }
}

/// A device and the delay before its answers.
pub struct Delayed {
    device: Arc<dyn Device>,
    timer: Arc<Timer>,
    slot: usize,
}

impl Delayed {
    fn ask(&self, access: Access) -> Response {
        let make = || match access.write {
            None => self.device.read(access.offset, access.size),
            Some(value) => self.device.write(access.offset, access.size, value),
        };
        match self.timer.draw(self.slot) {
            Drawn::Prompt => make(),
            Drawn::Late(delay) => Timer::keep(&self.timer, self.slot, access, make(), delay),
            Drawn::Lost => Response::Later(Ticket::pair().0),
        }
    }
}

impl Device for Delayed {
    fn name(&self) -> &str {
        self.device.name()
    }

    fn read(&self, offset: u64, size: u8) -> Response {
        self.ask(Access {
            offset,
            size,
            write: None,
        })
    }

    fn write(&self, offset: u64, size: u8, value: u64) -> Response {
        self.ask(Access {
            offset,
            size,
            write: Some(value),
        })
    }

    fn resume(&self, offset: u64, size: u8, write: Option<u64>) -> Response {
        let access = Access { offset, size, write };
        // Only the device itself knows of an access that was not delayed.
        let Some(owed) = self.timer.take_restored(self.slot, access) else {
            return self.device.resume(offset, size, write);
        };
        let answer = match owed.answer {
            Some(value) => Response::Done(value),
            None => self.device.resume(offset, size, write),
        };
        Timer::keep(&self.timer, self.slot, access, answer, owed.left())
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        self.device.counters()
    }
}

/// What [`Delays::state`] gives.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DelaysState {
    /// The delayed devices.
    pub devices: Vec<DelayedState>,
}

/// One delayed device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DelayedState {
    /// Its name.
    pub device: String,
    /// How often it was accessed.
    pub accesses: u64,
    /// The state of its random times.
    pub random: u64,
    /// The answers it owes.
    pub owed: Vec<OwedState>,
}

/// One answer that is owed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwedState {
    /// The offset accessed.
    pub offset: u64,
    /// The width in bytes.
    pub size: u8,
    /// The value written, if it was a write.
    pub write: Option<u64>,
    /// What the device said; `None` if it has not yet.
    pub answer: Option<u64>,
    /// How much longer the answer is kept back, in nanoseconds; `None` for ever.
    pub left_ns: Option<u64>,
}

impl OwedState {
    fn left(&self) -> Duration {
        self.left_ns.map_or(Duration::MAX, Duration::from_nanos)
    }
}

/// A state tells of a device that is not delayed here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the device {device:?} was delayed when it was saved, and is not here")]
pub struct NotDelayed {
    /// Its name.
    pub device: String,
}

#[cfg(test)]
mod tests;

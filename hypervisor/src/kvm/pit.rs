//! The interval timer: that of the soft backend, on KVM's clock and wired to KVM's interrupt controllers.
//!
//! The kernel has one too, but does not tell how far its counter 0 has counted, so a machine with it could not be saved.
//! A guest with a local APIC does not use it once it is up.
//!
//! # Life
//! One thread waits for the next rise of counter 0's output. Whoever accesses the timer wakes it should that have come
//! nearer, and whoever continues the machine does.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kvm_ioctls::VmFd;

use super::clock::Clock;
use super::error::KvmError;
use crate::soft::pit::Pit;

/// The GSI of its line: the PICs' IRQ 0 and the IO-APIC's pin 2.
pub const GSI: u32 = 0;

/// The timer, with its thread.
#[derive(Debug)]
pub struct Timer {
    place: Arc<Place>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Place {
    fd: Arc<VmFd>,
    clock: Arc<Clock>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    pit: Pit,
    /// The level of the line as KVM knows it.
    told: bool,
    stopped: bool,
}

impl Timer {
    /// The timer of the machine `fd` after power-up: its line is up, and KVM knows.
    ///
    /// # Errors
    /// [`KvmError::Call`] if the host has no thread for it.
    pub fn new(fd: Arc<VmFd>, clock: Arc<Clock>) -> Result<Self, KvmError> {
        let place = Arc::new(Place {
            fd,
            clock,
            state: Mutex::new(State {
                pit: Pit::new(),
                told: true,
                stopped: false,
            }),
            changed: Condvar::new(),
        });
        let theirs = Arc::clone(&place);
        let thread = thread::Builder::new()
            .name("pit".into())
            .spawn(move || theirs.run())
            .map_err(|source| KvmError::Call {
                call: "a thread for the interval timer",
                source,
            })?;
        Ok(Self {
            place,
            thread: Some(thread),
        })
    }

    /// Lets `f` work on the timer at this moment, and carries what its line did to the interrupt controllers.
    ///
    /// # Errors
    /// What KVM says of the time.
    pub fn work<R>(&self, f: impl FnOnce(&mut Pit, u64) -> R) -> Result<R, KvmError> {
        let now = self.place.clock.now()?;
        let mut state = self.place.lock();
        let result = self.place.work(&mut state, now, f);
        self.place.changed.notify_one();
        Ok(result)
    }

    /// The timer, and the level of its line.
    pub fn save(&self) -> (Pit, bool) {
        let state = self.place.lock();
        (state.pit.clone(), state.told)
    }

    /// Another timer, whose line KVM knows already to be at `level`.
    pub fn restore(&self, pit: Pit, level: bool) {
        let mut state = self.place.lock();
        state.pit = pit;
        state.told = level;
    }

    /// After the clock was stopped or continued.
    pub fn clock_changed(&self) {
        drop(self.place.lock());
        self.place.changed.notify_one();
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.place.lock().stopped = true;
        self.place.changed.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the interval timer's thread panicked");
        }
    }
}

impl Place {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut state = self.lock();
        while !state.stopped {
            // While the clock stands, and should it not tell the time, whoever continues the machine comes by.
            let now = (!self.clock.is_held()).then(|| self.clock.now()).and_then(Result::ok);
            let wait = now.and_then(|now| {
                self.work(&mut state, now, |_, _| ());
                let deadline = state.pit.deadline()?;
                Some(Duration::from_nanos(deadline.saturating_sub(now)))
            });
            state = match wait {
                Some(wait) => {
                    let woken = self.changed.wait_timeout(state, wait);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn work<R>(&self, state: &mut State, now: u64, f: impl FnOnce(&mut Pit, u64) -> R) -> R {
        let before = state.pit.update(now);
        let result = f(&mut state.pit, now);
        let after = state.pit.update(now);
        if before.rose || after.rose {
            self.tell(state, false);
            self.tell(state, true);
        }
        self.tell(state, after.level);
        result
    }

    fn tell(&self, state: &mut State, level: bool) {
        if state.told == level {
            return;
        }
        state.told = level;
        if let Err(error) = self.fd.set_irq_line(GSI, level) {
            tracing::error!(level, %error, "KVM refused to change the interval timer's line");
        }
    }
}

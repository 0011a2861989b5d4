//! The alarm clock of one virtual machine: one thread that waits for the next of several deadlines.
//!
//! A vCPU that runs has no time to look at the clock, so before it runs it leaves its deadline here and is rung when that
//! comes. A vCPU that sleeps waits for its deadline itself and withdraws it from here.
//! # Invariants
//! - A deadline goes off once, not before its time, and never while the clock stands still.
//! - [`Alarms::arm`] is cheap and takes no other lock; it may be called with any lock of the machine held.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::clock::Clock;

/// No deadline.
const NEVER: u64 = u64::MAX;

/// The deadlines, one slot for each who waits.
#[derive(Debug)]
pub struct Alarms {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    deadlines: Box<[u64]>,
    /// Up to when the thread sleeps; an earlier deadline has to wake it.
    wakes_at: u64,
    stopped: bool,
}

impl Alarms {
    /// `slots` slots without deadlines.
    pub fn new(slots: usize) -> Self {
        let state = State {
            deadlines: vec![NEVER; slots].into(),
            wakes_at: 0,
            stopped: false,
        };
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    /// Sets or withdraws the deadline of `slot`, in nanoseconds of the machine's clock.
    pub fn arm(&self, slot: usize, deadline: Option<u64>) {
        let deadline = deadline.unwrap_or(NEVER);
        let mut state = self.lock();
        let Some(own) = state.deadlines.get_mut(slot) else {
            return;
        };
        *own = deadline;
        // A thread that wakes too early only goes back to sleep, so a later deadline need not disturb it.
        if deadline < state.wakes_at {
            state.wakes_at = deadline;
            self.changed.notify_one();
        }
    }

    /// Makes the thread look at the clock again, after it was stopped or continued.
    pub fn clock_changed(&self) {
        self.lock().wakes_at = 0;
        self.changed.notify_one();
    }

    /// Ends [`run`](Self::run).
    pub fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_one();
    }

    /// Calls `goes_off` with each slot whose deadline has come, until [`stop`](Self::stop).
    pub fn run(&self, clock: &Clock, mut goes_off: impl FnMut(usize)) {
        let mut due = Vec::new();
        let mut state = self.lock();
        while !state.stopped {
            let now = clock.now();
            for (slot, deadline) in state.deadlines.iter_mut().enumerate() {
                if *deadline <= now {
                    *deadline = NEVER;
                    due.push(slot);
                }
            }
            if !due.is_empty() {
                drop(state);
                due.drain(..).for_each(&mut goes_off);
                state = self.lock();
                continue;
            }
            let next = state.deadlines.iter().copied().min().unwrap_or(NEVER);
            state.wakes_at = next;
            state = match clock.until(next).filter(|_| next != NEVER) {
                Some(wait) => {
                    self.changed
                        .wait_timeout(state, wait)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn each_deadline_goes_off_once_and_not_before_its_time() {
        let (alarms, clock) = (Alarms::new(3), Clock::new());
        let (sender, receiver) = mpsc::channel();
        clock.set_paused(true);
        let start = clock.now();
        let (early, late) = (start + 1_000_000, start + 5_000_000);
        alarms.arm(0, Some(late));
        alarms.arm(1, Some(early));
        alarms.arm(2, Some(early));
        alarms.arm(2, None);
        clock.set_paused(false);
        std::thread::scope(|scope| {
            scope.spawn(|| alarms.run(&clock, |slot| sender.send((slot, clock.now())).unwrap()));
            let mut gone_off = [receiver.recv(), receiver.recv()].map(Result::unwrap);
            alarms.arm(2, Some(0));
            let past = receiver.recv().unwrap();
            alarms.stop();
            gone_off.sort_unstable();
            assert_eq!((gone_off[0].0, gone_off[1].0), (0, 1));
            assert!(gone_off[0].1 >= late && gone_off[1].1 >= early);
            assert_eq!(past.0, 2, "a deadline of the past goes off at once");
        });
        assert!(receiver.try_recv().is_err());
    }

    #[test]
    fn nothing_goes_off_while_the_clock_stands_still() {
        let (alarms, clock) = (Alarms::new(1), Clock::new());
        let (sender, receiver) = mpsc::channel();
        clock.set_paused(true);
        std::thread::scope(|scope| {
            scope.spawn(|| alarms.run(&clock, |slot| sender.send(slot).unwrap()));
            alarms.arm(0, Some(clock.now() + 1));
            let early = receiver.recv_timeout(std::time::Duration::from_millis(5));
            clock.set_paused(false);
            alarms.clock_changed();
            let gone_off = receiver.recv();
            alarms.stop();
            assert!(early.is_err());
            assert_eq!(gone_off, Ok(0));
        });
    }

    #[test]
    fn a_slot_that_is_not_there_is_ignored() {
        Alarms::new(1).arm(1, Some(0));
    }
}

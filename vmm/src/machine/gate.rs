//! Who may run: the machine's wish, and the vCPUs that heed it.
//!
//! # Invariants
//! - A vCPU that is not *running* executes nothing: it is before its start, held, waiting for a device, or gone. While
//!   [`Gate::hold`] holds, none is running.
//! - [`Wish::Stop`] is final.
//!
//! # Life
//! A machine begins held. `Hold` -[`Gate::open`]-> `Run` -[`Gate::hold`]-> `Hold` … -[`Gate::stop`]-> `Stop`.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use reprise_devices::Ticket;

/// What the machine wants of its vCPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Run,
    Hold,
    Stop,
}

/// One per machine.
#[derive(Debug)]
pub(crate) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    wish: Wish,
    seats: Vec<Figures>,
}

#[derive(Debug, Default)]
struct Figures {
    running: bool,
    /// How often the vCPU has told its counters.
    told: u64,
    counters: Vec<(&'static str, u64)>,
}

impl Gate {
    /// A gate for `seats` vCPUs, closed.
    pub fn new(seats: usize) -> Arc<Self> {
        let seats = (0..seats).map(|_| Figures::default()).collect();
        Arc::new(Self {
            state: Mutex::new(State {
                wish: Wish::Hold,
                seats,
            }),
            changed: Condvar::new(),
        })
    }

    /// The place of vCPU `index`.
    pub fn seat(self: &Arc<Self>, index: usize) -> Seat {
        Seat {
            gate: Arc::clone(self),
            index,
        }
    }

    /// Lets the vCPUs run, unless they are stopped.
    pub fn open(&self) {
        self.set(Wish::Run);
    }

    /// Wants the vCPUs held. They must be kicked besides; [`wait_held`](Self::wait_held) tells when they are.
    pub fn hold(&self) {
        self.set(Wish::Hold);
    }

    /// Wants the vCPUs gone, for good. They must be kicked besides.
    pub fn stop(&self) {
        self.set(Wish::Stop);
    }

    /// Waits until no vCPU is running; the first that still is after `timeout`, if any.
    pub fn wait_held(&self, timeout: Duration) -> Result<(), usize> {
        let running = |state: &mut State| state.seats.iter().any(|seat| seat.running);
        let waited = self.changed.wait_timeout_while(self.lock(), timeout, running);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.seats.iter().position(|seat| seat.running).map_or(Ok(()), Err)
    }

    /// The vCPUs' counters, brought up to date by `kick`; those of a vCPU that does not come out within `timeout` are as
    /// it told them last.
    pub fn counters(&self, kick: impl FnOnce(), timeout: Duration) -> Vec<Vec<(&'static str, u64)>> {
        let before: Vec<u64> = self.lock().seats.iter().map(|seat| seat.told).collect();
        kick();
        let stale = |state: &mut State| {
            let told = state.seats.iter().zip(&before);
            state.wish == Wish::Run
                && told
                    .into_iter()
                    .any(|(seat, before)| seat.running && seat.told == *before)
        };
        let waited = self.changed.wait_timeout_while(self.lock(), timeout, stale);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.seats.iter().map(|seat| seat.counters.clone()).collect()
    }

    fn set(&self, wish: Wish) {
        let mut state = self.lock();
        if state.wish != Wish::Stop {
            state.wish = wish;
        }
        drop(state);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each critical section leaves the state valid at every step, so a panic elsewhere is not ours to spread.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits, without `seat` running, until the machine runs and `ready` says so; false once it is stopped.
    fn wait(&self, seat: usize, mut ready: impl FnMut() -> bool) -> bool {
        let mut state = self.lock();
        loop {
            let goes_on = state.wish == Wish::Run && ready();
            if state.seats[seat].running != goes_on {
                state.seats[seat].running = goes_on;
                self.changed.notify_all();
            }
            if goes_on || state.wish == Wish::Stop {
                return goes_on;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// A vCPU's place at the gate. Dropped, the vCPU is gone.
#[derive(Debug)]
pub(crate) struct Seat {
    gate: Arc<Gate>,
    index: usize,
}

impl Seat {
    /// Stays here while the machine is held; false once it is stopped.
    pub fn may_go_on(&self) -> bool {
        self.gate.wait(self.index, || true)
    }

    /// The answer that `ticket` is for, once it is there and the machine runs; `None` once the machine is stopped.
    pub fn wait(&self, ticket: &Ticket) -> Option<u64> {
        let gate = Arc::clone(&self.gate);
        ticket.on_ready(move || {
            // Taken and let go, so that the waiting thread is either before its look at the ticket or asleep.
            drop(gate.lock());
            gate.changed.notify_all();
        });
        let mut value = None;
        let goes_on = self.gate.wait(self.index, || {
            value = ticket.try_take();
            value.is_some()
        });
        value.filter(|_| goes_on)
    }

    /// Tells the vCPU's counters.
    pub fn publish(&self, counters: Vec<(&'static str, u64)>) {
        let mut state = self.gate.lock();
        let figures = &mut state.seats[self.index];
        figures.counters = counters;
        figures.told += 1;
        drop(state);
        self.gate.changed.notify_all();
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.gate.lock().seats[self.index].running = false;
        self.gate.changed.notify_all();
    }
}

#[cfg(test)]
mod tests;

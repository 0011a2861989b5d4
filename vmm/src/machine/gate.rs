//! Who may run: the machine's wish, and the vCPUs that heed it.
//!
//! # Invariants
//! - A vCPU that is not *running* executes nothing: it is before its start, held, parked, or gone. While [`Gate::hold`]
//!   holds, none is running.
//! - A *parked* vCPU waits for a device. Its thread waits here and nowhere else, so that the machine is held, stopped,
//!   counted and saved while a device is silent.
//! - [`Wish::Stop`] is final.
//! - No lock is taken with the gate's held but that of a ticket, so wakers may come from anywhere.
//! - A vCPU belongs to its thread. Who wants its state asks here, and the thread tells while it waits.
//!
//! # Life
//! A machine begins held. `Hold` -[`Gate::open`]-> `Run` -[`Gate::hold`]-> `Hold` … -[`Gate::stop`]-> `Stop`.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use reprise_devices::Ticket;
use reprise_hypervisor::{Vcpu, VcpuError, VcpuState};

use super::parked::Parked;

/// Figures by name, in a fixed order.
type Figures = Vec<(&'static str, u64)>;

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
    seats: Vec<Place>,
}

/// What is known of one vCPU.
#[derive(Debug, Default)]
struct Place {
    running: bool,
    gone: bool,
    /// How often the vCPU has told its counters.
    told: u64,
    counters: Figures,
    /// Somebody wants to know its state.
    asked: bool,
    /// What it said then.
    state: Option<Result<VcpuState, VcpuError>>,
    /// What it waits for.
    waiting: Option<Waiting>,
    /// What it waited for when it was saved, until it waits again.
    restored: Option<Parked>,
    /// Somebody says that it may have to wait no longer.
    called: bool,
    /// How often it was parked.
    parks: u64,
    /// For how long, without the time since it was parked last.
    parked: Duration,
    /// Answers that came after it had gone on without them.
    stale: u64,
}

#[derive(Debug)]
struct Waiting {
    parked: Parked,
    ticket: Ticket,
    /// When it was parked, until the answer is there.
    since: Option<Instant>,
}

impl Gate {
    /// A gate for `seats` vCPUs, closed.
    pub fn new(seats: usize) -> Arc<Self> {
        let seats = (0..seats).map(|_| Place::default()).collect();
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

    /// What to call when something has happened that may end vCPU `index`'s wait for a device.
    pub fn call(self: &Arc<Self>, index: usize) -> Arc<dyn Fn() + Send + Sync> {
        let gate = Arc::clone(self);
        Arc::new(move || {
            gate.lock().seats[index].called = true;
            gate.changed.notify_all();
        })
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
    /// it told them last. One that is parked has told them.
    pub fn counters(&self, kick: impl FnOnce(), timeout: Duration) -> Vec<Figures> {
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
        state.seats.iter().map(Place::figures).collect()
    }

    /// What vCPU `index` waits for, if it is parked, with the answer if that is there at this moment. For a machine that is
    /// held, or not started after [`restore`](Self::restore).
    pub fn parked(&self, index: usize) -> Option<Parked> {
        let state = self.lock();
        let seat = &state.seats[index];
        match &seat.waiting {
            Some(waiting) => Some(Parked {
                answer: waiting.ticket.try_take(),
                ..waiting.parked
            }),
            None => seat.restored,
        }
    }

    /// Has vCPU `index`, which has not run yet, begin with waiting as it did when it was saved.
    pub fn restore(&self, index: usize, parked: Parked) {
        self.lock().seats[index].restored = Some(parked);
    }

    /// The state of each vCPU, which its thread tells while it waits here: of a machine that is held. After `timeout` the
    /// first that has not told; one that is gone is not waited for.
    pub fn states(&self, timeout: Duration) -> Result<Vec<Result<VcpuState, VcpuError>>, usize> {
        let mut state = self.lock();
        for seat in &mut state.seats {
            (seat.asked, seat.state) = (true, None);
        }
        self.changed.notify_all();
        let waited = self.changed.wait_timeout_while(state, timeout, |state| {
            state.seats.iter().any(|seat| seat.state.is_none() && !seat.gone)
        });
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let told = state.seats.iter_mut().enumerate().map(|(index, seat)| {
            seat.asked = false;
            seat.state.take().ok_or(index)
        });
        // All of them, so that none is left to tell what nobody wants.
        let told: Vec<_> = told.collect();
        told.into_iter().collect()
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

    /// Waits, without `seat` running, until the machine runs and `ready` says so; `None` once it is stopped. Meanwhile tells
    /// who asks what state its `vcpu` is in.
    fn wait<R>(&self, seat: usize, vcpu: &dyn Vcpu, mut ready: impl FnMut(&mut Place) -> Option<R>) -> Option<R> {
        let mut state = self.lock();
        loop {
            if state.seats[seat].asked {
                drop(state);
                let told = vcpu.state();
                state = self.lock();
                let place = &mut state.seats[seat];
                (place.asked, place.state) = (false, Some(told));
                self.changed.notify_all();
            }
            let found = ready(&mut state.seats[seat]);
            let goes_on = state.wish == Wish::Run && found.is_some();
            if state.seats[seat].running != goes_on {
                state.seats[seat].running = goes_on;
                self.changed.notify_all();
            }
            if goes_on || state.wish == Wish::Stop {
                return found.filter(|_| goes_on);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A waker that says that somebody has to look.
    fn look(self: &Arc<Self>) -> impl FnOnce() + Send + 'static {
        let gate = Arc::clone(self);
        move || {
            // Taken and let go, so that the waiting thread is either before its look or asleep.
            drop(gate.lock());
            gate.changed.notify_all();
        }
    }
}

impl Place {
    /// Whether the vCPU has to wait no longer, or should ask whether it has.
    fn look(&mut self) -> Option<Look> {
        let waiting = self.waiting.as_mut()?;
        let answer = waiting.ticket.try_take();
        if answer.is_some()
            && let Some(since) = waiting.since.take()
        {
            self.parked += since.elapsed();
        }
        if self.called {
            return Some(Look::Called);
        }
        let lost = waiting.ticket.is_lost();
        answer.map(|value| Look::Answered { value, lost })
    }

    /// Ends the wait.
    fn leave(&mut self) -> Option<Ticket> {
        let waiting = self.waiting.take()?;
        self.parked += waiting.since.map_or(Duration::ZERO, |since| since.elapsed());
        Some(waiting.ticket)
    }

    /// What the vCPU told, and what it did not know: how it was parked.
    fn figures(&self) -> Figures {
        let since = self.waiting.as_ref().and_then(|waiting| waiting.since);
        let parked = self.parked + since.map_or(Duration::ZERO, |since| since.elapsed());
        let mut figures = self.counters.clone();
        let own = [
            ("stale_answers", self.stale),
            ("parked", self.parks),
            ("parked_us", u64::try_from(parked.as_micros()).unwrap_or(u64::MAX)),
        ];
        for (name, figure) in own {
            match figures.iter_mut().find(|(told, _)| *told == name) {
                Some((_, told)) => *told += figure,
                None => figures.push((name, figure)),
            }
        }
        figures
    }
}

/// What a parked vCPU sees.
#[derive(Clone, Copy)]
enum Look {
    Answered { value: u64, lost: bool },
    Called,
}

/// How a wait for a device ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waited {
    /// With an answer; all ones, and `lost`, if nobody will ever give one.
    Answered {
        /// The answer.
        value: u64,
        /// Whether the device dropped its ticket.
        lost: bool,
    },
    /// The vCPU goes on without it.
    Cancelled,
    /// The machine was stopped.
    Stopped,
}

/// A vCPU's place at the gate. Dropped, the vCPU is gone.
#[derive(Debug)]
pub(crate) struct Seat {
    gate: Arc<Gate>,
    index: usize,
}

impl Seat {
    /// Stays here while the machine is held; false once it is stopped.
    pub fn may_go_on(&self, vcpu: &dyn Vcpu) -> bool {
        self.gate.wait(self.index, vcpu, |_| Some(())).is_some()
    }

    /// Parks `vcpu` until the answer that `ticket` is for is there, and the machine runs; its counters are told before. Whenever the
    /// vCPU is [called](Gate::call), it is asked whether it still waits; if not, the answer is counted as stale when it comes.
    pub fn park(&self, parked: Parked, ticket: Ticket, vcpu: &dyn Vcpu) -> Waited {
        let since = Instant::now();
        // Still running, for the gate: it ends before anybody can mind.
        ticket.hasten();
        if let Some(answered) = self.answered_soon(&ticket, since) {
            return answered;
        }
        self.publish(vcpu.counters());
        ticket.on_ready(self.gate.look());
        let mut state = self.gate.lock();
        let place = &mut state.seats[self.index];
        place.parks += 1;
        place.waiting = Some(Waiting {
            parked,
            ticket,
            since: Some(since),
        });
        drop(state);
        let waited = loop {
            match self.gate.wait(self.index, vcpu, Place::look) {
                Some(Look::Answered { value, lost }) => break Waited::Answered { value, lost },
                None => break Waited::Stopped,
                Some(Look::Called) => {
                    // Put back before the question: who calls after that is heard again.
                    self.gate.lock().seats[self.index].called = false;
                    if vcpu.waiting().is_none() {
                        break Waited::Cancelled;
                    }
                }
            }
        };
        let ticket = self.gate.lock().seats[self.index].leave();
        if let (Waited::Cancelled, Some(ticket)) = (waited, ticket) {
            let (gate, index) = (Arc::clone(&self.gate), self.index);
            ticket.on_ready(move || gate.lock().seats[index].stale += 1);
        }
        waited
    }

    /// The answer that came before anybody could mind, `since` it is waited for; `None` if it has not, or if the vCPU is wanted.
    fn answered_soon(&self, ticket: &Ticket, since: Instant) -> Option<Waited> {
        let value = ticket.try_take()?;
        let mut state = self.gate.lock();
        let runs = state.wish == Wish::Run;
        let place = &mut state.seats[self.index];
        (runs && !place.called && !place.asked).then(|| {
            place.parks += 1;
            place.parked += since.elapsed();
            let lost = ticket.is_lost();
            Waited::Answered { value, lost }
        })
    }

    /// What the vCPU waited for when it was saved, once.
    pub fn take_restored(&self) -> Option<Parked> {
        self.gate.lock().seats[self.index].restored.take()
    }

    /// Tells the vCPU's counters.
    pub fn publish(&self, counters: Figures) {
        let mut state = self.gate.lock();
        let place = &mut state.seats[self.index];
        place.counters = counters;
        place.told += 1;
        drop(state);
        self.gate.changed.notify_all();
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut state = self.gate.lock();
        let place = &mut state.seats[self.index];
        (place.running, place.gone) = (false, true);
        drop(state);
        self.gate.changed.notify_all();
    }
}

#[cfg(test)]
mod tests;

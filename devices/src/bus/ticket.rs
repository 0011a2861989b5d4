//! Two ends of one late answer: [`Completion`] gives it, [`Ticket`] receives it.
//!
//! # Invariants
//! - A question has exactly one answer. [`Completion::complete`] consumes the giving end, and a giving end that is
//!   dropped (its device died, was unplugged, forgot) has thereby answered all ones.
//! - Once there, the answer stays; asking the ticket again finds it again.
//! - Whether the answer was given or the giving end was dropped can be told apart ([`Ticket::is_lost`]), for those who
//!   write the log; the guest sees all ones either way.
//!
//! - Whoever is about to wait may first look for the answer itself ([`Ticket::hasten`]), if the device has a way to do that: an
//!   answer that comes soon then takes no detour by another thread. It is no wait, for it ends soon in any case.
//!
//! # Life
//! `Owed` -complete or drop-> `Answered`. A waker set while owed runs once, on the answering thread; one set after the
//! answer runs at once, on the setting thread.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::sync::lock;

/// Who brings answers in on the thread of whoever waits for one.
pub trait Carrier: Send + Sync {
    /// Looks for answers until `ticket` has its own, somebody else looks for them, or a moment has passed: no longer than a vCPU
    /// may be held up.
    fn carry(&self, ticket: &Ticket);
}

/// The waiting end of a late answer. Dropping it is allowed: the answer then goes nowhere.
pub struct Ticket {
    shared: Arc<Shared>,
    carrier: Option<Arc<dyn Carrier>>,
    keep: u64,
    set: u64,
}

/// The giving end of a late answer, kept by the device. Dropped, it answers all ones.
///
/// Nobody can answer twice:
/// ```compile_fail,E0382
/// let (ticket, completion) = reprise_devices::Ticket::pair();
/// completion.complete(1);
/// completion.complete(2);
/// ```
#[must_use = "dropping a completion answers all ones"]
pub struct Completion {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    answered: Condvar,
}

enum State {
    Owed {
        waker: Option<Waker>,
        /// Whether a thread sleeps until the answer is there.
        slept_for: bool,
    },
    Answered {
        value: u64,
        lost: bool,
    },
}

type Waker = Box<dyn FnOnce() + Send>;

impl State {
    /// Says that the calling thread is about to sleep until the answer is there, if it is not.
    fn sleep_for(&mut self) {
        if let Self::Owed { slept_for, .. } = self {
            *slept_for = true;
        }
    }
}

impl Ticket {
    /// The two ends of a new question.
    pub fn pair() -> (Self, Completion) {
        let shared = Arc::new(Shared {
            state: Mutex::new(State::Owed {
                waker: None,
                slept_for: false,
            }),
            answered: Condvar::new(),
        });
        (
            Self {
                shared: Arc::clone(&shared),
                carrier: None,
                keep: u64::MAX,
                set: 0,
            },
            Completion { shared },
        )
    }

    /// This ticket, whose answer `carrier` may bring in.
    #[must_use]
    pub fn carried_by(self, carrier: Arc<dyn Carrier>) -> Self {
        Self {
            carrier: Some(carrier),
            ..self
        }
    }

    /// Has the calling thread, which is about to wait, look for the answer itself, if there is a way. Returns soon, with or
    /// without it.
    pub fn hasten(&self) {
        if let Some(carrier) = &self.carrier
            && self.try_take().is_none()
        {
            carrier.carry(self);
        }
    }

    /// The answer, if it is there.
    #[must_use]
    pub fn try_take(&self) -> Option<u64> {
        self.answer_in(&lock(&self.shared.state))
    }

    /// Whether nobody will ever answer: the giving end was dropped, and all ones stand for the answer.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        matches!(*lock(&self.shared.state), State::Answered { lost: true, .. })
    }

    /// Has `waker` run once as soon as the answer is there, which may be now and on this thread. Another waker that was
    /// set before and has not run never will. A waker must not block: it runs on the thread of whoever answers.
    pub fn on_ready(&self, waker: impl FnOnce() + Send + 'static) {
        let mut state = lock(&self.shared.state);
        let replaced = match &mut *state {
            State::Owed { waker: set, .. } => set.replace(Box::new(waker)),
            State::Answered { .. } => {
                drop(state);
                return waker();
            }
        };
        // Dropped after the lock: what a waker owns may do as it likes when it goes.
        drop(state);
        drop(replaced);
    }

    /// The answer, waiting as long as it takes.
    #[must_use]
    pub fn wait(&self) -> u64 {
        self.hasten();
        let mut state = lock(&self.shared.state);
        loop {
            if let Some(answer) = self.answer_in(&state) {
                return answer;
            }
            state.sleep_for();
            state = self.shared.answered.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The answer, waiting for at most `timeout`; `None` if it is still owed then.
    #[must_use]
    pub fn wait_timeout(&self, timeout: Duration) -> Option<u64> {
        let mut state = lock(&self.shared.state);
        state.sleep_for();
        let owed = |state: &mut State| matches!(state, State::Owed { .. });
        let waited = self.shared.answered.wait_timeout_while(state, timeout, owed);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        self.answer_in(&state)
    }

    /// This ticket, with the bits of its answer reduced to `keep` and those of `set` added.
    pub(crate) fn masked(self, keep: u64, set: u64) -> Self {
        Self {
            keep: self.keep & keep,
            set: self.set & keep | set,
            ..self
        }
    }

    fn answer_in(&self, state: &State) -> Option<u64> {
        match state {
            State::Owed { .. } => None,
            State::Answered { value, .. } => Some(value & self.keep | self.set),
        }
    }
}

impl Completion {
    /// Answers: the value read, in the low bytes; anything for a write.
    pub fn complete(self, value: u64) {
        self.shared.answer(value, false);
    }

    /// Whether somebody still holds the ticket. Once false it stays false, and an answer goes nowhere.
    #[must_use]
    pub fn is_awaited(&self) -> bool {
        // Only a ticket and its completion hold on to what they share, and neither can be copied.
        Arc::strong_count(&self.shared) > 1
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        self.shared.answer(u64::MAX, true);
    }
}

impl Shared {
    /// Answers unless answered: the drop at the end of [`Completion::complete`] comes here too, and changes nothing.
    fn answer(&self, value: u64, lost: bool) {
        let mut state = lock(&self.state);
        let State::Owed { waker, slept_for } = &mut *state else {
            return;
        };
        let (waker, slept_for) = (waker.take(), *slept_for);
        *state = State::Answered { value, lost };
        drop(state);
        if slept_for {
            self.answered.notify_all();
        }
        if let Some(waker) = waker {
            waker();
        }
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Ticket").field(&self.try_take()).finish()
    }
}

impl fmt::Debug for Completion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Completion")
    }
}

//! The answers that are kept back, in the order in which they are due, and the thread that gives them.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Delay, DelayedState, Lateness, NotDelayed, OwedState};
use crate::sync::lock;
use crate::{Completion, Response, Ticket};

/// How many questions may wait before those that nobody waits for are looked for: more than a machine has vCPUs.
const CROWD: usize = 1024;

/// One access to a device's register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Access {
    pub offset: u64,
    pub size: u8,
    pub write: Option<u64>,
}

/// What is to become of an access.
pub(super) enum Drawn {
    /// Answered at once.
    Prompt,
    /// Answered after this time; [`Duration::MAX`] is never.
    Late(Duration),
    /// Never made.
    Lost,
}

#[derive(Default)]
pub(super) struct Timer {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    slots: Vec<Slot>,
    time: Time,
    /// Answered by the device, by the time at which they are due, and a number.
    due: BTreeMap<(Duration, u64), Owed>,
    /// Not answered by the device yet, by number.
    asked: BTreeMap<u64, Asked>,
    /// From before a restore, not resumed yet.
    restored: Vec<(usize, OwedState)>,
    /// The number of the next question.
    next: u64,
    /// Whether the thread is giving an answer at this moment.
    answering: bool,
    stopped: bool,
}

/// One device.
struct Slot {
    name: String,
    delay: Delay,
    accesses: u64,
    random: u64,
}

struct Owed {
    slot: usize,
    access: Access,
    value: u64,
    completion: Completion,
}

struct Asked {
    slot: usize,
    access: Access,
    ticket: Arc<Ticket>,
    completion: Completion,
    delay: Duration,
}

/// Time that can be stopped.
struct Time {
    before: Duration,
    since: Option<Instant>,
}

impl Default for Time {
    fn default() -> Self {
        Self {
            before: Duration::ZERO,
            since: Some(Instant::now()),
        }
    }
}

impl Time {
    fn now(&self) -> Duration {
        self.before + self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    fn set_paused(&mut self, paused: bool) {
        self.before = self.now();
        self.since = (!paused).then(Instant::now);
    }
}

impl Timer {
    /// Gives answers when they are due, until stopped.
    pub fn run(&self) {
        let mut state = lock(&self.state);
        while !state.stopped {
            let now = state.time.now();
            let paused = state.time.since.is_none();
            let wait = match state.due.first_key_value() {
                Some(((due, _), _)) if !paused => due.saturating_sub(now),
                _ => Duration::MAX,
            };
            if wait.is_zero()
                && let Some((_, owed)) = state.due.pop_first()
            {
                state.answering = true;
                drop(state);
                owed.completion.complete(owed.value);
                state = lock(&self.state);
                state.answering = false;
                self.changed.notify_all();
            } else if wait == Duration::MAX {
                state = self.wait(state);
            } else {
                let waited = self.changed.wait_timeout(state, wait);
                (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    pub fn stop(&self) {
        let mut state = lock(&self.state);
        state.stopped = true;
        let gone = (std::mem::take(&mut state.due), std::mem::take(&mut state.asked));
        drop(state);
        self.changed.notify_all();
        // Only now, without the lock: whoever waits is told.
        drop(gone);
    }

    pub fn set_paused(&self, paused: bool) {
        let mut state = lock(&self.state);
        state.time.set_paused(paused);
        self.changed.notify_all();
        while state.answering {
            state = self.wait(state);
        }
    }

    /// A place for the device `name`.
    pub fn enrol(&self, name: &str, delay: Delay) -> usize {
        let mut state = lock(&self.state);
        state.slots.push(Slot {
            name: name.to_owned(),
            delay,
            accesses: 0,
            random: name.bytes().fold(delay.seed, |seed, byte| mix(seed ^ u64::from(byte))),
        });
        state.slots.len() - 1
    }

    /// The device called `name` is gone; its slot stays, for whoever still holds it.
    pub fn forget(&self, name: &str) {
        let mut state = lock(&self.state);
        for slot in state.slots.iter_mut().filter(|slot| slot.name == name) {
            slot.name.clear();
        }
    }

    /// Decides on the next access to the device in `slot`.
    pub fn draw(&self, slot: usize) -> Drawn {
        let mut state = lock(&self.state);
        if state.stopped {
            return Drawn::Prompt;
        }
        let slot = &mut state.slots[slot];
        slot.accesses = slot.accesses.saturating_add(1);
        if slot.accesses <= slot.delay.after {
            return Drawn::Prompt;
        }
        match slot.delay.lateness {
            Lateness::Never => Drawn::Late(Duration::MAX),
            Lateness::Lost => Drawn::Lost,
            Lateness::Within { min, max } => {
                // SplitMix64 (Steele, Lea and Flood, 2014): one word of state, which is saved as it stands.
                slot.random = slot.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let span = u64::try_from(max.saturating_sub(min).as_nanos()).unwrap_or(u64::MAX);
                let more = mix(slot.random) % span.saturating_add(1);
                Drawn::Late(min.saturating_add(Duration::from_nanos(more)))
            }
        }
    }

    /// Keeps the answer to an access back for `delay` from when the device gives it.
    pub fn keep(timer: &Arc<Self>, slot: usize, access: Access, answer: Response, delay: Duration) -> Response {
        let (ticket, completion) = Ticket::pair();
        match answer {
            Response::Done(value) => timer.make_due(
                Owed {
                    slot,
                    access,
                    value,
                    completion,
                },
                delay,
            ),
            Response::Later(inner) => {
                let inner = Arc::new(inner);
                let mut state = lock(&timer.state);
                let number = state.number();
                state.asked.insert(
                    number,
                    Asked {
                        slot,
                        access,
                        ticket: Arc::clone(&inner),
                        completion,
                        delay,
                    },
                );
                drop(state);
                let timer = Arc::clone(timer);
                inner.on_ready(move || timer.device_answered(number));
            }
        }
        Response::Later(ticket)
    }

    fn make_due(&self, owed: Owed, delay: Duration) {
        let mut state = lock(&self.state);
        if state.stopped {
            drop(state);
            return owed.completion.complete(owed.value);
        }
        let due = state.time.now().saturating_add(delay);
        let number = state.number();
        let forgotten = state.forget();
        state.due.insert((due, number), owed);
        let first = state.due.first_key_value().is_some_and(|(key, _)| key.1 == number);
        drop(state);
        drop(forgotten);
        if first {
            self.changed.notify_all();
        }
    }

    fn device_answered(&self, number: u64) {
        let Some(asked) = lock(&self.state).asked.remove(&number) else {
            return;
        };
        // A device that is gone is not late: its loss is told at once, by the completion that is dropped here.
        if asked.ticket.is_lost() {
            return;
        }
        if let Some(value) = asked.ticket.try_take() {
            let owed = Owed {
                slot: asked.slot,
                access: asked.access,
                value,
                completion: asked.completion,
            };
            self.make_due(owed, asked.delay);
        }
    }

    pub fn state(&self) -> Vec<DelayedState> {
        let state = lock(&self.state);
        let now = state.time.now();
        let mut devices: Vec<DelayedState> = state.slots.iter().map(Slot::state).collect();
        let left = |duration: Duration| u64::try_from(duration.as_nanos()).ok();
        for ((due, _), owed) in state.due.iter().filter(|(_, owed)| owed.completion.is_awaited()) {
            let left_ns = left(if *due == Duration::MAX {
                *due
            } else {
                due.saturating_sub(now)
            });
            devices[owed.slot]
                .owed
                .push(owed.access.state(Some(owed.value), left_ns));
        }
        for asked in state.asked.values().filter(|asked| asked.completion.is_awaited()) {
            devices[asked.slot]
                .owed
                .push(asked.access.state(None, left(asked.delay)));
        }
        for (slot, owed) in &state.restored {
            devices[*slot].owed.push(owed.clone());
        }
        devices.retain(|device| !device.device.is_empty());
        devices
    }

    pub fn restore(&self, devices: Vec<DelayedState>) -> Result<(), NotDelayed> {
        let mut state = lock(&self.state);
        let find = |saved: DelayedState| {
            let slot = state.slots.iter().position(|slot| slot.name == saved.device);
            slot.map(|slot| (slot, saved.clone()))
                .ok_or(NotDelayed { device: saved.device })
        };
        let found: Vec<(usize, DelayedState)> = devices.into_iter().map(find).collect::<Result<_, _>>()?;
        let gone = (std::mem::take(&mut state.due), std::mem::take(&mut state.asked));
        state.restored.clear();
        for (slot, saved) in found {
            state.slots[slot].accesses = saved.accesses;
            state.slots[slot].random = saved.random;
            state.restored.extend(saved.owed.into_iter().map(|owed| (slot, owed)));
        }
        drop(state);
        drop(gone);
        Ok(())
    }

    /// Takes an access from before a restore.
    pub fn take_restored(&self, slot: usize, access: Access) -> Option<OwedState> {
        let mut state = lock(&self.state);
        let place = state
            .restored
            .iter()
            .position(|(of, owed)| *of == slot && owed.is(access))?;
        Some(state.restored.remove(place).1)
    }

    /// How many answers are kept back.
    #[cfg(test)]
    pub fn waiting(&self) -> usize {
        lock(&self.state).due.len()
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Questions that nobody waits for any more, once there are many. To be dropped without the lock.
    fn forget(&mut self) -> Vec<Owed> {
        if self.due.len() < CROWD {
            return Vec::new();
        }
        let forgotten = self.due.extract_if(.., |_, owed| !owed.completion.is_awaited());
        forgotten.map(|(_, owed)| owed).collect()
    }
}

impl Slot {
    fn state(&self) -> DelayedState {
        DelayedState {
            device: self.name.clone(),
            accesses: self.accesses,
            random: self.random,
            owed: Vec::new(),
        }
    }
}

impl Access {
    fn state(self, answer: Option<u64>, left_ns: Option<u64>) -> OwedState {
        OwedState {
            offset: self.offset,
            size: self.size,
            write: self.write,
            answer,
            left_ns,
        }
    }
}

impl OwedState {
    fn is(&self, access: Access) -> bool {
        (self.offset, self.size, self.write) == (access.offset, access.size, access.write)
    }
}

/// The output function of SplitMix64.
fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

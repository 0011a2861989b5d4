//! The local APIC's timer (SDM Vol. 3, "APIC Timer").
//!
//! It counts the machine's clock, 1 GHz, through the divider; in TSC-deadline mode it compares the time-stamp counter.
//! Nothing runs here: the owner asks for the [deadline](Timer::deadline), waits, and then says [`Timer::expire`].

use crate::StateError;
use crate::soft::clock::LATEST;
use crate::state::ApicTimerState;
use crate::tsc::TscRate;

/// What there is of the divide configuration register.
const DIVIDE: u32 = 0b1011;

/// A moment, on the machine's clock and on the vCPU's time-stamp counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Nanoseconds of the machine's [`Clock`](crate::soft::clock::Clock).
    pub clock: u64,
    /// The time-stamp counter.
    pub tsc: u64,
}

/// What the local vector table's entry says the timer does; the discriminants are its bits 18:17.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Counts down once.
    OneShot = 0b00,
    /// Counts down, again and again.
    Periodic = 0b01,
    /// Fires when the time-stamp counter reaches IA32_TSC_DEADLINE.
    TscDeadline = 0b10,
    /// Reserved; never fires.
    Reserved = 0b11,
}

impl Mode {
    fn of(entry: u32) -> Self {
        match entry >> 17 & 3 {
            0b00 => Self::OneShot,
            0b01 => Self::Periodic,
            0b10 => Self::TscDeadline,
            _ => Self::Reserved,
        }
    }

    fn counts(self) -> bool {
        matches!(self, Self::OneShot | Self::Periodic)
    }
}

/// The timer's registers but for its entry in the local vector table, and what is under way.
#[derive(Debug, Clone)]
pub struct Timer {
    mode: Mode,
    divide: u32,
    initial: u32,
    /// When the count reaches 0, on the machine's clock; `None` if it does not count.
    expiry: Option<u64>,
    /// IA32_TSC_DEADLINE; 0 is disarmed.
    tsc_deadline: u64,
    /// How fast the time-stamp counter counts.
    rate: TscRate,
}

impl Timer {
    /// A timer after power-up: one-shot, dividing by 2, not counting.
    pub fn new() -> Self {
        Self {
            mode: Mode::OneShot,
            divide: 0,
            initial: 0,
            expiry: None,
            tsc_deadline: 0,
            rate: TscRate::GIGAHERTZ,
        }
    }

    /// This timer beside a time-stamp counter of another rate.
    pub fn at_rate(self, rate: TscRate) -> Self {
        Self { rate, ..self }
    }

    /// How fast the time-stamp counter counts.
    pub fn rate(&self) -> TscRate {
        self.rate
    }

    /// The registers, and when the count ends.
    pub fn state(&self) -> ApicTimerState {
        ApicTimerState {
            divide_configuration: self.divide,
            initial_count: self.initial,
            expires_at: self.expiry,
            tsc_deadline: self.tsc_deadline,
        }
    }

    /// The timer that was in `state`, with its entry in the local vector table.
    ///
    /// # Errors
    /// [`StateError::Register`] if none can be.
    pub fn from_state(state: &ApicTimerState, entry: u32) -> Result<Self, StateError> {
        let ApicTimerState {
            divide_configuration: divide,
            initial_count: initial,
            expires_at: expiry,
            tsc_deadline,
        } = *state;
        let mode = Mode::of(entry);
        StateError::unless(divide & !DIVIDE == 0, "divide configuration register", divide)?;
        if let Some(expiry) = expiry {
            let sound = mode.counts() && initial != 0 && expiry < LATEST;
            StateError::unless(sound, "the end of the APIC timer's count", expiry)?;
        }
        let sound = tsc_deadline == 0 || !mode.counts();
        StateError::unless(sound, "IA32_TSC_DEADLINE", tsc_deadline)?;
        Ok(Self {
            mode,
            divide,
            initial,
            expiry,
            tsc_deadline,
            rate: TscRate::GIGAHERTZ,
        })
    }

    /// Takes the mode from the local vector table's entry. Entering or leaving TSC-deadline mode disarms the timer.
    pub fn set_entry(&mut self, entry: u32) {
        let mode = Mode::of(entry);
        if mode.counts() != self.mode.counts() {
            self.expiry = None;
            self.tsc_deadline = 0;
        }
        self.mode = mode;
    }

    /// The divide configuration register.
    pub fn divide(&self) -> u32 {
        self.divide
    }

    /// Writes the divide configuration register; a count under way goes on from where it is, at the new rate.
    pub fn set_divide(&mut self, value: u32, now: Now) {
        let left = self.current(now);
        self.divide = value & DIVIDE;
        if self.expiry.is_some() {
            self.expiry = Some(now.clock + u64::from(left) * self.divisor());
        }
    }

    /// The initial-count register.
    pub fn initial(&self) -> u32 {
        self.initial
    }

    /// Writes the initial-count register, which starts the count, or stops it with 0. Ignored in TSC-deadline mode.
    pub fn set_initial(&mut self, value: u32, now: Now) {
        if self.mode.counts() {
            self.initial = value;
            self.expiry = (value != 0).then(|| now.clock + self.period());
        }
    }

    /// The current-count register.
    pub fn current(&self, now: Now) -> u32 {
        let Some(expiry) = self.expiry else { return 0 };
        let left = match expiry.checked_sub(now.clock) {
            Some(left) => left,
            None if self.mode == Mode::Periodic => self.period() - (now.clock - expiry) % self.period(),
            None => 0,
        };
        u32::try_from(left.div_ceil(self.divisor())).unwrap_or(u32::MAX)
    }

    /// IA32_TSC_DEADLINE: 0 if not in that mode, or not armed.
    pub fn tsc_deadline(&self) -> u64 {
        self.tsc_deadline
    }

    /// Writes IA32_TSC_DEADLINE; ignored in other modes.
    pub fn set_tsc_deadline(&mut self, value: u64) {
        if self.mode == Mode::TscDeadline {
            self.tsc_deadline = value;
        }
    }

    /// When the timer fires next, on the machine's clock; a moment that is past means at once.
    pub fn deadline(&self, now: Now) -> Option<u64> {
        match self.mode {
            Mode::OneShot | Mode::Periodic => self.expiry,
            Mode::TscDeadline if self.tsc_deadline != 0 => {
                let ticks = self.tsc_deadline.saturating_sub(now.tsc);
                Some(now.clock.saturating_add(self.rate.nanoseconds(ticks)))
            }
            Mode::TscDeadline | Mode::Reserved => None,
        }
    }

    /// Fires if the deadline has come; true if it did. Periods that were missed altogether are not made up for.
    pub fn expire(&mut self, now: Now) -> bool {
        let Some(deadline) = self.deadline(now).filter(|deadline| *deadline <= now.clock) else {
            return false;
        };
        self.tsc_deadline = 0;
        self.expiry = (self.mode == Mode::Periodic).then(|| {
            let period = self.period();
            deadline + ((now.clock - deadline) / period + 1) * period
        });
        true
    }

    fn divisor(&self) -> u64 {
        match self.divide & 0b11 | self.divide >> 1 & 0b100 {
            0b111 => 1,
            shift => 2 << shift,
        }
    }

    /// The initial count in nanoseconds; at least 1, because only a count that is not 0 is ever under way.
    fn period(&self) -> u64 {
        u64::from(self.initial.max(1)) * self.divisor()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIODIC: u32 = 1 << 17;
    const TSC_DEADLINE: u32 = 2 << 17;

    fn at(clock: u64) -> Now {
        Now {
            clock,
            tsc: clock + 1_000_000,
        }
    }

    fn counting(entry: u32, divide: u32, initial: u32) -> Timer {
        let mut timer = Timer::new();
        timer.set_entry(entry);
        timer.set_divide(divide, at(0));
        timer.set_initial(initial, at(0));
        timer
    }

    #[test]
    fn each_divide_configuration_divides_as_the_table_says() {
        let table = [(0b0000, 2), (0b0001, 4), (0b0010, 8), (0b0011, 16)];
        let table = table
            .into_iter()
            .chain([(0b1000, 32), (0b1001, 64), (0b1010, 128), (0b1011, 1)]);
        for (divide, by) in table {
            assert_eq!(
                counting(0, divide, 10).deadline(at(0)),
                Some(10 * by),
                "divide configuration {divide:#06b}"
            );
        }
    }

    #[test]
    fn a_one_shot_counts_down_and_stays_at_zero() {
        let mut timer = counting(0, 0b0000, 100);
        assert_eq!(timer.current(at(0)), 100);
        assert_eq!(timer.current(at(20)), 90);
        assert!(!timer.expire(at(199)));
        assert!(timer.expire(at(200)));
        assert!(!timer.expire(at(1000)));
        assert_eq!((timer.current(at(200)), timer.deadline(at(200))), (0, None));
    }

    #[test]
    fn a_periodic_timer_reloads_and_drops_what_it_missed() {
        let mut timer = counting(PERIODIC, 0b1011, 100);
        assert!(timer.expire(at(100)));
        assert_eq!(timer.deadline(at(100)), Some(200));
        assert_eq!(timer.current(at(150)), 50);
        assert!(timer.expire(at(555)));
        assert!(!timer.expire(at(599)));
        assert!(timer.expire(at(600)));
    }

    #[test]
    fn writing_zero_stops_the_count() {
        let mut timer = counting(PERIODIC, 0b1011, 100);
        timer.set_initial(0, at(50));
        assert_eq!((timer.deadline(at(50)), timer.current(at(50))), (None, 0));
    }

    #[test]
    fn a_new_divisor_changes_the_rate_of_what_is_left() {
        let mut timer = counting(0, 0b1011, 100);
        timer.set_divide(0b0000, at(40));
        assert_eq!((timer.current(at(40)), timer.deadline(at(40))), (60, Some(160)));
    }

    #[test]
    fn the_tsc_deadline_fires_once_and_reads_zero_after() {
        let mut timer = counting(TSC_DEADLINE, 0, 0);
        timer.set_tsc_deadline(1_000_500);
        assert_eq!(timer.deadline(at(0)), Some(500));
        assert!(!timer.expire(at(499)));
        assert!(timer.expire(at(500)));
        assert_eq!((timer.tsc_deadline(), timer.deadline(at(501))), (0, None));
    }

    #[test]
    fn a_tsc_deadline_of_the_past_fires_at_once() {
        let mut timer = counting(TSC_DEADLINE, 0, 0);
        timer.set_tsc_deadline(1);
        assert!(timer.expire(at(0)));
    }

    #[test]
    fn leaving_or_entering_tsc_deadline_mode_disarms() {
        let mut timer = counting(TSC_DEADLINE, 0, 0);
        timer.set_tsc_deadline(1_000_500);
        timer.set_entry(0);
        assert_eq!((timer.deadline(at(0)), timer.tsc_deadline()), (None, 0));
        timer.set_initial(5, at(0));
        timer.set_entry(TSC_DEADLINE);
        assert_eq!(timer.deadline(at(0)), None);
    }

    #[test]
    fn each_mode_ignores_the_registers_of_the_other() {
        let mut timer = counting(TSC_DEADLINE, 0, 77);
        assert_eq!(
            (timer.initial(), timer.current(at(0)), timer.deadline(at(0))),
            (0, 0, None)
        );
        timer.set_entry(0);
        timer.set_tsc_deadline(5);
        assert_eq!((timer.tsc_deadline(), timer.deadline(at(0))), (0, None));
    }
}

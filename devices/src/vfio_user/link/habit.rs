//! How whoever needs an answer waits for it: the way that has been the faster one of late.
//!
//! A process on a processor of its own answers sooner than its asker falls asleep and is woken. One that has to have this very
//! processor answers when the asker sleeps; and one that takes its time is better waited for by somebody else. Which it is cannot be
//! known, and changes with what else the host does; so each way is tried now and then.

use std::time::Duration;

/// Of so many answers some are waited for in the way that is not the faster one.
const PERIOD: u32 = 512;
/// So many: the host's scheduler needs a few to settle.
const TRIAL: u32 = 16;
/// The most answers that are left to somebody else after some that did not come.
const AWAY: u32 = 64;

/// A way to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Looking all the time, at first.
    Awake,
    /// Asleep until something arrives.
    Asleep,
    /// Not at all: somebody else reads.
    Away,
}

/// What the last answers have shown.
#[derive(Debug, Default)]
pub(super) struct Habit {
    awake: Mean,
    asleep: Mean,
    answers: u32,
    /// Answers in a row that did not come in time.
    missed: u32,
    /// How many of the next are left to somebody else.
    away: u32,
}

/// Nanoseconds that the last few took.
#[derive(Debug, Default)]
struct Mean(u64);

impl Mean {
    fn add(&mut self, time: Duration) {
        let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.0 = self.0 - self.0 / 8 + time / 8;
    }
}

impl Habit {
    /// How to wait for the next answer.
    pub fn next(&mut self) -> Way {
        if self.away > 0 {
            self.away -= 1;
            return Way::Away;
        }
        self.answers = (self.answers + 1) % PERIOD;
        let faster = self.awake.0 <= self.asleep.0;
        let trial = self.answers < TRIAL;
        if faster != trial { Way::Awake } else { Way::Asleep }
    }

    /// The answer took so long.
    pub fn took(&mut self, way: Way, time: Duration) {
        self.missed = 0;
        match way {
            Way::Awake => self.awake.add(time),
            Way::Asleep => self.asleep.add(time),
            Way::Away => {}
        }
    }

    /// The answer did not come in time.
    pub fn missed(&mut self) {
        self.missed = (self.missed + 1).min(AWAY.ilog2());
        self.away = 1 << self.missed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of the answers of a period are waited for awake, when they take so many nanoseconds one way and the other.
    fn awake(habit: &mut Habit, awake: u64, asleep: u64) -> u32 {
        let mut count = 0;
        for _ in 0..PERIOD {
            let way = habit.next();
            let time = if way == Way::Awake { awake } else { asleep };
            habit.took(way, Duration::from_nanos(time));
            count += u32::from(way == Way::Awake);
        }
        count
    }

    #[test]
    fn the_faster_way_is_found_and_found_again_when_it_changes() {
        let mut habit = Habit::default();
        for _ in 0..2 {
            let _settles = awake(&mut habit, 5_000, 20_000);
            assert_eq!(awake(&mut habit, 5_000, 20_000), PERIOD - TRIAL);
            let _settles = awake(&mut habit, 40_000, 20_000);
            assert_eq!(awake(&mut habit, 40_000, 20_000), TRIAL);
        }
    }

    #[test]
    fn who_does_not_answer_in_time_is_left_alone_for_longer_and_longer_and_not_for_ever() {
        let mut habit = Habit::default();
        let mut alone = Vec::new();
        for _ in 0..8 {
            habit.missed();
            alone.push((0..).take_while(|_: &u32| habit.next() == Way::Away).count());
        }
        assert_eq!(alone, [2, 4, 8, 16, 32, 64, 64, 64]);
        habit.took(Way::Asleep, Duration::from_micros(10));
        habit.missed();
        assert_eq!((0..).take_while(|_: &u32| habit.next() == Way::Away).count(), 2);
    }
}

//! Whole machines that are saved and go on in others.
//!
//! A small random [`guest`] makes use of everything that a snapshot holds: timers, interrupts of every kind, and devices,
//! which answer late. It is written such that what it leaves behind does not depend on when anything happens. A
//! [`machine`] runs it, and at any moment becomes another machine by way of a file.
//!
//! `SNAPSHOT_SEEDS` says how many guests the tests that take random ones run, and `SNAPSHOT_SEED` from which on.

mod guest;
mod machine;
mod moments;
mod refused;
mod spoilt;
mod whole;

/// The seeds of random guests: `few`, unless the environment says otherwise.
fn seeds(few: u64) -> impl Iterator<Item = u64> {
    let variable = |name: &str, otherwise| std::env::var(name).map_or(otherwise, |value| value.parse().expect(name));
    let first = variable("SNAPSHOT_SEED", 0);
    (0..variable("SNAPSHOT_SEEDS", few)).map(move |number| first + number)
}

/// Names the guest whose test panics.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("SNAPSHOT_SEED={} SNAPSHOT_SEEDS=1", self.0);
        }
    }
}

/// Numbers that look random, the same for the same seed (SplitMix64).
#[derive(Clone)]
struct Dice(u64);

impl Dice {
    fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.number() % end
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }
}

/// Scatters the bits of a number.
fn mix(number: u64) -> u64 {
    let number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
}

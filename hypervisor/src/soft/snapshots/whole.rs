//! Guests that are interrupted by snapshots leave behind what uninterrupted ones do.

use std::time::Duration;

use super::machine::{Left, Machine, Until};
use super::{Dice, Named, seeds};

/// The guest of `seed`, run without interruption.
fn uninterrupted(vcpus: u32, seed: u64) -> Left {
    let mut machine = Machine::new(vcpus, &mut Dice(seed));
    assert!(machine.run(Until::Over).unwrap());
    machine.left()
}

/// The guest of `seed`, in another machine whenever `until` says so.
fn interrupted(vcpus: u32, seed: u64, mut until: impl FnMut(&mut Dice) -> Until) -> Left {
    let mut dice = Dice(!seed);
    let mut machine = Machine::new(vcpus, &mut Dice(seed));
    for _ in 0..100 {
        if machine.run(until(&mut dice)).unwrap() {
            return machine.left();
        }
        assert_eq!(machine.has_shut_down(), None);
        machine = machine.reborn(&mut dice);
    }
    assert!(machine.run(Until::Over).unwrap());
    machine.left()
}

fn same(vcpus: u32, seed: u64, until: impl FnMut(&mut Dice) -> Until) {
    let _named = Named(seed);
    let (own, other) = (uninterrupted(vcpus, seed), interrupted(vcpus, seed, until));
    assert_eq!(own.traces, other.traces);
    assert_eq!(own.cpus, other.cpus);
    assert_eq!(own.local_apics, other.local_apics);
    let differs = own
        .memory
        .iter()
        .zip(&other.memory)
        .position(|(own, other)| own != other);
    assert_eq!(differs, None, "memory differs there");
}

#[test]
fn rule_23_an_instruction_that_waits_for_a_device_is_saved_and_finished_in_another_machine() {
    for seed in seeds(12) {
        let wait = |dice: &mut Dice| Until::Access {
            number: dice.below(8),
            asked: dice.one_in(2),
        };
        same(1, seed, wait);
        same(2, seed, wait);
    }
}

#[test]
fn rule_11_registers_are_exact_wherever_a_snapshot_is_taken() {
    for seed in seeds(12) {
        let between = |dice: &mut Dice| match dice.one_in(2) {
            true => Until::AfterAccess(dice.below(8)),
            false => Until::Time(Duration::from_micros(20 + dice.below(500))),
        };
        same(1, seed, between);
        same(2, seed, between);
    }
}

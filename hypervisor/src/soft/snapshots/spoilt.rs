//! States that no machine has saved: each is refused for a reason, or a machine goes on from it and stays sound.

use std::time::Duration;

use super::super::clock::LATEST;
use super::machine::{Machine, Saved, Until};
use super::{Dice, Named, seeds};
use crate::testing::{spoilt, through_json};
use crate::{StateError, VcpuError};

/// Says which register, leaf or access is wrong, and how.
fn names_the_thing(error: &VcpuError) -> bool {
    let VcpuError::State { source } = error else {
        return false;
    };
    match source {
        StateError::Register { register, .. } => !register.is_empty(),
        StateError::Cpu { source } => !source.register.is_empty(),
        StateError::CpuModel { saved, own, .. } => saved != own,
        StateError::VcpuCount { saved, own } | StateError::TscFrequency { saved, own } => saved != own,
        StateError::InFlight { .. } | StateError::NotADevice { .. } | StateError::Interface { .. } => true,
    }
}

/// The state of a random guest's machine at a random moment, and the machine.
fn saved(dice: &mut Dice) -> (Machine, Saved) {
    let mut machine = Machine::new(1 + dice.below(2) as u32, dice);
    let until = match dice.one_in(4) {
        true => Until::Time(Duration::from_micros(dice.below(500))),
        false => Until::Access {
            number: dice.below(20),
            asked: dice.one_in(2),
        },
    };
    machine.run(until).unwrap();
    let saved = machine.save();
    (machine, saved)
}

/// Has a spoilt state restored and run for a moment; whether it was accepted.
fn survives(machine: &Machine, state: Saved, dice: &mut Dice) -> bool {
    let mut other = match Machine::restored(state, &machine.world.memory, dice) {
        Ok(other) => other,
        Err(error) => {
            assert!(names_the_thing(&error), "{error:?}");
            return false;
        }
    };
    other.unpause();
    let moment = Until::Time(Duration::from_micros(200 + dice.below(800)));
    // A record that is not this instruction's diverges, which is an error and not the end of the process.
    if other.run(moment).is_ok() {
        let saved = through_json(&other.save());
        // But for a clock that was set to just before the end of its life.
        if saved.vm.clock < LATEST {
            Machine::restored(saved, &other.world.memory, dice).expect("what a machine saves it takes back");
        }
    }
    true
}

/// Spoils the states of random guests at random moments, some fields at a time, as `spoil` says.
fn spoil_all(spoil: impl Fn(&mut Saved, &[(usize, u64)]) -> Option<()>) {
    let (mut refused, mut accepted) = (0, 0);
    for seed in seeds(12) {
        let _named = Named(seed);
        let mut dice = Dice(seed);
        let (machine, sound) = saved(&mut dice);
        for _ in 0..25 {
            let changes: Vec<_> = (0..1 + dice.below(3))
                .map(|_| (dice.number() as usize, dice.number()))
                .collect();
            let mut state = sound.clone();
            if spoil(&mut state, &changes).is_some() {
                let count = if survives(&machine, state, &mut dice) {
                    &mut accepted
                } else {
                    &mut refused
                };
                *count += 1;
            }
        }
    }
    assert!(refused > 0 && accepted > 0, "{refused} refused, {accepted} accepted");
}

#[test]
fn a_spoilt_vcpu_is_refused_by_name_or_goes_on() {
    spoil_all(|state, changes| {
        for vcpu in &mut state.vcpus {
            // Another CPU model is refused whatever else is wrong.
            let cpuid = std::mem::take(&mut vcpu.cpuid);
            *vcpu = spoilt(vcpu, changes)?;
            vcpu.cpuid = cpuid;
        }
        Some(())
    });
}

#[test]
fn a_spoilt_instruction_in_flight_is_refused_by_name_or_goes_on() {
    spoil_all(|state, changes| {
        let in_flight = state.vcpus.iter_mut().find_map(|vcpu| vcpu.in_flight.as_mut())?;
        *in_flight = spoilt(in_flight, changes)?;
        Some(())
    });
}

#[test]
fn a_spoilt_machine_is_refused_by_name_or_goes_on() {
    spoil_all(|state, changes| {
        state.vm = spoilt(&state.vm, changes)?;
        Some(())
    });
}

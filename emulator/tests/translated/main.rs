//! Both tiers in step: random programs of 64-bit and 32-bit code on an interpreting CPU and on one that translates, compared wherever they stop.
//!
//! - `machine`: memory, page tables, and a CPU in ring 0 or 3.
//! - `program`: random code that loops, calls, jumps, faults and overwrites itself.
//! - `changing`: code that is overwritten, by itself or another CPU, or mapped elsewhere.
//! - `prompt`: calls and interrupts that come in the middle of it. `spaces`: address spaces and rings that take turns.
//! - `odd`: code where nobody expects it: in a device, in the middle of instructions, new for ever.
//! - `across`: an instruction in two pages.
//! - `kept`: PCIDs and global pages.
//!
//! `REPRISE_PLAYS=N` plays N programs of each kind, `REPRISE_SEED=N` begins at another one.

mod across;
mod changing;
mod dice;
mod kept;
mod machine;
mod odd;
mod program;
mod prompt;
mod spaces;

use std::panic::{AssertUnwindSafe, catch_unwind};

use reprise_emulator::translate::{Stress, Translation};

use dice::Dice;
use machine::{Machine, Ring};
use program::Program;

/// The flags that the architecture leaves undefined are those of the host, and the interpreter has those of this processor.
fn is_modelled_host() -> bool {
    let vendor = core::arch::x86_64::__cpuid(0);
    let version = core::arch::x86_64::__cpuid(1).eax;
    let family = (version >> 8 & 0xf) + (version >> 20 & 0xff);
    let is_modelled = (vendor.ebx, family) == (u32::from_le_bytes(*b"Auth"), 25);
    if !is_modelled {
        println!("not compared: flags that are undefined are others on this processor");
    }
    is_modelled
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |value| value.parse().expect(name))
}

/// Instructions between two comparisons.
#[derive(Clone, Copy)]
enum Steps {
    One,
    Few,
    Many,
}

/// Plays programs; how many instructions were executed in translated code.
fn play(ring: Ring, translation: Translation, steps: Steps) -> u64 {
    if !is_modelled_host() {
        return u64::MAX;
    }
    let (first, plays) = (number("REPRISE_SEED", 1), number("REPRISE_PLAYS", 400));
    let (mut plain, mut translated) = (Machine::new(ring), Machine::new(ring));
    translated
        .emulator
        .set_translation(Some(translation))
        .expect("executable memory");
    for seed in first..first + plays {
        let played = catch_unwind(AssertUnwindSafe(|| {
            let mut dice = Dice::new(seed);
            let program = Program::random(&mut dice, ring.bits());
            let cpu = plain.start(&program, &mut dice);
            plain.load(&program, &cpu);
            translated.load(&program, &cpu);
            let mut outings = 0;
            let (begun, total) = (plain.retired(), 600);
            while plain.retired() - begun < total && outings < 300 {
                outings += 1;
                let limit = match steps {
                    Steps::One => 1,
                    Steps::Few => 1 + dice.below(40),
                    Steps::Many => 100 + dice.below(300),
                };
                let exits = [&mut plain, &mut translated].map(|machine| machine.run(limit));
                assert_eq!(exits[0], exits[1], "the way out");
                plain.assert_same(&translated, &program);
                if plain.is_shut_down() {
                    let cpu = plain.start(&program, &mut dice);
                    plain.go_on(&cpu);
                    translated.go_on(&cpu);
                } else if dice.one_in(20) {
                    // As another CPU or a device would.
                    let (at, bytes) = program.overwrite(&mut dice);
                    plain.write(at, &bytes);
                    translated.write(at, &bytes);
                }
            }
            plain.assert_same_memory(&translated);
        }));
        assert!(played.is_ok(), "REPRISE_SEED={seed} REPRISE_PLAYS=1");
    }
    let counters = translated.emulator.counters();
    println!("{ring:?}: {counters:?}");
    counters.translated
}

fn at_once() -> Translation {
    Translation {
        threshold: 0,
        ..Translation::default()
    }
}

#[test]
fn random_code_does_the_same_in_both_tiers_in_ring_0() {
    assert!(play(Ring::Supervisor, at_once(), Steps::Few) > 10_000);
}

#[test]
fn random_code_does_the_same_in_both_tiers_in_ring_3() {
    assert!(play(Ring::User, at_once(), Steps::Few) > 10_000);
}

#[test]
fn random_code_does_the_same_in_both_tiers_under_smap() {
    assert!(play(Ring::Smap, at_once(), Steps::Few) > 10_000);
}

#[test]
fn random_32_bit_code_does_the_same_in_both_tiers_in_ring_0() {
    assert!(play(Ring::NarrowSupervisor, at_once(), Steps::Many) > 10_000);
}

#[test]
fn random_32_bit_code_does_the_same_in_both_tiers_in_ring_3() {
    assert!(play(Ring::NarrowUser, at_once(), Steps::Few) > 10_000);
}

#[test]
fn random_code_does_the_same_in_both_tiers_over_long_runs() {
    assert!(play(Ring::Supervisor, at_once(), Steps::Many) > 10_000);
}

#[test]
fn a_limit_of_one_instruction_is_kept() {
    // A whole block must fit: some consist of one instruction.
    assert!(play(Ring::Supervisor, at_once(), Steps::One) > 1000);
}

#[test]
fn a_buffer_that_is_always_full_makes_no_difference() {
    let translation = Translation { buffer: 0, ..at_once() };
    assert!(play(Ring::Supervisor, translation, Steps::Many) > 10_000);
}

/// A tier for each block, chosen by `seed`.
fn mixed(seed: u64) -> Translation {
    let stress = Stress {
        spared: Some(seed),
        starved: false,
    };
    Translation { stress, ..at_once() }
}

/// Every lookup misses.
fn starved() -> Translation {
    let stress = Stress {
        spared: None,
        starved: true,
    };
    Translation { stress, ..at_once() }
}

#[test]
fn a_tier_chosen_at_random_for_each_block_makes_no_difference() {
    for (ring, seed) in [(Ring::Supervisor, 1), (Ring::User, 2), (Ring::Smap, 3)] {
        assert!(play(ring, mixed(seed), Steps::Many) > 10_000);
    }
}

#[test]
fn lookups_that_always_miss_make_no_difference() {
    assert!(play(Ring::Smap, starved(), Steps::Many) > 10_000);
    assert!(play(Ring::User, starved(), Steps::Few) > 10_000);
}

#[test]
fn code_that_is_hot_later_makes_no_difference() {
    let translation = Translation {
        threshold: 3,
        ..Translation::default()
    };
    assert!(play(Ring::User, translation, Steps::Many) > 1000);
}

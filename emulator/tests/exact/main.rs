//! Exact under re-execution: every instruction form, every access of it, every place of its operands.
//!
//! - `forms`: every form that the emulator knows. `scene`: a form with memory and registers such that it goes far.
//! - `layout`, `world`: a machine whose pages are RAM or a device's, as a placement says.
//! - `story`: how a scene must end, and what it reads and writes, told by machines on which nothing is interrupted.
//! - `late`: the same scene with late answers over changing memory, and with cancellations.
//! - `capacity`: how much of its room a record needs.
//! - `duet`: random code under random influence from outside; `dice` makes the decisions.
//!
//! - `ways`: random code the fast way and the careful way. `delivery`: random states that events are delivered out of.
//! - `saved`: what was saved of an instruction in flight, damaged and restored.
//!
//! Each form runs in some of its scenes; with `REPRISE_LONG=1` in the environment, in all of them (some minutes).
//! `REPRISE_PLAYS=N` plays N duets, and damages as many that were saved; `REPRISE_SEED=N` begins at another place.
//! `REPRISE_BLOCKS=N` goes on with plays on both ways until N blocks have been compared:
//!
//! ```sh
//! REPRISE_BLOCKS=1000000 cargo test -p reprise-emulator --test exact way_and_the_careful_way -- --nocapture
//! ```

mod capacity;
mod delivery;
mod dice;
mod duet;
mod forms;
mod late;
mod layout;
mod saved;
mod scene;
mod story;
#[path = "../tier/mod.rs"]
mod tier;
mod ways;
mod world;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

use iced_x86::{Code, Mnemonic};
use reprise_emulator::cpu::flags;

use dice::roll;
use duet::{Played, Stage};
use forms::{Form, forms, shadowed, supported};
use layout::{Marks, Mode, OTHER_TASK, Offsets};
use saved::{Outcome, Saved};
use scene::Scene;
use story::{Story, Tellers};
use ways::{Ways, is_modelled_host};
use world::{Batches, Placement, World};

#[test]
fn every_encoding_that_the_emulator_knows_has_a_form_here() {
    let covered = |code| forms().iter().any(|form| form.code == code);
    let shadowed = shadowed();
    let mut missing = Vec::new();
    let mut read_as_others = 0;
    for code in supported().iter().copied().filter(|code| !covered(*code)) {
        // No bytes are read as this one by the emulator's decoder.
        match shadowed.iter().find(|(plain, _)| *plain == code) {
            Some((_, ours)) if covered(*ours) => read_as_others += 1,
            _ => missing.push(code),
        }
    }
    println!(
        "{} forms of {} encodings; {read_as_others} more are read as others",
        forms().len(),
        supported().len() - read_as_others
    );
    assert_eq!(missing, []);
}

fn is_long() -> bool {
    std::env::var_os("REPRISE_LONG").is_some()
}

/// How many scenes are passed over, unless all are asked for: a form is seen in 64-bit mode, in turn in ring 0 and 3, with
/// operands of all offsets in turn; those that 64-bit mode does not have in 32-bit mode. Some forms are seen in all modes.
fn is_next(form: &Form, number: usize, mode: Mode, combination: usize) -> bool {
    let turn = number % 6 == combination;
    let ring = number / 6 % 2 == usize::from(mode.is_user());
    let sample = number.is_multiple_of(8);
    match mode {
        Mode::Long | Mode::LongUser => turn && ring,
        Mode::Protected | Mode::ProtectedUser => turn && (!is_in_64_bit_mode(form.code) || ring && sample),
        Mode::Real | Mode::Virtual8086 => turn && sample,
    }
}

fn is_in_64_bit_mode(code: Code) -> bool {
    static CODES: OnceLock<Vec<bool>> = OnceLock::new();
    let codes = CODES.get_or_init(|| {
        let mut codes = vec![false; Code::values().len()];
        for form in forms().iter().filter(|form| form.bits == 64) {
            codes[form.code as usize] = true;
        }
        codes
    });
    codes[code as usize]
}

/// Calls `with` for scenes of all forms in `mode`, with a number; every `sparse`-th, unless all are asked for. What fails
/// is told with its name.
fn scenes(mode: Mode, sparse: usize, mut with: impl FnMut(usize, &Form, &Scene, &Story)) {
    let only = std::env::var("REPRISE_FORM").unwrap_or_default();
    let mut tellers = Tellers::new();
    let mut number = 0;
    for (i, form) in forms().iter().filter(|form| form.bits == mode.bits()).enumerate() {
        if !form.to_string().contains(&only) {
            continue;
        }
        let combinations = Offsets::ALL
            .into_iter()
            .flat_map(|offsets| [Marks::Set, Marks::Clear].map(|marks| (offsets, marks)));
        for (combination, (offsets, marks)) in combinations.enumerate() {
            let chosen = i.is_multiple_of(sparse) && is_next(form, i / sparse, mode, combination);
            if !chosen && !is_long() {
                continue;
            }
            number += 1;
            let result = catch_unwind(AssertUnwindSafe(|| {
                let scene = Scene::new(form, mode, offsets, marks);
                let story = tellers.tell(&scene);
                with(number, form, &scene, &story);
            }));
            assert!(result.is_ok(), "{form}, {mode:?}, {offsets:?}, {marks:?}");
        }
    }
    assert!(number > 0);
}

/// Every mode, in a thread for each of them.
fn in_every_mode(test: impl Fn(Mode) -> usize + Sync) -> usize {
    std::thread::scope(|scope| {
        let threads = Mode::ALL.map(|mode| {
            scope.spawn({
                let test = &test;
                move || test(mode)
            })
        });
        threads.map(|thread| thread.join().expect("a mode failed")).iter().sum()
    })
}

/// As many answers to a batch as there are.
fn batches(number: usize) -> Batches {
    [Batches::Whole, Batches::Short, Batches::No][number % 3]
}

fn mixed() -> Vec<(Placement, World)> {
    Placement::MIXED
        .map(|placement| (placement, World::new(placement)))
        .into()
}

/// Of very many accesses, some.
fn is_chosen(k: usize, number: usize) -> bool {
    k < 6 || k.wrapping_add(number).is_multiple_of(16) || is_long()
}

#[test]
fn rule_2_to_10_late_answers_over_changing_memory_make_no_difference() {
    let meddled = in_every_mode(|mode| {
        let mut worlds = mixed();
        let mut meddled = 0;
        scenes(mode, 1, |number, _, scene, story| {
            for (placement, world) in &mut worlds {
                world.batches = batches(number);
                let result = catch_unwind(AssertUnwindSafe(|| {
                    // Promptly, for the trace.
                    world.load(&scene.cpu, &scene.image);
                    let exit = world.run();
                    story.check(exit, world);
                    let prompt = world.trace.clone();
                    meddled += late::answer_late(world, scene, story, |_| true);
                    assert_eq!(world.trace, prompt);
                }));
                assert!(result.is_ok(), "{placement:?}");
            }
        });
        meddled
    });
    println!("{meddled} waits");
    assert!(meddled > 10_000, "{meddled}");
}

#[test]
fn rule_20_a_cancelled_instruction_has_changed_nothing_whichever_access_it_waited_for() {
    let cancelled = in_every_mode(|mode| {
        let mut worlds = mixed();
        let mut cancelled = 0;
        scenes(mode, 4, |number, _, scene, story| {
            for (placement, world) in &mut worlds {
                world.batches = batches(number);
                let result = catch_unwind(AssertUnwindSafe(|| {
                    for k in (0..).filter(|k| is_chosen(*k, number)) {
                        if !late::cancel(world, scene, story, k) {
                            break;
                        }
                        cancelled += 1;
                    }
                }));
                assert!(result.is_ok(), "{placement:?}");
            }
        });
        cancelled
    });
    println!("{cancelled} cancellations");
    assert!(cancelled > 10_000, "{cancelled}");
}

#[test]
fn rule_23_an_instruction_in_flight_finishes_in_another_process_whichever_access_it_waits_for() {
    let restored = in_every_mode(|mode| {
        let mut worlds = mixed();
        let mut restored = 0;
        scenes(mode, 4, |number, _, scene, story| {
            for (placement, world) in &mut worlds {
                world.batches = batches(number);
                let mut other = World::new(*placement);
                let result = catch_unwind(AssertUnwindSafe(|| {
                    world.load(&scene.cpu, &scene.image);
                    world.run();
                    let prompt = world.trace.clone();
                    for k in 0..prompt.len() {
                        if is_chosen(k, number) {
                            if !late::snapshot(world, &mut other, scene, story, k) {
                                break;
                            }
                            assert_eq!(other.trace, prompt);
                            restored += 1;
                        }
                    }
                }));
                assert!(result.is_ok(), "{placement:?}");
            }
        });
        restored
    });
    println!("{restored} restores");
    assert!(restored > 5_000, "{restored}");
}

#[test]
fn tasks_are_switched_and_v8086_mode_is_left_in_the_scenes() {
    let mut tellers = Tellers::new();
    let (mut switched, mut left) = (0, 0);
    for form in forms() {
        let mode = match form.bits {
            16 => Mode::Virtual8086,
            32 => Mode::Protected,
            _ => continue,
        };
        let mnemonic = form.code.mnemonic();
        if matches!(
            mnemonic,
            Mnemonic::Jmp | Mnemonic::Call | Mnemonic::Int | Mnemonic::Iret | Mnemonic::Iretd
        ) {
            let scene = Scene::new(form, mode, Offsets::Byte, Marks::Clear);
            let story = tellers.tell(&scene);
            switched += usize::from(story.cpu.tr.selector == OTHER_TASK);
            left += usize::from(mode == Mode::Virtual8086 && !story.cpu.flags.any(flags::VM));
        }
    }
    assert!(switched >= 5 && left >= 1, "{switched} switches, {left} interrupts");
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |value| value.parse().expect(name))
}

#[test]
fn random_code_under_outside_influence_ends_as_if_it_were_left_alone() {
    let (first, plays) = (number("REPRISE_SEED", 1), number("REPRISE_PLAYS", 600));
    let mut stage = Stage::new();
    let mut all = Played::default();
    let mut broken_off = 0;
    for seed in first..first + plays {
        let bytes = roll(seed, 40 + seed as usize % 160);
        let Ok(played) = catch_unwind(AssertUnwindSafe(|| stage.play(&bytes))) else {
            panic!("REPRISE_SEED={seed} REPRISE_PLAYS=1");
        };
        all.waits += played.waits;
        all.saved += played.saved;
        all.cancelled += played.cancelled;
        all.events += played.events;
        broken_off += u64::from(played.broken_off);
    }
    println!("{all:?}, {broken_off} broken off");
    if plays >= 600 {
        assert!(
            all.waits as u64 > plays && all.saved > 100 && all.cancelled > 100 && all.events > 100,
            "{all:?}"
        );
        assert!(broken_off < plays / 4, "{broken_off}");
    }
}

/// Plays on both ways; how many blocks were compared.
fn compare_ways(ways: &mut Ways, play: impl Fn(&mut Ways, &[u8]) -> usize) -> u64 {
    let (first, plays) = (number("REPRISE_SEED", 1), number("REPRISE_PLAYS", 2000));
    let wanted = number("REPRISE_BLOCKS", 0);
    let mut blocks = 0;
    for seed in first.. {
        if seed - first >= plays && blocks >= wanted {
            break;
        }
        let bytes = roll(seed, 60 + seed as usize % 200);
        let Ok(compared) = catch_unwind(AssertUnwindSafe(|| play(ways, &bytes))) else {
            panic!("REPRISE_SEED={seed} REPRISE_PLAYS=1");
        };
        blocks += compared as u64;
    }
    println!("{blocks} blocks");
    blocks
}

#[test]
fn random_code_does_the_same_the_fast_way_and_the_careful_way() {
    assert!(compare_ways(&mut Ways::new(), Ways::play) > number("REPRISE_PLAYS", 2000));
}

#[test]
fn damaged_tables_and_task_state_do_the_same_the_fast_way_and_the_careful_way() {
    assert!(compare_ways(&mut Ways::new(), Ways::damage) > number("REPRISE_PLAYS", 2000) / 4);
}

#[test]
fn random_code_does_the_same_translated_and_the_careful_way() {
    if !is_modelled_host() {
        return;
    }
    let mut ways = Ways::translated();
    assert!(compare_ways(&mut ways, Ways::play) > number("REPRISE_PLAYS", 2000));
    let translated = ways.instructions_translated();
    println!("{translated} instructions in translated code");
    assert!(translated > number("REPRISE_PLAYS", 2000) / 50);
}

#[test]
fn damaged_tables_and_task_state_do_the_same_translated_and_the_careful_way() {
    if !is_modelled_host() {
        return;
    }
    let blocks = compare_ways(&mut Ways::translated(), Ways::damage);
    assert!(blocks > number("REPRISE_PLAYS", 2000) / 4);
}

#[test]
fn events_out_of_random_states_do_the_same_the_fast_way_and_the_careful_way() {
    assert!(compare_ways(&mut Ways::new(), Ways::deliver) > number("REPRISE_PLAYS", 2000) / 4);
}

#[test]
fn what_was_saved_and_damaged_is_refused_or_harms_nobody() {
    let (first, plays) = (number("REPRISE_SEED", 1), number("REPRISE_PLAYS", 600));
    let mut saved = Saved::new();
    let mut outcomes = BTreeMap::new();
    for seed in first..first + plays {
        let bytes = roll(seed, 60);
        let Ok(outcome) = catch_unwind(AssertUnwindSafe(|| saved.damage(&bytes))) else {
            panic!("REPRISE_SEED={seed} REPRISE_PLAYS=1");
        };
        *outcomes.entry(outcome).or_insert(0) += 1;
    }
    println!("{outcomes:?}");
    if plays >= 600 {
        let seen = [Outcome::NoState, Outcome::Refused, Outcome::Failed, Outcome::WentOn];
        assert!(
            seen.iter().all(|outcome| outcomes.get(outcome) > Some(&4)),
            "{outcomes:?}"
        );
    }
}

//! Runs whole programs, from several states each, and with a fault at each of their accesses.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use reprise_emulator::Counters;

use crate::case;
use crate::compare::{Difference, differences, same};
use crate::dice::Dice;
use crate::emulated::{Emulated, TF};
use crate::native::{Native, settle};
use crate::program::{Program, Writer};
use crate::quirk::Mask;
use crate::report::{self, Count};
use crate::run::{Options, Tier, empty_output, forms, template};
use crate::state::{DATA, Input, Output, PATCHES, Patch, STACK, State, Template};

/// States that a program begins from, and one that goes astray.
const STATES: [usize; 2] = [12, 3];

/// What is counted: programs as they are, and those that go astray.
const KINDS: [&str; 2] = ["programs", "programs that go astray"];

/// Mismatches that are told at length.
struct Told {
    mismatches: BTreeMap<String, (u64, String)>,
    counts: [Count; 2],
    done: Counters,
}

/// Runs; true if nothing differed.
pub fn run(options: &Options, count: u64) -> bool {
    let (model, forms) = forms(options);
    if forms.long.is_empty() {
        eprintln!("there is no such family");
        return false;
    }
    let told = Mutex::new(Told {
        mismatches: BTreeMap::new(),
        counts: [Count::default(); 2],
        done: Counters::default(),
    });
    let (done, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for thread in 0..options.threads {
            let (model, forms, told, done, stop) = (model.clone(), &forms, &told, &done, &stop);
            scope.spawn(move || {
                let processor = settle(thread);
                let Ok(native) = Native::new() else {
                    eprintln!("no memory to share");
                    stop.store(true, Ordering::Relaxed);
                    return;
                };
                let mut emulated = Emulated::new(model, processor);
                let seed = options.seed.wrapping_mul(0x1_0000_0001).wrapping_add(thread as u64);
                match options.tier {
                    Some(Tier::Translated) => emulated.translate(0),
                    Some(Tier::Careful) => emulated.set_careful(true),
                    _ => {}
                }
                let mut worker = Worker {
                    native,
                    emulated,
                    writer: Writer::new(forms),
                    dice: Dice::new(seed),
                    found: Box::new(empty_output()),
                    counts: [Count::default(); 2],
                    told,
                };
                while !stop.load(Ordering::Relaxed) {
                    let before = done.fetch_add(1, Ordering::Relaxed);
                    if count != 0 && before >= count {
                        break;
                    }
                    if before % 256 == 255 && options.tier == Some(Tier::Translated) {
                        // Blocks that are interpreted at first, too.
                        let threshold = worker.dice.pick(&[0, 0, 1, 2, 5]);
                        worker.count_emulated();
                        worker.emulated.translate(threshold);
                    }
                    if !worker.program() && count == 0 {
                        stop.store(true, Ordering::Relaxed);
                    }
                }
                worker.count_emulated();
                let mut told = lock(told);
                for (sum, count) in told.counts.iter_mut().zip(&worker.counts) {
                    sum.executions += count.executions;
                    sum.faults += count.faults;
                    sum.skipped += count.skipped;
                    sum.mismatches += count.mismatches;
                }
            });
        }
    });
    let told = told.into_inner().unwrap_or_else(PoisonError::into_inner);
    for (title, (count, text)) in told.mismatches.iter().take(options.rows) {
        println!("--- {title} ({count} times)\n{text}");
    }
    for (title, (count, _)) in told.mismatches.iter().skip(options.rows) {
        println!("--- {title} ({count} times)");
    }
    report::table(&KINDS.map(str::to_owned), &told.counts);
    report::tiers(&told.done);
    told.mismatches.is_empty() && !stop.load(Ordering::Relaxed)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Worker<'a> {
    native: Native,
    emulated: Emulated,
    writer: Writer<'a>,
    dice: Dice,
    found: Box<Output>,
    counts: [Count; 2],
    told: &'a Mutex<Told>,
}

impl Worker<'_> {
    fn count_emulated(&mut self) {
        // Counters begin anew with the next tier.
        let now = self.emulated.take_counters();
        let mut told = lock(self.told);
        told.done.instructions += now.instructions;
        told.done.translated += now.translated;
    }

    /// Writes a program and runs it in all ways; true if nothing differed.
    fn program(&mut self) -> bool {
        let program = self.writer.write(&mut self.dice);
        let mut fine = self.play(&program, 0);
        for access in program.accesses() {
            let astray = program.gone_astray(&mut self.dice, access);
            fine &= self.play(&astray, 1);
        }
        fine
    }

    fn play(&mut self, program: &Program, kind: usize) -> bool {
        let template = template(&mut self.dice);
        let states: Vec<State> = (0..STATES[kind]).map(|_| self.state(program)).collect();
        let Some(outcomes) = self.run_both(program, &template, &states) else {
            self.counts[kind].skipped += 1;
            return true;
        };
        let mut fine = true;
        for (state, outcome) in states.iter().zip(outcomes) {
            let count = &mut self.counts[kind];
            count.executions += 1;
            count.faults += u64::from(outcome.vector != 3);
            if outcome.list.is_empty() {
                continue;
            }
            // The kernel may have stepped in.
            let lasts = (0..2).all(|_| self.differs(program, &template, state));
            let count = &mut self.counts[kind];
            count.mismatches += u64::from(lasts);
            count.skipped += u64::from(!lasts);
            if lasts {
                fine = false;
                self.tell(program, &template, state, &outcome.list);
            }
        }
        fine
    }

    /// A state in which the program's registers are what they are for.
    fn state(&mut self, program: &Program) -> State {
        let dice = &mut self.dice;
        let mut state = case::state(dice, program.start(), 64);
        let taste = dice.taste();
        case::fill_vectors(dice, taste, &mut state.xsave);
        if dice.percent(85) {
            state.xsave.set(0, &0x37fu16.to_le_bytes());
            state.xsave.set(2, &[0; 2]);
        }
        if dice.percent(85) {
            state
                .xsave
                .set(24, &(0x1f80u32 | dice.next() as u32 & 0xe03f).to_le_bytes());
        }
        state.flags &= !(TF | 1 << 18);
        if dice.percent(1) {
            state.flags |= 1 << 18;
        }
        state.fs_base = dice.pick(&[0, 0x40, 0x1000]);
        state.gs_base = dice.pick(&[0, 0x80, (-64i64) as u64]);
        for pointer in program.roles.pointers {
            let at = match dice.below(10) {
                // On the edge of two pages.
                0 => DATA + 0x1000 - dice.below(40),
                1 => DATA + 0x2000 - dice.below(40),
                2 => STACK + dice.below(0x900),
                3 => DATA + 0x40 + dice.below(0x1800),
                _ => DATA + 0x40 * (2 + dice.below(0x40)),
            };
            state.gpr[pointer.number()] = at;
        }
        state.gpr[program.roles.small.number()] = dice.below(64);
        state.gpr[program.roles.counter.number()] = 1 + dice.below(24);
        state.gpr[4] = STACK + 0x800 + 8 * dice.below(0x80);
        state
    }

    /// What both sides do; `None` if that is not known.
    fn run_both(&mut self, program: &Program, template: &Template, states: &[State]) -> Option<Vec<Outcome>> {
        let image = self.writer.assemble(program)?;
        let batch = self.native.batch();
        batch.template = *template;
        batch.count = states.len() as u64;
        batch.has_program = 1;
        batch.program = *image;
        for (input, state) in batch.inputs.iter_mut().zip(states) {
            *input = Input {
                state: *state,
                code: [0; 16],
                length: 0,
                patches: [NO_PATCH; PATCHES],
            };
        }
        let ran = match self.native.run() {
            Ok(()) => states.len(),
            Err(lost) => {
                eprintln!("the child {} in a program:\n{}", lost.how, self.writer.listing(program));
                lost.index
            }
        };
        self.emulated.set_template(template);
        self.emulated.set_program(&image);
        let mut outcomes = Vec::with_capacity(ran);
        for (i, state) in states.iter().enumerate().take(ran) {
            let ends = self.emulated.run_program(state, &mut self.found);
            let expected = &self.native.batch().outputs[i];
            let mut list = Vec::new();
            if !ends {
                list.push(Difference {
                    field: "end".to_owned(),
                    expected: "comes".to_owned(),
                    found: "does not come".to_owned(),
                });
            } else if !same(expected, &self.found, Mask::default()) {
                list = differences(expected, &self.found, Mask::default());
            }
            let vector = expected.vector;
            outcomes.push(Outcome { vector, list });
        }
        Some(outcomes)
    }

    fn differs(&mut self, program: &Program, template: &Template, state: &State) -> bool {
        let outcomes = self.run_both(program, template, core::slice::from_ref(state));
        outcomes.is_some_and(|outcomes| outcomes.iter().any(|outcome| !outcome.list.is_empty()))
    }

    /// Makes the program that differs small, and keeps it.
    fn tell(&mut self, program: &Program, template: &Template, state: &State, list: &[Difference]) {
        let field = |list: &[Difference]| list.first().map(|one| one.field.clone()).unwrap_or_default();
        let mut best = program.clone();
        let mut list = list.to_vec();
        let mut number = 0;
        while number < best.len() {
            let smaller = best.without(number).and_then(|smaller| {
                let outcome = self.run_both(&smaller, template, core::slice::from_ref(state))?.pop()?;
                (!outcome.list.is_empty()).then_some((smaller, outcome.list))
            });
            match smaller {
                Some((smaller, differences)) => {
                    best = smaller;
                    list = differences;
                    number = 0;
                }
                None => number += 1,
            }
        }
        let mut text = self.writer.listing(&best);
        let registers: Vec<String> = state
            .gpr
            .iter()
            .enumerate()
            .map(|(i, value)| format!("r{i}={value:#x}"))
            .collect();
        let mxcsr = u32::from_le_bytes(state.xsave.get(24));
        text.push_str(&format!(
            "    flags={:#x} mxcsr={mxcsr:#x} {}\n",
            state.flags,
            registers.join(" ")
        ));
        for Difference { field, expected, found } in &list {
            text.push_str(&format!(
                "    {field}: {expected} on the processor, {found} in the emulator\n"
            ));
        }
        let title = format!("{} after {}", field(&list), self.writer.last(&best));
        let mut told = lock(self.told);
        told.mismatches.entry(title).or_insert((0, text)).0 += 1;
    }
}

const NO_PATCH: Patch = Patch {
    page: 0,
    length: 0,
    at: 0,
    bytes: [0; 72],
};

/// What became of a program.
struct Outcome {
    /// The exception that ended it on the processor.
    vector: u32,
    /// What differs.
    list: Vec<Difference>,
}

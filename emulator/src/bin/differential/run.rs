//! Runs cases in batches, on several threads, until enough have been compared.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use reprise_emulator::{Counters, Model};

use crate::case::{Case, Maker};
use crate::compare::{Difference, differences, same};
use crate::dice::Dice;
use crate::emulated::{Emulated, Way};
use crate::form::{self, Forms};
use crate::lengths::{self, LONGEST};
use crate::native::{Native, settle};
use crate::quirk::{self, LeftOut};
use crate::report::{self, Count, Mismatch};
use crate::shrink::shrink;
use crate::state::{BATCH, NO_VECTOR, Output, Template};

/// What was asked for.
pub struct Options {
    /// Cases, or 0 for no end.
    pub count: u64,
    /// Where the randomness starts.
    pub seed: u64,
    /// Part of the names of families.
    pub family: String,
    /// Threads.
    pub threads: usize,
    /// Mismatches to print.
    pub rows: usize,
    /// Strings of bytes whose lengths are compared; then `count` and `family` do not matter.
    pub lengths: Option<u64>,
    /// The one way to execute cases; otherwise the careful way, and the fast one where there is one instruction.
    pub tier: Option<Tier>,
}

/// Mismatches of one title that are made small.
const SHRUNK: u64 = 1;

/// A way of the emulator to execute cases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// The fast way, by the interpreter.
    Fast,
    /// The careful way.
    Careful,
    /// The fast way, by translated code.
    Translated,
}

impl Tier {
    pub fn named(name: &str) -> Option<Tier> {
        match name {
            "fast" => Some(Tier::Fast),
            "careful" => Some(Tier::Careful),
            "translated" => Some(Tier::Translated),
            _ => None,
        }
    }
}

/// The model and the forms that are compared.
pub fn forms(options: &Options) -> (Arc<Model>, Forms) {
    let model = Arc::new(Model::with(form::host_has));
    let mut forms = Forms::new(&Model::new(), &options.family);
    forms.families.sort();
    let order = forms.families.clone();
    for form in forms.long.iter_mut().chain(&mut forms.narrow).chain(&mut forms.short) {
        let name = form::family(form.code);
        form.family = order.iter().position(|family| *family == name).unwrap_or(0);
    }
    (model, forms)
}

/// Prints what is compared and what is not.
pub fn list(options: &Options) {
    let (_, forms) = forms(options);
    println!(
        "compared: {} encodings in 64-bit code, {} in 32-bit code, {} in 16-bit code",
        forms.long.len(),
        forms.narrow.len(),
        forms.short.len()
    );
    for (i, family) in forms.families.iter().enumerate() {
        let count = |list: &[form::Form]| list.iter().filter(|form| form.family == i).count();
        println!("  {family}: {} and {}", count(&forms.long), count(&forms.narrow));
    }
    println!("not on this processor:");
    for (family, count) in &forms.foreign {
        println!("  {family}: {count}");
    }
    println!("not in the emulator:");
    for (family, codes) in &forms.missing {
        println!("  {family}: {codes:?}");
    }
    println!("not compared:");
    for (reason, mnemonics) in form::exclusions() {
        println!("  {}: it {reason}", mnemonics.join(", "));
    }
    println!("left out:");
    for (what, reason) in quirk::LEFT_OUT {
        println!("  {what} {reason}");
    }
    println!("compared in part:");
    for (what, reason) in quirk::REASONS {
        println!("  {what} {reason}");
    }
}

/// What the threads find.
struct Findings {
    counts: Vec<Count>,
    left_out: LeftOut,
    /// Mismatches by title: how many, and the first.
    mismatches: BTreeMap<String, (u64, Mismatch)>,
    /// What the emulator has done.
    done: Counters,
}

/// Runs; true if nothing differed.
pub fn run(options: &Options) -> bool {
    let (model, mut forms) = forms(options);
    let work = match options.lengths {
        Some(_) => {
            forms.families = ["64-bit code", "32-bit code", "16-bit code"]
                .map(str::to_owned)
                .to_vec();
            Work::Lengths
        }
        None => Work::Effects,
    };
    let count = options
        .lengths
        .map_or(options.count, |strings| strings.saturating_mul(LONGEST as u64));
    if forms.long.is_empty() && forms.narrow.is_empty() {
        eprintln!("there is no such family");
        return false;
    }
    let findings = Mutex::new(Findings {
        counts: vec![Count::default(); forms.families.len()],
        left_out: LeftOut::default(),
        mismatches: BTreeMap::new(),
        done: Counters::default(),
    });
    let done = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..options.threads {
            let (model, forms, findings, done, stop) = (model.clone(), &forms, &findings, &done, &stop);
            scope.spawn(move || {
                let processor = settle(thread);
                let mut worker = Worker {
                    native: match Native::new() {
                        Ok(native) => native,
                        Err(error) => {
                            eprintln!("no memory to share: {error}");
                            stop.store(true, Ordering::Relaxed);
                            return;
                        }
                    },
                    emulated: {
                        let mut emulated = Emulated::new(model.clone(), processor);
                        if options.tier == Some(Tier::Translated) {
                            emulated.translate(0);
                        }
                        emulated
                    },
                    tier: options.tier,
                    model,
                    work,
                    maker: Maker {
                        forms,
                        left_out: LeftOut::default(),
                    },
                    dice: Dice::new(options.seed.wrapping_mul(0x1_0000_0001).wrapping_add(thread as u64)),
                    found: Box::new(empty_output()),
                    expected: Box::new(empty_output()),
                    counts: vec![Count::default(); forms.families.len()],
                    findings,
                };
                while !stop.load(Ordering::Relaxed) {
                    let before = done.fetch_add(BATCH as u64, Ordering::Relaxed);
                    if count != 0 && before >= count {
                        break;
                    }
                    let left = if count == 0 { BATCH as u64 } else { count - before };
                    if !worker.batch(left.min(BATCH as u64) as usize) && count == 0 {
                        stop.store(true, Ordering::Relaxed);
                    }
                }
                let mut findings = findings.lock().unwrap_or_else(PoisonError::into_inner);
                findings.left_out.add(worker.maker.left_out);
                let done = worker.emulated.take_counters();
                findings.done.instructions += done.instructions;
                findings.done.translated += done.translated;
                for (sum, count) in findings.counts.iter_mut().zip(&worker.counts) {
                    sum.executions += count.executions;
                    sum.faults += count.faults;
                    sum.skipped += count.skipped;
                    sum.mismatches += count.mismatches;
                    sum.masked |= count.masked;
                }
            });
        }
    });
    let findings = findings.into_inner().unwrap_or_else(PoisonError::into_inner);
    for (count, mismatch) in findings.mismatches.values().take(options.rows) {
        mismatch.print();
        println!("    ({count} times)");
    }
    for (title, (count, _)) in findings.mismatches.iter().skip(options.rows) {
        println!("--- {title} ({count} times)");
    }
    report::table(&forms.families, &findings.counts);
    if options.tier == Some(Tier::Translated) {
        report::tiers(&findings.done);
    }
    for ((what, reason), count) in quirk::LEFT_OUT.iter().zip(findings.left_out.0) {
        println!("left out {count} times: {what} {reason}");
    }
    findings.mismatches.is_empty() && !stop.load(Ordering::Relaxed)
}

/// An outcome to be overwritten.
pub fn empty_output() -> Output {
    // Never read before it is written; only its size matters.
    Output {
        state: crate::state::State {
            xsave: crate::state::Xsave([0; crate::state::XSAVE_SIZE]),
            gpr: [0; 16],
            rip: 0,
            flags: 0,
            fs_base: 0,
            gs_base: 0,
            selectors: [0; 6],
            padding: [0; 2],
        },
        vector: 0,
        error_code: 0,
        cr2: 0,
        changed: [[0; 2]; 3],
        pages: [[0; crate::state::PAGE]; 3],
    }
}

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    /// The effects of instructions.
    Effects,
    /// The lengths of strings of bytes.
    Lengths,
}

struct Worker<'a> {
    model: Arc<Model>,
    work: Work,
    native: Native,
    emulated: Emulated,
    tier: Option<Tier>,
    maker: Maker<'a>,
    dice: Dice,
    found: Box<Output>,
    expected: Box<Output>,
    counts: Vec<Count>,
    findings: &'a Mutex<Findings>,
}

impl Worker<'_> {
    /// Makes, runs and compares `count` cases; true if nothing differed.
    fn batch(&mut self, count: usize) -> bool {
        let mut cases: Vec<Case> = Vec::with_capacity(BATCH);
        match self.work {
            Work::Effects => cases.extend((0..count).map(|_| self.maker.make(&mut self.dice))),
            Work::Lengths => {
                while cases.len() + LONGEST <= BATCH {
                    let Maker { forms, left_out } = &mut self.maker;
                    cases.extend(lengths::make(&mut self.dice, forms, &self.model, left_out));
                }
            }
        }
        let count = cases.len();
        let template = template(&mut self.dice);
        self.emulated.set_template(&template);
        let batch = self.native.batch();
        *batch_template(batch) = *template;
        batch.count = count as u64;
        for (input, case) in batch.inputs.iter_mut().zip(&cases) {
            *input = case.input;
        }
        let ran = match self.native.run() {
            Ok(()) => count,
            Err(lost) => {
                let case = cases[lost.index.min(count - 1)];
                self.note(
                    Mismatch {
                        case,
                        differences: vec![Difference {
                            field: "child".to_owned(),
                            expected: lost.how.to_owned(),
                            found: "goes on".to_owned(),
                        }],
                        way: "not at all",
                    },
                    1,
                );
                lost.index
            }
        };
        let mut fine = ran == count;
        for (i, case) in cases.iter().enumerate().take(ran) {
            copy_output(&mut self.expected, &self.native.batch().outputs[i]);
            if self.expected.vector == NO_VECTOR || has_unknown_mxcsr(&self.expected) {
                self.counts[case.family].skipped += 1;
                continue;
            }
            let counts = &mut self.counts[case.family];
            counts.executions += 1;
            counts.faults += u64::from(!matches!(self.expected.vector, 1 | 3));
            counts.masked |= case.mask.flags;
            for (way, name) in ways(case, self.tier) {
                if way == Way::Fast && is_unfinished(case, &self.expected) {
                    continue;
                }
                self.emulated
                    .run(&case.input, way, case.mask.mxcsr_mask, &mut self.found);
                settle_tf(way, &self.expected, &mut self.found);
                if !same(&self.expected, &self.found, case.mask) {
                    let lasts = !quirk::wraps(&self.expected, &self.found) && self.differs(case, way, name);
                    fine &= !lasts;
                    self.counts[case.family].mismatches += u64::from(lasts);
                    self.counts[case.family].skipped += u64::from(!lasts);
                    break;
                }
            }
        }
        fine
    }

    /// Makes a mismatch small and notes it; false if it was none: the kernel may have stepped in, and what it saves and
    /// restores is not all that there is (the x87 pointers).
    fn differs(&mut self, case: &Case, way: Way, name: &'static str) -> bool {
        let list = differences(&self.expected, &self.found, case.mask);
        let mismatch = Mismatch {
            case: *case,
            differences: list,
            way: name,
        };
        let title = mismatch.title();
        {
            let mut findings = self.findings.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((count, _)) = findings.mismatches.get_mut(&title)
                && *count >= SHRUNK
            {
                *count += 1;
                return true;
            }
        }
        // The results of this batch are still wanted.
        let outputs: Vec<Output> = self.native.batch().outputs.to_vec();
        let count = self.native.batch().count;
        let lasts = (0..2).all(|_| !self.run_one(case, way).is_empty());
        if lasts {
            let mismatch = self.smallest(case, way, name).unwrap_or(mismatch);
            self.note_as(title, mismatch, 1);
        }
        let batch = self.native.batch();
        batch.count = count;
        batch.outputs.clone_from_slice(&outputs);
        lasts
    }

    /// The case made small, differing in the same field first.
    fn smallest(&mut self, case: &Case, way: Way, name: &'static str) -> Option<Mismatch> {
        let first = |list: &[Difference]| list.first().map(|difference| difference.field.clone());
        let field = first(&self.run_one(case, way));
        let mut small = None;
        shrink(case, |case| {
            let list = self.run_one(case, way);
            let differs = !list.is_empty() && first(&list) == field;
            if differs {
                small = Some(Mismatch {
                    case: *case,
                    differences: list,
                    way: name,
                });
            }
            differs
        });
        small
    }

    /// Runs one case on both sides; what differs.
    fn run_one(&mut self, case: &Case, way: Way) -> Vec<Difference> {
        let batch = self.native.batch();
        batch.count = 1;
        batch.inputs[0] = case.input;
        if self.native.run().is_err() {
            return Vec::new();
        }
        copy_output(&mut self.expected, &self.native.batch().outputs[0]);
        self.emulated
            .run(&case.input, way, case.mask.mxcsr_mask, &mut self.found);
        settle_tf(way, &self.expected, &mut self.found);
        if same(&self.expected, &self.found, case.mask) {
            return Vec::new();
        }
        differences(&self.expected, &self.found, case.mask)
    }

    fn note(&self, mismatch: Mismatch, count: u64) {
        self.note_as(mismatch.title(), mismatch, count);
    }

    fn note_as(&self, title: String, mismatch: Mismatch, count: u64) {
        let mut findings = self.findings.lock().unwrap_or_else(PoisonError::into_inner);
        findings.mismatches.entry(title).or_insert((0, mismatch)).0 += count;
    }
}

/// The case set MXCSR bit 17, which the emulator does not have.
fn has_unknown_mxcsr(output: &Output) -> bool {
    output.state.xsave.0[26] & 2 != 0
}

/// The fast way did not see TF, which everything else that it leaves is to be compared with.
fn settle_tf(way: Way, expected: &Output, found: &mut Output) {
    if way == Way::Fast {
        found.state.flags |= expected.state.flags & crate::emulated::TF;
    }
}

/// The step was over before the instruction was: a gather that has read some elements. The fast way takes no steps.
fn is_unfinished(case: &Case, expected: &Output) -> bool {
    expected.vector == 1 && expected.state.rip == case.input.state.rip
}

/// How a case is executed: the careful way steps, and the fast way must come to the same.
fn ways(case: &Case, tier: Option<Tier>) -> impl Iterator<Item = (Way, &'static str)> {
    let name = match tier {
        Some(Tier::Translated) => "translated",
        _ => "fast",
    };
    let fast = (case.is_single && tier != Some(Tier::Careful)).then_some((Way::Fast, name));
    let given = if case.is_single { "careful" } else { "as given" };
    let is_careful = matches!(tier, None | Some(Tier::Careful));
    is_careful.then_some((Way::Given, given)).into_iter().chain(fast)
}

fn batch_template(batch: &mut crate::state::Batch) -> &mut Template {
    &mut batch.template
}

/// Memory: mostly zeros and random bytes.
pub fn template(dice: &mut Dice) -> Box<Template> {
    let mut template = Box::new([[0; crate::state::PAGE]; 4]);
    for page in template.iter_mut() {
        let taste = dice.taste();
        for word in page.chunks_exact_mut(8) {
            word.copy_from_slice(&dice.element(taste).to_le_bytes());
        }
    }
    template
}

/// Copies what there is of an outcome.
fn copy_output(to: &mut Output, from: &Output) {
    to.state = from.state;
    to.vector = from.vector;
    to.error_code = from.error_code;
    to.cr2 = from.cr2;
    to.changed = from.changed;
    for page in 0..3 {
        let [start, end] = from.changed[page].map(|at| usize::from(at).min(crate::state::PAGE));
        if start < end {
            to.pages[page][start..end].copy_from_slice(&from.pages[page][start..end]);
        }
    }
}

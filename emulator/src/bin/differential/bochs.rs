//! Bochs in the place of a processor that has AVX-512: compares the emulator with it on instructions that this processor
//! has not.
//!
//! # Purpose
//! Bochs is somebody else's reading of the manuals, complete up to AVX-512, GFNI, VAES and their like. A boot image of our
//! own runs batches of cases there in 64-bit mode at privilege level 0 and writes everything that each leaves behind to
//! its disk.
//!
//! # Life
//! [`case`] makes a case ([`evex`] its bytes), [`machine`] runs a batch of them in Bochs, [`emulated`] each in the emulator,
//! by the fast and by the careful way; [`outcome`] tells what differs.
//!
//! # Needs
//! `bochs`, `cc` and `ld`.

mod case;
mod emulated;
mod evex;
mod forms;
mod machine;
mod outcome;
mod quirk;

use std::collections::BTreeMap;

use crate::dice::Dice;
use crate::report::{self, Count};
use crate::run::Options;

use case::{Case, Maker, Pool};
use emulated::{Emulated, Way};
use forms::Forms;
use machine::Bochs;
use outcome::{Difference, differences};

/// Cases between two starts of Bochs, which take it a second or two.
const BATCH: u64 = 10_000;

/// A case that differed, and how many more of its kind did.
struct Mismatch {
    case: Case,
    inputs: Vec<(String, String)>,
    differences: Vec<Difference>,
    times: u64,
}

impl Mismatch {
    fn print(&self) {
        self.case.print();
        for (what, value) in &self.inputs {
            println!("    {what} = {value}");
        }
        for Difference { field, expected, found } in &self.differences {
            println!("    {field}:\n      Bochs    {expected}\n      emulator {found}");
        }
        println!("    ({} times)", self.times);
    }
}

/// Prints what is compared.
pub fn list(options: &Options) {
    let forms = Forms::new(&options.family);
    println!("compared with Bochs: {} encodings", forms.codes.len());
    for (family, count) in forms.counts() {
        println!("  {family}: {count}");
    }
    println!("not in the emulator:");
    for (family, codes) in &forms.missing {
        println!("  {family}: {codes:?}");
    }
    println!("not compared:");
    for (reason, mnemonics) in forms::exclusions() {
        println!("  {}: it {reason}", mnemonics.join(", "));
    }
    println!("compared in part:");
    for (what, reason) in quirk::REASONS {
        println!("  {what} {reason}");
    }
}

/// Runs; true if nothing differed.
pub fn run(options: &Options) -> bool {
    let forms = Forms::new(&options.family);
    if forms.codes.is_empty() {
        eprintln!("there is no such family");
        return false;
    }
    let bochs = match Bochs::new() {
        Ok(bochs) => bochs,
        Err(error) => {
            eprintln!("{error}");
            return false;
        }
    };
    let mut emulated = Emulated::new();
    let mut dice = Dice::new(options.seed);
    let mut counts = vec![Count::default(); forms.families.len()];
    let mut mismatches: BTreeMap<String, Mismatch> = BTreeMap::new();
    let mut left = if options.count == 0 { u64::MAX } else { options.count };
    while left > 0 && (options.count != 0 || mismatches.is_empty()) {
        let size = left.min(BATCH);
        left -= size;
        let pool = Pool::new(&mut dice);
        let maker = Maker {
            forms: &forms,
            pool: &pool,
        };
        let cases: Vec<Case> = (0..size).map(|_| maker.make(&mut dice)).collect();
        let expected = match bochs.run(&pool, &cases) {
            Ok(expected) => expected,
            Err(error) => {
                eprintln!("{error}");
                return false;
            }
        };
        for (case, expected) in cases.iter().zip(&expected) {
            let count = &mut counts[case.family];
            count.executions += 1;
            count.faults += u64::from(!expected.is_done());
            for way in [Way::Fast, Way::Careful] {
                let found = emulated.run(case, &pool, way);
                // With TF, a gather that stops behind an element is a step, and the fault at the next one the next.
                if way == Way::Careful && found.is_done() && found.rip == case.rip {
                    continue;
                }
                let differences = differences(case, expected, &found);
                if differences.is_empty() {
                    continue;
                }
                count.mismatches += 1;
                let field = differences[0].field.trim_end_matches(|c: char| c.is_ascii_digit());
                let title = format!("{} ({way:?}): {field}", case.name());
                let mismatch = mismatches.entry(title).or_insert_with(|| Mismatch {
                    case: *case,
                    inputs: case.inputs(&pool),
                    differences,
                    times: 0,
                });
                mismatch.times += 1;
                break;
            }
        }
    }
    for (title, mismatch) in mismatches.iter().take(options.rows) {
        println!("--- {title}");
        mismatch.print();
    }
    for (title, mismatch) in mismatches.iter().skip(options.rows) {
        println!("--- {title} ({} times)", mismatch.times);
    }
    report::table(&forms.families, &counts);
    mismatches.is_empty()
}

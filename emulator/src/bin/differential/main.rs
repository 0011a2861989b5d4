//! Compares the emulator with the processor that this program runs on, instruction by instruction.
//!
//! # Purpose
//! Random instructions of every encoding that the emulator executes and the processor has start from random states, once on
//! the processor, in a sandboxed child process, and once in the emulator. Everything that they leave behind is compared.
//!
//! # Life
//! [`case`] makes a case ([`encode`]s an instruction, [`place`]s its operands), [`native`] and its [`sandbox`] run it on the
//! processor, [`emulated`] in the emulator; [`compare`] tells what differs, [`mod@shrink`] makes that small, [`report`] prints it.
//! [`lengths`] compares the decoder's edges instead, and [`programs`] whole programs, which [`program`] writes.

mod bochs;
mod case;
mod compare;
mod dice;
mod emulated;
mod encode;
mod form;
mod lengths;
mod native;
mod place;
mod program;
mod programs;
mod quirk;
mod report;
mod run;
mod sandbox;
mod shrink;
mod state;

use std::process::ExitCode;

use run::{Options, Tier};

const USAGE: &str =
    "usage: differential [--count N] [--seed S] [--family NAME] [--threads N] [--rows N] [--lengths N] [--programs N] [--tier fast|careful|translated]
    [--forms]
  --count N      cases to run (1000000); 0 goes on until something differs
  --seed S       where the randomness starts (1)
  --family NAME  only families whose name contains NAME, or the instruction NAME
  --threads N    threads, each with a child of its own (1)
  --lengths N    compares the lengths of N strings of bytes instead of the effects of instructions
  --programs N   compares N little programs instead of instructions, each from several states and with a fault at each access;
                 0 goes on until something differs
  --rows N       mismatches to print (20)
  --tier NAME    executes the emulator's side by the fast way, the careful one, or translated (careful, and fast where it can)
  --against bochs  compares with Bochs, on what this processor has not
  --forms        lists what is compared and what is not, and why";

/// Status if this processor cannot run cases.
const NOT_HERE: u8 = 77;

fn main() -> ExitCode {
    let mut options = Options {
        count: 1_000_000,
        seed: 1,
        family: String::new(),
        threads: 1,
        rows: 20,
        lengths: None,
        tier: None,
    };
    let mut lists = false;
    let mut with_bochs = false;
    let mut programs = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().and_then(|text| text.parse::<u64>().ok());
        let taken = match argument.as_str() {
            "--count" => number().map(|count| options.count = count),
            "--seed" => number().map(|seed| options.seed = seed),
            "--threads" => number().map(|threads| options.threads = threads.clamp(1, 256) as usize),
            "--lengths" => number().map(|count| options.lengths = Some(count)),
            "--programs" => number().map(|count| programs = Some(count)),
            "--rows" => number().map(|rows| options.rows = rows as usize),
            "--family" => arguments.next().map(|family| options.family = family),
            "--tier" => arguments
                .next()
                .and_then(|name| Tier::named(&name))
                .map(|tier| options.tier = Some(tier)),
            "--against" => (arguments.next().as_deref() == Some("bochs")).then(|| with_bochs = true),
            "--forms" => {
                lists = true;
                Some(())
            }
            _ => None,
        };
        if taken.is_none() {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    }
    if lists {
        match with_bochs {
            true => bochs::list(&options),
            false => run::list(&options),
        }
        return ExitCode::SUCCESS;
    }
    if let Some(obstacle) = native::obstacle().filter(|_| !with_bochs) {
        eprintln!("nothing is compared: {obstacle}");
        return ExitCode::from(NOT_HERE);
    }
    let is_same = match (with_bochs, programs) {
        (true, _) => bochs::run(&options),
        (false, Some(count)) => programs::run(&options, count),
        (false, None) => run::run(&options),
    };
    match is_same {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

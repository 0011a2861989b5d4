//! Random instructions on the processor that the tests run on and in the emulator: seeded, so that the same ones run each
//! time. The binary does the same for as long as asked. Skipped where the processor or Linux cannot run the cases, unless
//! `REPRISE_REQUIRE` names `differential`.
#![cfg(feature = "differential")]

use std::process::Command;

fn is_required() -> bool {
    std::env::var("REPRISE_REQUIRE").is_ok_and(|what| what.split(',').any(|one| one == "differential"))
}

fn differs(arguments: &[&str]) -> Option<String> {
    let output = Command::new(env!("CARGO_BIN_EXE_differential"))
        .args(arguments)
        .output()
        .expect("the binary has been built");
    let [out, errors] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
    // On a processor that cannot run the cases there is nothing to compare with.
    let is_skipped = output.status.code() == Some(77) && !is_required();
    if is_skipped {
        eprintln!("skipped: {errors}");
    }
    (!is_skipped && !output.status.success()).then(|| format!("{out}{errors}"))
}

#[test]
fn a_hundred_thousand_random_instructions_do_what_they_do_on_the_processor() {
    if let Some(table) = differs(&["--count", "100000", "--seed", "2"]) {
        panic!("{table}");
    }
}

#[test]
fn random_bytes_are_as_long_and_as_valid_as_on_the_processor() {
    if let Some(table) = differs(&["--lengths", "4000", "--seed", "2"]) {
        panic!("{table}");
    }
}

#[test]
fn thousands_of_random_instructions_do_in_translated_code_what_they_do_on_the_processor() {
    if let Some(table) = differs(&["--count", "20000", "--seed", "3", "--tier", "translated"]) {
        panic!("{table}");
    }
}

#[test]
fn little_programs_with_a_fault_at_each_access_do_in_every_tier_what_they_do_on_the_processor() {
    for tier in ["fast", "careful", "translated"] {
        if let Some(table) = differs(&["--programs", "1000", "--seed", "2", "--tier", tier]) {
            panic!("{tier}: {table}");
        }
    }
}

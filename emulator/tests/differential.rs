//! Random instructions on the processor that the tests run on and in the emulator: seeded, so that the same ones run each
//! time. The binary does the same for as long as asked.
#![cfg(feature = "differential")]

use std::process::Command;

fn differs(arguments: &[&str]) -> Option<String> {
    let output = Command::new(env!("CARGO_BIN_EXE_differential"))
        .args(arguments)
        .output()
        .expect("the binary has been built");
    // On a processor that cannot run the cases there is nothing to compare with.
    let is_fine = output.status.success() || output.status.code() == Some(77);
    (!is_fine).then(|| {
        let [out, errors] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
        format!("{out}{errors}")
    })
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

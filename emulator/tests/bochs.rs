//! AVX-512 and what came with it, compared with Bochs by the differential tester. Skipped without Bochs, unless
//! `REPRISE_REQUIRE` names `bochs`.

use std::process::Command;

#[test]
fn instructions_that_this_processor_has_not_do_what_they_do_in_bochs() {
    if let Err(error) = Command::new("bochs").args(["--help", "cpu"]).output() {
        let is_required = std::env::var("REPRISE_REQUIRE").is_ok_and(|what| what.split(',').any(|one| one == "bochs"));
        assert!(!is_required, "bochs: {error}");
        eprintln!("skipped: bochs: {error}");
        return;
    }
    let output = Command::new(env!("CARGO_BIN_EXE_differential"))
        .args(["--against", "bochs", "--count", "5000", "--seed", "1"])
        .output()
        .expect("the tester starts");
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

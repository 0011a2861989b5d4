//! The tier that the machines of a test program run in: hot code is translated, or with `REPRISE_TIER=interpreted` in the
//! environment everything interpreted. Each program that uses this runs itself once more in that way.

use std::process::Command;

const TIER: &str = "REPRISE_TIER";

/// What a configuration's `cpus.translate` is to say.
pub fn translates() -> bool {
    std::env::var_os(TIER).is_none_or(|tier| tier != "interpreted")
}

#[test]
fn all_of_this_holds_when_everything_is_interpreted_too() {
    if !translates() {
        return;
    }
    let again = std::env::current_exe().unwrap();
    let output = Command::new(again).env(TIER, "interpreted").output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}");
    println!("{told}");
}

//! The tier that the tests of a program run in: interpreted, or with `REPRISE_TIER=translated` in the environment translated as
//! soon as it is executed. Each program that uses this runs itself once more in that way.

use std::process::Command;

use reprise_emulator::Emulator;
use reprise_emulator::translate::Translation;

const TIER: &str = "REPRISE_TIER";

pub fn is_translated() -> bool {
    std::env::var_os(TIER).is_some_and(|tier| tier == "translated")
}

/// Has a new CPU be in that tier.
pub fn set(emulator: &mut Emulator) {
    if is_translated() {
        let translation = Translation {
            threshold: 0,
            buffer: 1 << 20,
            ..Translation::default()
        };
        emulator.set_translation(Some(translation)).expect("executable memory");
    }
}

/// Translated code leaves the flags that the architecture leaves undefined as this processor does; the interpreter has those of
/// the modelled one.
fn is_modelled_host() -> bool {
    let vendor = core::arch::x86_64::__cpuid(0);
    let version = core::arch::x86_64::__cpuid(1).eax;
    let family = (version >> 8 & 0xf) + (version >> 20 & 0xff);
    (vendor.ebx, family) == (u32::from_le_bytes(*b"Auth"), 25)
}

#[test]
fn all_of_this_holds_when_everything_is_translated_too() {
    if is_translated() || !is_modelled_host() {
        return;
    }
    let again = std::env::current_exe().expect("this program");
    let output = Command::new(again).env(TIER, "translated").output().expect("runs");
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}");
    println!("{told}");
}

//! What the processor does at privilege level 0 and between its modes: bootable images of our own, each run on Reprise
//! and on QEMU's TCG.
//!
//! An image (`images/*.S`) is a list of scenes that print what they find: exceptions with error codes and pushed frames,
//! descriptors, flags. `expected/*.txt` is what the manuals say it must print; Reprise prints exactly that. QEMU must
//! print it too, save in the scenes that `deviations` names with the manual's section. An image is assembled with the
//! host's `cc` and `ld`.
//!
//! Without QEMU that half is skipped, unless `REPRISE_REQUIRE` names `qemu`.

mod deviations;
mod engines;
mod trace;

use deviations::DEVIATIONS;
use engines::Image;
use trace::Trace;

/// Runs an image on Reprise.
fn check_here(name: &str) -> (Image, Trace) {
    let image = Image::assemble(name);
    let expected = Trace::expected(name);
    let ours = Trace::of(&image.run_on_reprise());
    if let Some(difference) = expected.difference(&ours, &[]) {
        panic!("{name} on Reprise: {difference}");
    }
    (image, expected)
}

/// Runs an image on both.
fn check(name: &str) {
    let (image, expected) = check_here(name);
    let Some(theirs) = image.run_on_qemu() else { return };
    let deviations: Vec<&str> = DEVIATIONS
        .iter()
        .filter(|deviation| deviation.image == name)
        .map(|deviation| deviation.scene)
        .collect();
    let theirs = Trace::of(&theirs);
    if let Some(difference) = expected.without_rf().difference(&theirs.without_rf(), &deviations) {
        panic!("{name} on QEMU: {difference}");
    }
    for scene in deviations {
        assert!(
            expected.has(scene),
            "{name} has no scene {scene:?}, in which QEMU is said to deviate"
        );
    }
}

#[test]
fn segments_and_far_pointers_to_every_type_of_descriptor() {
    check("segments");
}

#[test]
fn gates_interrupts_stack_switches_and_returns() {
    check("transfers");
}

/// On QEMU this image ends in a triple fault: TCG turns paging on in real mode.
#[test]
fn control_registers_refuse_what_the_manual_forbids() {
    check_here("control");
}

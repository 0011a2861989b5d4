//! What the processor does at privilege level 0 and between its modes: bootable images of our own, each run on Reprise,
//! on QEMU's TCG and in Bochs.
//!
//! An image (`images/*.S`) is a list of scenes that print what they find: exceptions with error codes and pushed frames,
//! descriptors, flags. `expected/*.txt` is what the manuals say it must print; Reprise prints exactly that. QEMU
//! and Bochs must print it too, save in the scenes that `deviations` names with the manual's section. An image is assembled with the
//! host's `cc` and `ld`.
//!
//! Without QEMU or Bochs that part is skipped, unless `REPRISE_REQUIRE` names `qemu` or `bochs`.

mod deviations;
mod engines;
mod trace;

use deviations::Deviation;
use engines::Image;
use reprise_hypervisor::{Hypervisor, SoftHypervisor, Stress, Translation};
use trace::Trace;

/// Runs an image on Reprise, in each tier.
fn check_here(name: &str) -> (Image, Trace) {
    let image = Image::assemble(name);
    let expected = Trace::expected(name);
    let at_once = Translation {
        threshold: 0,
        ..Translation::default()
    };
    let stress = Stress {
        spared: Some(1),
        starved: false,
    };
    let in_part = Translation { stress, ..at_once };
    let engines: [(&str, &dyn Hypervisor); 3] = [
        ("interpreted", &SoftHypervisor.interpreting()),
        ("translated", &SoftHypervisor.translating(at_once)),
        ("translated in part", &SoftHypervisor.translating(in_part)),
    ];
    for (how, engine) in engines {
        let ours = Trace::of(&image.run_on_reprise(engine));
        if let Some(difference) = expected.difference(&ours, &[]) {
            panic!("{name} on Reprise, {how}: {difference}");
        }
    }
    (image, expected)
}

/// Runs an image on all.
fn check(name: &str) {
    let (image, expected) = check_here(name);
    check_on_bochs(name, &image, &expected);
    check_on_qemu(name, &image, &expected);
}

fn check_on_qemu(name: &str, image: &Image, expected: &Trace) {
    let Some(theirs) = image.run_on_qemu() else { return };
    let apart = deviations(name, expected, deviations::QEMU);
    let theirs = Trace::of(&theirs);
    if let Some(difference) = expected.without_rf().difference(&theirs.without_rf(), &apart) {
        panic!("{name} on QEMU: {difference}");
    }
}

fn check_on_bochs(name: &str, image: &Image, expected: &Trace) {
    let Some(theirs) = image.run_on_bochs() else { return };
    let apart = deviations(name, expected, deviations::BOCHS);
    // Bochs has much to say itself.
    let theirs = Trace::of(&theirs).scenes_of(expected);
    if let Some(difference) = expected.difference(&theirs, &apart) {
        panic!("{name} in Bochs: {difference}");
    }
}

/// The scenes of an image in which somebody deviates.
fn deviations(name: &str, expected: &Trace, list: &[Deviation]) -> Vec<&'static str> {
    let scenes: Vec<&str> = list
        .iter()
        .filter(|deviation| deviation.image == name)
        .map(|deviation| deviation.scene)
        .collect();
    for scene in &scenes {
        assert!(
            expected.has(scene),
            "{name} has no scene {scene:?}, in which somebody is said to deviate"
        );
    }
    scenes
}

#[test]
fn segments_and_far_pointers_to_every_type_of_descriptor() {
    check("segments");
}

#[test]
fn gates_interrupts_stack_switches_and_returns() {
    check("transfers");
}

#[test]
fn paging_with_two_and_three_levels() {
    check("paging");
}

/// QEMU hangs when it has come to the end of this image.
#[test]
fn hardware_task_switches() {
    let (image, expected) = check_here("tasks");
    check_on_bochs("tasks", &image, &expected);
}

#[test]
fn task_state_on_pages() {
    check("tasks_on_pages");
}

#[test]
fn virtual_8086_mode_and_its_extensions() {
    check("virtual86");
}

#[test]
fn real_and_unreal_mode_and_protected_mode_of_16_bits() {
    check("real");
}

#[test]
fn long_mode_its_stacks_gates_and_system_calls() {
    check("long");
}

#[test]
fn breakpoints_single_steps_and_general_detect() {
    check("debug");
}

/// QEMU does not survive the second scene: an assertion of its own fails.
#[test]
fn breakpoints_on_what_transfers_and_events_push_and_pop() {
    let (image, expected) = check_here("watched");
    check_on_bochs("watched", &image, &expected);
}

/// Bochs's Ice Lake has no 57-bit addresses.
#[test]
fn five_levels_of_paging_and_protection_keys() {
    let (image, expected) = check_here("extended");
    check_on_qemu("extended", &image, &expected);
}

/// On QEMU this image ends in a triple fault: TCG turns paging on in real mode.
#[test]
fn control_registers_refuse_what_the_manual_forbids() {
    let (image, expected) = check_here("control");
    check_on_bochs("control", &image, &expected);
}

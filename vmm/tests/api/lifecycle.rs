//! What the VMM does when its guest ends, and what its event stream says.

use std::io::{BufRead, BufReader, Lines};
use std::os::unix::net::UnixStream;

use reprise_vmm::config::{PayloadConfig, VmConfig};
use reprise_vmm::events::Events;
use reprise_vmm::lifecycle::{End, VmState, Vmm, VmmError, WhenGuestEnds};
use reprise_vmm::machine::MachineEnd;

use crate::doubles::{Doubles, EVENTUALLY};

/// A running VM, and the events from then on.
struct World {
    doubles: Doubles,
    vmm: Vmm,
    events: Lines<BufReader<UnixStream>>,
}

fn config() -> VmConfig {
    VmConfig {
        payload: PayloadConfig {
            kernel: Some("/kernel".into()),
            ..PayloadConfig::default()
        },
        ..VmConfig::default()
    }
}

impl World {
    fn running(when_guest_ends: WhenGuestEnds) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_read_timeout(Some(EVENTUALLY)).unwrap();
        let doubles = Doubles::new();
        let vmm = doubles.vmm(when_guest_ends, Events::to(ours).unwrap());
        vmm.create(config()).unwrap();
        vmm.boot().unwrap();
        doubles.wait_start();
        let mut world = Self {
            doubles,
            vmm,
            events: BufReader::new(theirs).lines(),
        };
        world.expect_events(&["vmm started", "vm created", "vm booting", "vm booted"]);
        world
    }

    fn expect_events(&mut self, names: &[&str]) {
        for name in names {
            let line = self.events.next().expect("the stream ended").unwrap();
            let event: serde_json::Value = serde_json::from_str(&line).unwrap();
            let found = format!(
                "{} {}",
                event["source"].as_str().unwrap(),
                event["event"].as_str().unwrap()
            );
            assert_eq!(&found, name, "{line}");
        }
    }

    fn state(&self) -> VmState {
        self.vmm.info().unwrap().state
    }
}

#[test]
fn a_guest_that_powers_off_leaves_a_vm_that_can_be_booted_again() {
    let mut world = World::running(WhenGuestEnds::Stay);
    world.doubles.end(MachineEnd::PowerOff);
    world.expect_events(&["vm shutdown"]);
    assert_eq!(world.state(), VmState::Shutdown);
    world.vmm.boot().unwrap();
    assert_eq!(world.state(), VmState::Running);
    assert_eq!(world.doubles.asked(), ["build", "start", "stop", "build", "start"]);
}

#[test]
fn a_guest_that_resets_runs_in_a_new_machine() {
    let mut world = World::running(WhenGuestEnds::End);
    world.doubles.end(MachineEnd::Reset);
    world.expect_events(&["vm rebooting", "vm rebooted"]);
    assert_eq!(world.state(), VmState::Running);
    assert_eq!(world.doubles.asked(), ["build", "start", "stop", "build", "start"]);
}

#[test]
fn a_program_that_lives_for_its_guest_ends_with_it() {
    for (end, wanted) in [
        (MachineEnd::PowerOff, End::PowerOff),
        (MachineEnd::DebugExit(3), End::DebugExit(3)),
        (MachineEnd::Failed("why".to_owned()), End::Failed("why".to_owned())),
    ] {
        let world = World::running(WhenGuestEnds::End);
        world.doubles.end(end);
        assert_eq!(world.vmm.wait(), wanted);
        assert_eq!(world.state(), VmState::Shutdown);
    }
}

#[test]
fn a_failed_vcpu_is_an_event_with_its_reason() {
    let mut world = World::running(WhenGuestEnds::Stay);
    world.doubles.end(MachineEnd::Failed("RIP 0xfff0".to_owned()));
    let line = world.events.next().unwrap().unwrap();
    let event: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&event["source"], &event["event"]), (&"vcpu".into(), &"failed".into()));
    assert_eq!(event["properties"]["reason"], "RIP 0xfff0");
    world.expect_events(&["vm shutdown"]);
}

#[test]
fn a_triple_fault_resets_and_three_in_a_row_give_the_machine_up() {
    let mut world = World::running(WhenGuestEnds::End);
    for _ in 0..2 {
        world.doubles.end(MachineEnd::Shutdown);
        world.expect_events(&["vcpu triple-fault", "vm rebooting", "vm rebooted"]);
    }
    world.doubles.end(MachineEnd::Shutdown);
    world.expect_events(&["vcpu triple-fault", "vm given-up", "vm shutdown"]);
    assert!(matches!(world.vmm.wait(), End::Failed(_)));
}

#[test]
fn a_reset_in_between_begins_a_new_row() {
    let mut world = World::running(WhenGuestEnds::End);
    for end in [
        MachineEnd::Shutdown,
        MachineEnd::Shutdown,
        MachineEnd::Reset,
        MachineEnd::Shutdown,
    ] {
        if end == MachineEnd::Shutdown {
            world.doubles.end(end);
            world.expect_events(&["vcpu triple-fault"]);
        } else {
            world.doubles.end(end);
        }
        world.expect_events(&["vm rebooting", "vm rebooted"]);
    }
}

#[test]
fn a_machine_that_is_gone_has_no_say_any_more() {
    let mut world = World::running(WhenGuestEnds::End);
    let late = world.doubles.take_on_end();
    world.vmm.reboot().unwrap();
    world.expect_events(&["vm rebooting", "vm rebooted"]);
    late(MachineEnd::PowerOff);
    // What comes after it is heeded, and so the late word was not.
    world.doubles.end(MachineEnd::Reset);
    world.expect_events(&["vm rebooting", "vm rebooted"]);
    assert_eq!(world.state(), VmState::Running);
}

#[test]
fn a_machine_that_cannot_be_built_again_is_a_failure() {
    let mut world = World::running(WhenGuestEnds::End);
    world.doubles.refuse("the kernel is gone");
    world.doubles.end(MachineEnd::Reset);
    world.expect_events(&["vm rebooting", "vm shutdown"]);
    let End::Failed(reason) = world.vmm.wait() else {
        panic!("no failure")
    };
    assert!(reason.ends_with("the kernel is gone"), "{reason}");
}

#[test]
fn a_closed_vmm_has_stopped_its_machine_and_refuses_calls() {
    let mut world = World::running(WhenGuestEnds::Stay);
    world.vmm.request_end();
    assert_eq!(world.vmm.wait(), End::Asked);
    world.vmm.close();
    world.expect_events(&["vmm stopping"]);
    assert!(world.events.next().is_none(), "the stream is closed");
    assert_eq!(world.doubles.asked(), ["build", "start", "stop"]);
    assert!(matches!(world.vmm.boot(), Err(VmmError::Closing)));
    world.vmm.close();
}

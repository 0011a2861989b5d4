//! A device that never answers. Every call to it waits at most as long as the test's client does, which is how these fail.

use iced_x86::code_asm::*;
use reprise_vmm::config::DelayConfig;
use serde_json::json;

use crate::code::{assemble, print};
use crate::world::{World, eventually};

/// A register of each device of the board that can be read without harm.
const REGISTERS: [(&str, i32); 5] = [
    ("acpi", 0x608),
    ("i8042", 0x64),
    ("post", 0x80),
    ("rtc", 0x71),
    ("serial", 0x3fd),
];

/// Boots a guest that reads one register again and again, of a device that falls silent at the third time.
fn asking(port: i32, device: &str) -> World {
    let code = assemble(|a| {
        let mut again = a.create_label();
        a.mov(dx, port)?;
        a.set_label(&mut again)?;
        a.in_(al, dx)?;
        a.jmp(again)
    });
    World::boot(&code, 1, &json!([{"device": device, "us": "never", "after": 2}]))
}

#[test]
fn rule_21_every_call_works_while_a_device_is_silent_for_ever() {
    for (device, port) in REGISTERS {
        let world = asking(port, device);
        world.wait_parked("vcpu0", 1);
        for (call, state) in [
            ("vm.pause", "Paused"),
            ("vm.resume", "Running"),
            ("vm.power-button", "Running"),
            ("vm.pause", "Paused"),
            ("vm.resume", "Running"),
        ] {
            world.put(call);
            assert_eq!(world.state(), state, "{device}: {call}");
            assert!(world.get("vmm.ping")["pid"].is_u64());
            assert_eq!(world.counter("vcpu0", "parked"), 1, "{device}: still the same wait");
            assert_eq!(world.counter("vcpu0", "cancellations"), 0);
            assert_eq!(world.counter(device, "reads"), 3, "asked once");
            assert_eq!(world.counter(device, "late"), 1);
        }
        // The next machine finds the device as silent.
        world.put("vm.reboot");
        assert_eq!(world.state(), "Running");
        world.wait_parked("vcpu0", 1);
        world.put("vm.shutdown");
        assert_eq!(world.state(), "Shutdown");
        world.put("vm.boot");
        world.wait_parked("vcpu0", 1);
        world.put("vm.delete");
        assert_eq!(world.call("GET", "vm.info", "").0, 404);
        world.put("vmm.shutdown");
    }
}

#[test]
fn with_every_device_silent_a_paused_machine_is_shut_down_all_the_same() {
    let world = asking(0x3fd, DelayConfig::EVERY_DEVICE);
    world.wait_parked("vcpu0", 1);
    world.put("vm.pause");
    world.put("vm.shutdown");
    assert_eq!(world.state(), "Shutdown");
    world.put("vm.boot");
    world.wait_parked("vcpu0", 1);
    world.put("vm.pause");
    world.put("vm.delete");
}

#[test]
fn counters_show_what_a_parked_vcpu_has_done_and_that_it_waits() {
    let world = asking(0x80, "post");
    world.wait_parked("vcpu0", 1);
    let before = world.get("vm.counters")["vcpu0"].take();
    // The one that is waited for has been begun; the passes of the other two ended with their answers.
    for (name, figure) in [
        ("device_accesses", 3),
        ("requests", 3),
        ("careful_passes", 5),
        ("parked", 1),
        ("cancellations", 0),
        ("stale_answers", 0),
    ] {
        assert_eq!(before[name], figure, "{name}: {before}");
    }
    assert!(
        before["replayed_reads"].as_u64() >= Some(2),
        "each answered read: {before}"
    );
    eventually("more time parked", || {
        let mut now = world.get("vm.counters")["vcpu0"].take();
        let grown = now["parked_us"].as_u64() > before["parked_us"].as_u64();
        now["parked_us"] = before["parked_us"].clone();
        assert_eq!(now, before, "nothing else happens");
        grown
    });
}

#[test]
fn a_machine_can_wait_for_its_console_and_for_a_device_at_once() {
    let code = assemble(|a| {
        print(a, "hello")?;
        a.mov(dx, 0x71)?;
        a.in_(al, dx)?;
        print(a, "never")
    });
    let world = World::boot(&code, 1, &json!([{"device": "rtc", "us": "never"}]));
    let mut console = world.console();
    console.expect("hello");
    world.wait_parked("vcpu0", 1);
    world.put("vm.pause");
    assert_eq!(world.counter("serial", "written"), 5);
    world.put("vm.delete");
}

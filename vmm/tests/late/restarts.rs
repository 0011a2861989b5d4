//! One vCPU waits for ever, and another one restarts it, the machine, or nothing at all.

use iced_x86::code_asm::*;
use reprise_devices::acpi::ports;
use serde_json::json;

use crate::code::{COM1, assemble, print};
use crate::second;
use crate::world::{Console, World, eventually};

/// Where it counts its starts.
const STARTS: i32 = 0x9000;

/// Counts its start, then reads a port where nobody answers.
fn stub() -> Vec<u8> {
    let mut a = CodeAssembler::new(16).unwrap();
    let write = |a: &mut CodeAssembler| -> Result<(), IcedError> {
        a.xor(ax, ax)?;
        a.mov(ds, ax)?;
        a.lock().inc(word_ptr(STARTS))?;
        a.in_(al, 0x71)?;
        a.cli()?;
        a.hlt()
    };
    write(&mut a).unwrap();
    a.assemble(0).unwrap()
}

/// Starts the second vCPU, says `a` when it runs, and obeys: `i` restarts it, `x` resets the machine, `p` switches it off,
/// and anything else is sent back.
fn guest() -> Vec<u8> {
    let stub = stub();
    assemble(|a| {
        let [mut start, mut wait] = [(); 2].map(|()| a.create_label());
        let [mut next, mut restart, mut reset, mut off] = [(); 4].map(|()| a.create_label());
        second::place(a, &stub)?;
        a.mov(dword_ptr(STARTS), 0)?;
        a.call(start)?;
        print(a, "a")?;

        a.set_label(&mut next)?;
        a.mov(dx, COM1 + 5)?;
        a.in_(al, dx)?;
        a.test(al, 1)?;
        a.je(next)?;
        a.mov(dx, COM1)?;
        a.in_(al, dx)?;
        a.cmp(al, i32::from(b'i'))?;
        a.je(restart)?;
        a.cmp(al, i32::from(b'x'))?;
        a.je(reset)?;
        a.cmp(al, i32::from(b'p'))?;
        a.je(off)?;
        a.out(dx, al)?;
        a.jmp(next)?;
        a.set_label(&mut restart)?;
        a.call(start)?;
        print(a, "r")?;
        a.jmp(next)?;
        a.set_label(&mut reset)?;
        a.mov(dx, i32::try_from(ports::RESET).unwrap())?;
        a.mov(al, i32::from(ports::RESET_VALUE))?;
        a.out(dx, al)?;
        a.set_label(&mut off)?;
        a.mov(dx, i32::try_from(ports::PM1A_CNT).unwrap() + 1)?;
        a.mov(al, i32::from(0x20 | ports::SLP_TYP_S5 << 2))?;
        a.out(dx, al)?;
        a.hlt()?;

        // Starts the second vCPU, and waits until one start more is counted.
        a.set_label(&mut start)?;
        a.mov(ebx, dword_ptr(STARTS))?;
        second::start(a)?;
        a.set_label(&mut wait)?;
        a.pause()?;
        a.cmp(ebx, dword_ptr(STARTS))?;
        a.je(wait)?;
        a.ret()
    })
}

/// A guest whose second vCPU waits for ever.
fn waiting() -> (World, Console) {
    let world = World::boot(&guest(), 2, &json!([{"device": "rtc", "us": "never"}]));
    let mut console = world.console();
    console.expect("a");
    world.wait_parked("vcpu1", 1);
    (world, console)
}

#[test]
fn rule_20_init_and_sipi_restart_a_vcpu_that_waits_for_ever() {
    let (world, mut console) = waiting();
    for restarts in 1..=3 {
        console.write("i");
        console.expect("r");
        world.wait_parked("vcpu1", 1 + restarts);
        assert_eq!(world.counter("vcpu1", "cancellations"), restarts);
        assert_eq!(world.counter("vcpu1", "device_accesses"), 1 + restarts);
        assert_eq!(world.counter("rtc", "reads"), 1 + restarts);
        assert_eq!(world.counter("vcpu0", "cancellations"), 0);
        world.put("vm.pause");
        world.put("vm.resume");
    }
    assert_eq!(world.counter("vcpu1", "stale_answers"), 0, "none has come");
    world.put("vm.shutdown");
}

#[test]
fn the_other_vcpus_run_on() {
    let (world, mut console) = waiting();
    for letter in ["b", "c", "d"] {
        console.write(letter);
        console.expect(letter);
    }
    let before = world.get("vm.counters");
    console.write("e");
    console.expect("e");
    let instructions = |counters: &serde_json::Value, vcpu| counters[vcpu]["instructions"].as_u64().unwrap();
    // A vCPU that the host is slow to wake tells figures of a moment ago.
    let mut after = before.clone();
    eventually("more instructions", || {
        after = world.get("vm.counters");
        instructions(&after, "vcpu0") > instructions(&before, "vcpu0")
    });
    assert_eq!(instructions(&after, "vcpu1"), instructions(&before, "vcpu1"));
    assert_eq!(after["vcpu0"]["parked"], 0);
}

#[test]
fn a_guest_resets_its_machine_and_switches_it_off_while_a_vcpu_waits_for_ever() {
    let (world, mut console) = waiting();
    for resets in 1..=2 {
        console.write("x");
        console.expect("a");
        world.wait_event("vm rebooted", resets);
        world.wait_parked("vcpu1", 1);
        assert_eq!(world.state(), "Running");
    }
    console.write("p");
    world.wait_event("vm shutdown", 1);
    assert_eq!(world.state(), "Shutdown");
    world.put("vm.delete");
}

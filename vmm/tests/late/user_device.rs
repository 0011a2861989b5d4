//! Devices in processes of their own, in machines of another process: what a guest sees of the example, and what becomes of the
//! guest when it stops, dies, and comes back.

#[path = "../../../devices/examples/user_device.rs"]
mod example;
mod guest;
mod long;
mod process;
mod table;

use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::Signal;
use serde_json::json;
use tempfile::TempDir;

use crate::code;
use crate::world::{World, eventually};
use process::Process;

fn start() -> (TempDir, Process) {
    let folder = tempfile::tempdir().unwrap();
    let process = Process::start(&folder.path().join("device"));
    (folder, process)
}

fn boot(process: &Process, code: &[u8], vcpus: u32) -> World {
    World::boot_with(code, vcpus, "user_devices", &json!([{"socket": process.socket}]))
}

#[test]
fn a_guest_reads_registers_takes_the_interrupt_and_sees_what_was_written_to_memory() {
    let (_folder, process) = start();
    let world = boot(&process, &guest::greeted(), 1);
    world.console().expect("RPRS!hello from another process.");
    assert_eq!(world.counter("user0", "connected"), 1);
    assert!(world.counter("user0", "late") >= 2, "answers come late, and park");
    assert!(world.counter("vcpu0", "parked") >= 2);
    world.put("vm.delete");
}

#[test]
fn rule_22_a_process_that_is_stopped_holds_the_vcpu_that_asks_and_nobody_else() {
    let (folder, process) = start();
    let world = boot(&process, &guest::watched(), 2);
    let mut console = world.console();
    console.expect("R");
    process.signal(Signal::STOP);
    // Not one more answer: the vCPU waits, and goes on waiting.
    eventually("the vCPU waits", || {
        let reads = world.counter("user0", "reads");
        std::thread::sleep(std::time::Duration::from_millis(20));
        world.counter("user0", "reads") == reads
    });
    for letter in ["a", "b", "c"] {
        console.write(letter);
        console.expect(letter);
    }
    world.put("vm.pause");
    assert_eq!(world.state(), "Paused");
    let snapshot = json!({"destination_url": format!("file://{}", folder.path().join("snapshot").display())});
    let (status, body) = world.call("PUT", "vm.snapshot", &snapshot.to_string());
    assert_eq!(status, 204, "{body}");
    world.put("vm.resume");
    console.write("d");
    console.expect("d");
    let reads = world.counter("user0", "reads");
    process.signal(Signal::CONT);
    eventually("it is answered", || world.counter("user0", "reads") > reads);
    assert_eq!(world.counter("user0", "lost"), 0);
    // Stopped again, it is no obstacle for who deletes the machine.
    process.signal(Signal::STOP);
    world.put("vm.delete");
    process.signal(Signal::CONT);
}

#[test]
fn rule_22_a_process_that_is_killed_reads_as_ones_is_an_event_and_comes_back() {
    let (_folder, mut process) = start();
    let world = boot(&process, &guest::watched(), 2);
    let mut console = world.console();
    console.expect("R");
    process.signal(Signal::STOP);
    process.kill();
    console.expect("o");
    world.wait_event("device gone", 1);
    console.write("a");
    console.expect("a");
    assert_eq!(world.counter("user0", "connected"), 0);
    let process = Process::start(&process.socket);
    console.expect("R");
    assert_eq!(world.counter("user0", "reconnections"), 1);
    world.put("vm.delete");
    drop(process);
}

#[test]
fn a_socket_that_nobody_serves_is_refused_and_said() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = folder.path().join("kernel");
    std::fs::write(&kernel, code::image(&guest::greeted())).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_reprise"))
        .args([
            "run",
            "--hypervisor",
            "soft",
            "--memory",
            "16M",
            "--user-device",
            "socket=/nonexistent/s,id=dev",
            "--kernel",
        ])
        .arg(&kernel)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(
        told.contains("dev") && told.contains("nobody serves /nonexistent/s"),
        "{told}"
    );
}

/// Debian finds the device, reads its registers, and sees what it writes to memory that Debian leaves alone.
#[test]
fn debian_finds_the_device_on_its_bus_and_uses_it() {
    let guest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guest");
    let [kernel, initramfs] = ["vmlinux", "initramfs.cpio.gz"].map(|name| guest.join(name));
    if !kernel.exists() || !initramfs.exists() {
        let required = std::env::var("REPRISE_REQUIRE").is_ok_and(|list| list.split(',').any(|item| item == "guest"));
        assert!(
            !required,
            "there is no guest in {}; scripts/guest.sh makes one",
            guest.display()
        );
        eprintln!(
            "skipped: there is no guest in {}; scripts/guest.sh makes one",
            guest.display()
        );
        return;
    }
    let (_folder, process) = start();
    let test = "cd /sys/bus/pci/devices; \
                for d in *; do [ $(cat $d/device) != 0x00fe ] || f=$d; done; cat $f/vendor $f/class; echo 1 > $f/enable; \
                set -- $(cat $f/resource); at() { printf 0x%x $(($base + $1)); }; base=$1; \
                devmem $(at 0); devmem $(at 4) 32 0x12345678; devmem $(at 4); \
                devmem $(at 8) 32 0x1e000000; devmem $(at 12) 32 0; devmem $(at 16) 32 1; devmem $(at 4); \
                devmem 0x1e000000; devmem 0x1e000004";
    let output = Command::new(env!("CARGO_BIN_EXE_reprise"))
        .args(["run", "--hypervisor", "soft", "--memory", "512M", "--user-device"])
        .arg(&process.socket)
        .arg("--kernel")
        .arg(kernel)
        .arg("--initramfs")
        .arg(initramfs)
        .arg("--cmdline")
        .arg(format!("console=ttyS0 quiet mem=448M reprise.test=\"{test}\""))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let console = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<_> = console.lines().map(str::trim).collect();
    let word = |bytes: &[u8; 4]| format!("0x{:08X}", u32::from_le_bytes(*bytes));
    let expected = [
        "0x1b36".to_owned(),
        "0xff0000".to_owned(),
        word(b"RPRS"),
        "0x12345678".to_owned(),
        "0x12345678".to_owned(),
        word(b"hell"),
        word(b"o fr"),
        "reprise: status 0".to_owned(),
    ];
    let at = lines.iter().position(|line| *line == expected[0]);
    let seen = at.map(|at| &lines[at..(at + expected.len()).min(lines.len())]);
    assert_eq!(seen, Some(&expected.each_ref().map(String::as_str)[..]), "{console}");
}

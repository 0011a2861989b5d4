//! Repeated string instructions against devices that are late in the middle.

use std::process::{Command, Stdio};

use iced_x86::code_asm::*;
use serde_json::{Value, json};

use crate::code::{COM1, assemble, debug_exit, image, print};
use crate::world::{World, eventually};

/// What the receiver of the port holds at least.
const CHUNK: usize = 48;
const CHUNKS: usize = 10;
const TOTAL: usize = CHUNK * CHUNKS;
const STACK: i32 = 0x7000;
/// Where the guest puts what it receives; a page ends amid it.
const RECEIVED: i32 = 0x30_0f00;

/// Bytes none of which is like its neighbours.
fn text() -> String {
    (0..TOTAL)
        .map(|i| char::from(b'!' + u8::try_from(i * 7 % 89).unwrap()))
        .collect()
}

/// Sends the text to itself through the serial port in loopback, every other chunk of it from its end, and prints what it
/// received.
fn guest() -> Vec<u8> {
    let text = text();
    let number = |number: usize| i32::try_from(number).unwrap();
    assemble(|a| {
        let [mut begin, mut halt] = [(); 2].map(|()| a.create_label());
        a.mov(esp, STACK)?;
        // Pushes where the text is.
        a.call(begin)?;
        a.db(text.as_bytes())?;
        a.set_label(&mut begin)?;
        a.pop(ebx)?;
        let set_loop = |a: &mut CodeAssembler, mcr: i32| -> Result<(), IcedError> {
            a.mov(dx, COM1 + 4)?;
            a.mov(al, mcr)?;
            a.out(dx, al)?;
            a.mov(dx, COM1)
        };
        set_loop(a, 0x10)?;
        for chunk in 0..CHUNKS {
            let mut start = chunk * CHUNK;
            a.cld()?;
            if chunk % 2 == 1 {
                a.std()?;
                start += CHUNK - 1;
            }
            a.lea(esi, dword_ptr(ebx + number(start)))?;
            a.mov(ecx, number(CHUNK))?;
            a.rep().outsb()?;
            a.mov(edi, RECEIVED + number(start))?;
            a.mov(ecx, number(CHUNK))?;
            a.rep().insb()?;
        }
        set_loop(a, 0)?;
        a.cld()?;
        a.mov(esi, RECEIVED)?;
        a.mov(ecx, number(TOTAL))?;
        a.rep().outsb()?;
        a.cli()?;
        a.set_label(&mut halt)?;
        a.hlt()?;
        a.jmp(halt)
    })
}

/// Runs it; how often the vCPU asked for something.
fn run(delays: &Value, late: u64) -> u64 {
    let world = World::boot(&guest(), 1, delays);
    assert_eq!(world.console().read(TOTAL), text(), "{delays}: in order, and once each");
    let total = TOTAL as u64;
    // The last byte has been printed, and now it is answered and told.
    eventually("the end", || {
        world.counter("vcpu0", "sleeps") > 0 && world.counter("serial", "written") == total
    });
    assert_eq!(world.counter("serial", "reads"), total, "{delays}");
    assert_eq!(world.counter("serial", "writes"), 2 * total + 2, "{delays}");
    assert_eq!(world.counter("serial", "late"), late, "{delays}");
    assert_eq!(world.counter("vcpu0", "parked"), late, "{delays}");
    let asked = world.counter("vcpu0", "device_accesses");
    world.put("vm.delete");
    asked
}

#[test]
fn repeated_string_io_moves_each_byte_once_however_late_it_is() {
    let all = 3 * TOTAL as u64 + 2;
    let prompt = run(&json!([]), 0);
    for after in [0, 20, CHUNK as u64 + 20, all - 100] {
        let late = json!([{"device": "serial", "us": "0..50", "seed": after, "after": after}]);
        let asked = run(&late, all - after);
        assert!(
            asked > prompt && asked <= all,
            "{asked} {prompt}: what was moved before a late byte is answered with it"
        );
    }
}

#[test]
fn the_command_line_delays_devices_too() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = folder.path().join("kernel");
    let code = assemble(|a| {
        print(a, "hello")?;
        debug_exit(a, 3)
    });
    std::fs::write(&kernel, image(&code)).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_reprise"))
        .args([
            "run",
            "--hypervisor",
            "soft",
            "--memory",
            "16M",
            "--debug-exit",
            "--kernel",
        ])
        .arg(&kernel)
        .args([
            "--inject-delay",
            "device=*,us=0..500,seed=7",
            "--inject-delay",
            "device=serial,us=1000",
        ])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(
        output.status.code(),
        Some(3 << 1 | 1),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(output.stdout, b"hello");
}

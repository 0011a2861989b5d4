//! Machines with a disk, driven by a few instructions of their own: no kernel, no driver but this.

use std::path::Path;

use iced_x86::code_asm::*;
use reprise_hypervisor::SoftHypervisor;
use vm_memory::{Bytes, GuestAddress};

use super::end::chain;
use super::real::assemble;
use super::*;
use crate::boot::layout;
use crate::boot::test_images::Segment;
use crate::config::DiskConfig;
use crate::snapshot::{Prefault, Snapshot};

/// Where the code lies; it is entered through PVH, in flat 32-bit protected mode.
const CODE: u64 = 0x20_0000;
/// What is called before and after the disk has written there.
const TARGET: u64 = 0x30_0000;
/// The guest goes on when this byte is 1.
const LEAVE: u64 = 0x30_2000;
const HEADER: u64 = 0x31_0000;
const STATUS: u64 = 0x31_0100;
const DESC: u64 = 0x32_0000;
const AVAIL: u64 = 0x32_1000;
const USED: u64 = 0x32_2000;

/// A function that gives `value`.
fn function(value: u32) -> Vec<u8> {
    assemble(32, |a| {
        a.mov(eax, value)?;
        a.ret()
    })
}

/// Sets the disk up, calls the function at [`TARGET`], waits for leave, has the disk write another one there, calls that, and
/// ends with the sum of what they gave.
fn driver() -> Vec<u8> {
    const BAR: i32 = layout::PCI_LOW.start as u32 as i32;
    assemble(32, |a| {
        let (mut leave, mut wait) = (a.create_label(), a.create_label());
        a.mov(esp, 0x33_0000)?;
        // Device 1: memory space and bus master.
        a.mov(dx, 0xcf8)?;
        a.mov(eax, 0x8000_0804_u32)?;
        a.out(dx, eax)?;
        a.mov(dx, 0xcfc)?;
        a.mov(eax, 6)?;
        a.out(dx, ax)?;
        for status in [0, 1, 3] {
            a.mov(byte_ptr(BAR + 0x14), status)?;
        }
        // VIRTIO_F_VERSION_1.
        a.mov(dword_ptr(BAR + 0x08), 1)?;
        a.mov(dword_ptr(BAR + 0x0c), 1)?;
        a.mov(byte_ptr(BAR + 0x14), 0xb)?;
        a.mov(word_ptr(BAR + 0x18), 16)?;
        for (register, address) in [(0x20, DESC), (0x28, AVAIL), (0x30, USED)] {
            a.mov(dword_ptr(BAR + register), address as i32)?;
        }
        a.mov(word_ptr(BAR + 0x1c), 1)?;
        a.mov(byte_ptr(BAR + 0x14), 0xf)?;

        a.mov(edi, TARGET as u32)?;
        a.call(edi)?;
        a.mov(ebx, eax)?;
        a.set_label(&mut leave)?;
        a.cmp(byte_ptr(LEAVE as i32), 1)?;
        a.jne(leave)?;
        // Only now: a device looks for what is available as soon as it may.
        a.mov(word_ptr(AVAIL as i32 + 2), 1)?;
        a.mov(word_ptr(BAR + 0x3000), 0)?;
        a.set_label(&mut wait)?;
        a.cmp(word_ptr(USED as i32 + 2), 1)?;
        a.jne(wait)?;
        a.call(edi)?;
        a.add(eax, ebx)?;
        a.out(0xf4, al)
    })
}

/// A kernel of `driver`, and the configuration of a machine with it and a disk whose first sector is a function.
fn world(folder: &Path) -> VmConfig {
    let (kernel, image) = (folder.join("vmlinux"), folder.join("disk"));
    let content = driver();
    let segment = Segment {
        address: CODE,
        memory_size: content.len() as u64,
        content,
    };
    let elf = Elf {
        segments: vec![segment],
        pvh: Some(CODE as u32),
        ..Elf::default()
    };
    std::fs::write(&kernel, elf.bytes()).unwrap();
    let mut sector = function(0x22);
    sector.resize(512, 0);
    std::fs::write(&image, sector).unwrap();
    let disk = format!(r#"{{"path": {image:?}}}"#);
    VmConfig {
        disks: vec![crate::config::from_json::<DiskConfig>(disk.as_bytes()).unwrap()],
        ..config(kernel, 1)
    }
}

fn options() -> MachineOptions {
    MachineOptions {
        debug_exit: true,
        ..MachineOptions::default()
    }
}

/// Puts the old function and a request to read sector 0 over it into the machine's memory.
fn prepare(machine: &Machine) {
    let put = |address: u64, bytes: &[u8]| {
        machine.memory.write_slice(bytes, GuestAddress(address)).unwrap();
    };
    put(TARGET, &function(0x11));
    put(HEADER, &[0; 16]);
    let descriptors = [(HEADER, 16_u32, 1_u16), (TARGET, 512, 1 | 2), (STATUS, 1, 2)];
    for ((address, length, flags), index) in descriptors.into_iter().zip(0_u16..) {
        let descriptor = [
            &address.to_le_bytes()[..],
            &length.to_le_bytes(),
            &flags.to_le_bytes(),
            &(index + 1).to_le_bytes(),
        ]
        .concat();
        put(DESC + 16 * u64::from(index), &descriptor);
    }
    // The first chain's head is descriptor 0. It is made available later.
    put(AVAIL, &[0; 6]);
}

fn leave(machine: &Machine) {
    machine.memory.write_obj(1_u8, GuestAddress(LEAVE)).unwrap();
}

#[test]
fn code_that_a_disk_loads_over_code_that_ran_is_executed_as_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let (told, ends) = channel();
    let on_end = Box::new(move |end| told.send(end).unwrap());
    let machine = Machine::new(&world(folder.path()), &SoftHypervisor, options(), on_end).unwrap();
    prepare(&machine);
    leave(&machine);
    machine.start();
    assert_eq!(ends.recv().unwrap(), MachineEnd::DebugExit(0x33));
    let counters = machine.counters();
    assert_eq!(counters["disk0"]["read_bytes"], 512);
    assert_eq!(counters["disk0"]["malformed"], 0);
}

#[test]
fn a_disk_goes_on_in_a_restored_machine() {
    let folder = tempfile::tempdir().unwrap();
    let config = world(folder.path());
    let machine = Machine::new(&config, &SoftHypervisor, options(), Box::new(|_| ())).unwrap();
    prepare(&machine);
    machine.start();
    // Until the guest waits for leave with its disk set up.
    let notified = |machine: &Machine| machine.board.device_status("disk0") == 0xf;
    while !notified(&machine) {
        thread::yield_now();
    }
    machine.pause().unwrap();
    let saved = folder.path().join("snapshot");
    machine.snapshot(&config, &saved).unwrap();

    let snapshot = Snapshot::open(&saved).unwrap();
    let restore = || {
        let (told, ends) = channel();
        let on_end = Box::new(move |end| told.send(end).unwrap());
        let machine = Machine::restore(&snapshot, Prefault::No, &SoftHypervisor, options(), on_end);
        machine.map(|machine| (machine, ends))
    };
    let refused = restore().err().map(|error| chain(&error)).unwrap();
    assert!(
        refused.contains("is locked by somebody"),
        "one writer at a time: {refused}"
    );
    machine.stop();
    let (machine, ends) = restore().unwrap();
    leave(&machine);
    machine.resume();
    assert_eq!(ends.recv().unwrap(), MachineEnd::DebugExit(0x33));
}

#[test]
fn a_machine_whose_disk_tap_or_entropy_cannot_be_opened_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let good = world(folder.path());
    let refused = |config: &VmConfig| {
        let made = Machine::new(config, &SoftHypervisor, options(), Box::new(|_| ()));
        chain(&made.err().unwrap())
    };
    let mut config = good.clone();
    config.disks[0].path = Some("/nowhere/disk".into());
    assert!(refused(&config).contains("/nowhere/disk"));
    let mut config = good.clone();
    config.rng.src = "/nowhere/entropy".into();
    assert!(refused(&config).contains("/nowhere/entropy"));
    let mut config = good.clone();
    config.net = vec![crate::config::from_json(br#"{"tap": "lo"}"#).unwrap()];
    // Whether it is the host that has no taps, the user who may not, or the interface that is none.
    assert!(refused(&config).contains("the network card net0 cannot be made"));
    let mut config = good;
    config.disks.push(config.disks[0].clone());
    assert!(refused(&config).contains("locked"), "the same image twice");
}

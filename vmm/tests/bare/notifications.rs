//! A guest of a few instructions drives a virtio device on every backend: its notifications, its interrupts, and which of them
//! the host's kernel takes over.

use std::collections::BTreeMap;
use std::time::Instant;

use iced_x86::code_asm::*;
use reprise_hypervisor::{Hypervisor, HypervisorKind};
use reprise_vmm::config::DelayConfig;
use reprise_vmm::machine::MachineEnd;
use serde_json::json;

use crate::backends::on_each;
use crate::code::assemble;
use crate::{Guest, LONG};

/// Requests before the BAR moves, and as many behind.
const ROUNDS: i32 = 20;
/// All of them, with the one whose vector is masked.
const REQUESTS: u64 = 2 * ROUNDS as u64 + 1;

// Guest-physical addresses.
const DESCRIPTORS: u32 = 0x30_0000;
const AVAILABLE: u32 = 0x30_1000;
const USED: u32 = 0x30_2000;
const BUFFER: u32 = 0x30_3000;
const IDT: u32 = 0x30_4000;
const GDT: u32 = 0x30_5000;
const TABLE_REGISTER: u32 = 0x30_6000;
/// How many interrupts there were.
const INTERRUPTS: u32 = 0x30_7000;
const STACK: i32 = 0x31_0000;
/// How far the BAR moves.
const MOVE: i32 = 0x10_0000;

// The local APIC.
const END_OF_INTERRUPT: u32 = 0xfee0_00b0;
const SPURIOUS: u32 = 0xfee0_00f0;

// In the device's BAR.
const DRIVER_FEATURE_SELECT: i32 = 0x08;
const DRIVER_FEATURE: i32 = 0x0c;
const STATUS: i32 = 0x14;
const QUEUE_SIZE: i32 = 0x18;
const QUEUE_VECTOR: i32 = 0x1a;
const QUEUE_ENABLE: i32 = 0x1c;
const QUEUE_RINGS: [(i32, u32); 3] = [(0x20, DESCRIPTORS), (0x28, AVAILABLE), (0x30, USED)];
const NOTIFY: i32 = 0x3000;
const VECTOR_1: i32 = 0x4010;
const PENDING: i32 = 0x5000;

/// MSI-X's capability ID, and the vector that messages carry.
const MSIX: i32 = 0x11;
const VECTOR: u32 = 0x41;

type Assembled = Result<(), IcedError>;

fn store(a: &mut CodeAssembler, address: u32, value: u32) -> Assembled {
    a.mov(dword_ptr(address), value)
}

/// Selects the register of the device's configuration space whose number is in ESI, for port DX.
fn select(a: &mut CodeAssembler) -> Assembled {
    a.mov(eax, 0x8000_0800_u32)?;
    a.or(eax, esi)?;
    a.mov(dx, 0xcf8)?;
    a.out(dx, eax)?;
    a.mov(dx, 0xcfc)
}

/// Segments and an interrupt gate of our own; the handler counts.
fn interrupts(a: &mut CodeAssembler) -> Assembled {
    let mut over = a.create_label();
    // Pushes where the handler is.
    a.call(over)?;
    a.inc(dword_ptr(INTERRUPTS))?;
    a.mov(dword_ptr(END_OF_INTERRUPT), 0)?;
    a.iretd()?;
    a.set_label(&mut over)?;
    a.pop(eax)?;
    a.mov(ecx, eax)?;
    a.and(ecx, 0xffff)?;
    a.or(ecx, 0x8_0000)?;
    a.mov(dword_ptr(IDT + 8 * VECTOR), ecx)?;
    a.and(eax, 0xffff_0000_u32)?;
    a.or(eax, 0x8e00)?;
    a.mov(dword_ptr(IDT + 8 * VECTOR + 4), eax)?;
    // Flat code at 8, flat data at 16.
    for (place, word) in [(8, 0xffff_u32), (12, 0x00cf_9b00), (16, 0xffff), (20, 0x00cf_9300)] {
        store(a, GDT + place, word)?;
    }
    for (base, limit, is_gdt) in [(GDT, 23_u32, true), (IDT, 0x7ff, false)] {
        store(a, TABLE_REGISTER, limit | base << 16)?;
        store(a, TABLE_REGISTER + 4, base >> 16)?;
        match is_gdt {
            true => a.lgdt(dword_ptr(TABLE_REGISTER))?,
            false => a.lidt(dword_ptr(TABLE_REGISTER))?,
        }
    }
    let (mut back, mut reload) = (a.create_label(), a.create_label());
    a.push(8)?;
    a.call(back)?;
    a.jmp(reload)?;
    a.set_label(&mut back)?;
    a.retf()?;
    a.set_label(&mut reload)?;
    a.mov(eax, 16)?;
    a.mov(ds, eax)?;
    a.mov(es, eax)?;
    a.mov(ss, eax)?;
    store(a, SPURIOUS, 0x1ff)
}

/// Finds the BAR, which EBP holds from then on, switches the device and its MSI-X on, and has it run one queue.
fn begin(a: &mut CodeAssembler) -> Assembled {
    let (mut next, mut found) = (a.create_label(), a.create_label());
    a.mov(esi, 4)?;
    select(a)?;
    a.mov(eax, 6)?;
    a.out(dx, ax)?;
    a.mov(esi, 0x10)?;
    select(a)?;
    a.in_(eax, dx)?;
    a.and(eax, !0xf)?;
    a.mov(ebp, eax)?;
    // The list of capabilities.
    a.mov(esi, 0x34)?;
    select(a)?;
    a.in_(al, dx)?;
    a.set_label(&mut next)?;
    a.movzx(esi, al)?;
    select(a)?;
    a.in_(eax, dx)?;
    a.cmp(al, MSIX)?;
    a.je(found)?;
    a.mov(al, ah)?;
    a.jmp(next)?;
    a.set_label(&mut found)?;
    a.mov(dx, 0xcfe)?;
    a.mov(ax, 0x8000_u32 as i32)?;
    a.out(dx, ax)?;
    for (place, value) in [(0, 0xfee0_0000_u32), (4, 0), (8, VECTOR), (12, 0)] {
        a.mov(dword_ptr(ebp + (VECTOR_1 + place)), value)?;
    }
    for status in [0, 1, 3] {
        a.mov(byte_ptr(ebp + STATUS), status)?;
    }
    // VIRTIO_F_VERSION_1.
    a.mov(dword_ptr(ebp + DRIVER_FEATURE_SELECT), 1)?;
    a.mov(dword_ptr(ebp + DRIVER_FEATURE), 1)?;
    a.mov(byte_ptr(ebp + STATUS), 0xb)?;
    a.mov(word_ptr(ebp + QUEUE_SIZE), 4)?;
    a.mov(word_ptr(ebp + QUEUE_VECTOR), 1)?;
    for (register, ring) in QUEUE_RINGS {
        a.mov(dword_ptr(ebp + register), ring)?;
        a.mov(dword_ptr(ebp + (register + 4)), 0)?;
    }
    // One descriptor of 16 bytes that the device writes; all entries of the ring are that.
    for (place, word) in [(0, BUFFER), (4, 0), (8, 16), (12, 2)] {
        store(a, DESCRIPTORS + place, word)?;
    }
    a.mov(word_ptr(ebp + QUEUE_ENABLE), 1)?;
    a.mov(byte_ptr(ebp + STATUS), 0xf)
}

/// Makes the descriptor available once more, and notifies; EBX counts.
fn ask(a: &mut CodeAssembler) -> Assembled {
    a.inc(ebx)?;
    a.mov(word_ptr(AVAILABLE + 2), bx)?;
    a.xor(eax, eax)?;
    a.mov(word_ptr(ebp + NOTIFY), ax)
}

/// Sleeps until there were as many interrupts as EBX says.
fn wait(a: &mut CodeAssembler) -> Assembled {
    let (mut again, mut came) = (a.create_label(), a.create_label());
    a.set_label(&mut again)?;
    a.cli()?;
    a.cmp(dword_ptr(INTERRUPTS), ebx)?;
    a.jae(came)?;
    a.sti()?;
    a.hlt()?;
    a.jmp(again)?;
    a.set_label(&mut came)?;
    a.nop()
}

fn rounds(a: &mut CodeAssembler) -> Assembled {
    let mut again = a.create_label();
    a.mov(edi, ROUNDS)?;
    a.set_label(&mut again)?;
    ask(a)?;
    wait(a)?;
    a.dec(edi)?;
    a.jne(again)
}

/// Ends with the number of interrupts.
fn guest() -> Vec<u8> {
    assemble(|a| {
        a.mov(esp, STACK)?;
        a.xor(ebx, ebx)?;
        interrupts(a)?;
        begin(a)?;
        rounds(a)?;
        // Elsewhere.
        a.mov(esi, 0x10)?;
        select(a)?;
        a.add(ebp, MOVE)?;
        a.mov(eax, ebp)?;
        a.out(dx, eax)?;
        rounds(a)?;
        // Masked, it is pending.
        let mut again = a.create_label();
        a.mov(dword_ptr(ebp + (VECTOR_1 + 12)), 1)?;
        ask(a)?;
        a.set_label(&mut again)?;
        a.mov(eax, dword_ptr(ebp + PENDING))?;
        a.test(eax, 2)?;
        a.je(again)?;
        a.mov(dword_ptr(ebp + (VECTOR_1 + 12)), 0)?;
        wait(a)?;
        a.mov(eax, dword_ptr(INTERRUPTS))?;
        a.out(0xf4, al)?;
        a.hlt()
    })
}

type Figures = BTreeMap<String, u64>;

/// Runs the guest; the figures of its source of entropy when the bell has been heard that rang last.
fn run(hypervisor: &dyn Hypervisor, delays: Vec<DelayConfig>) -> Figures {
    let guest = Guest::with(hypervisor, &guest(), delays);
    let end = guest.ends.recv_timeout(LONG).unwrap();
    assert_eq!(
        end,
        MachineEnd::DebugExit(REQUESTS as u8),
        "an interrupt for each request"
    );
    let start = Instant::now();
    let figures = loop {
        let figures = guest.machine.counters().remove("rng").unwrap();
        if figures["notifications"] >= REQUESTS {
            break figures;
        }
        assert!(start.elapsed() < LONG, "{figures:?}");
        std::thread::yield_now();
    };
    guest.machine.stop();
    assert_eq!(figures["notifications"], REQUESTS);
    assert_eq!(figures["requests"], REQUESTS);
    assert_eq!(figures["interrupts"], REQUESTS);
    figures
}

#[test]
fn a_device_of_this_process_is_notified_and_interrupts_wherever_its_bar_is_and_on_kvm_no_vcpu_comes_out_for_that() {
    let mut written = Vec::new();
    on_each(|hypervisor| {
        let figures = run(hypervisor, Vec::new());
        let rung = match hypervisor.kind() {
            HypervisorKind::Kvm => REQUESTS,
            HypervisorKind::Soft => 0,
        };
        assert_eq!(figures["doorbells"], rung);
        written.push(figures["writes"]);
    });
    if let [soft, kvm] = written[..] {
        // The bus counts from when the BAR was put there.
        let notifications = ROUNDS as u64 + 1;
        assert_eq!(soft, kvm + notifications, "all else are accesses");
    }
}

#[test]
fn a_device_that_is_made_late_is_asked_itself_each_time() {
    on_each(|hypervisor| {
        let late = json!({"device": "rng", "us": "0..50", "seed": 1});
        let figures = run(hypervisor, vec![serde_json::from_value(late).unwrap()]);
        assert_eq!(figures["doorbells"], 0);
        assert!(figures["late"] > ROUNDS as u64);
    });
}

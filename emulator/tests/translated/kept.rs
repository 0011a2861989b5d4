//! Address spaces that are kept over loads of CR3: what is forgotten is what must be, in each level of the TLB and of code.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use reprise_emulator::cpu::Cr4;

use crate::changing::{assembled, machine, run_to_halt};
use crate::machine::{CODE, DATA, HIGH, Machine, PML4, TABLE};

/// A page with a function, and a number in its middle, that differs between address spaces.
const PLACE: u64 = CODE + 0x3000;
const ENTRY: u64 = TABLE + 8 * (PLACE >> 12);
/// The page tables of the second address space.
const OTHER: u64 = 0x3_8000;
const DESCRIPTOR: u64 = DATA + 0x200;
const TURNS: u64 = 50;
const KEEP: u64 = 1 << 63;
/// A page that is global.
const GLOBAL: u64 = 1 << 8;
const CR4: u64 = Cr4::PAE | Cr4::PGE | Cr4::PCIDE | Cr4::OSFXSR;

type Forget = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Uses what is at `place`, in address space 1 and in 2, and maps another page there in 1 while 2 is in use; `forget` follows.
fn machine_with(place: u64, global: bool, [first, second]: [u64; 2], forget: Forget) -> Machine {
    let machine = machine(|a| {
        let mut again = a.create_label();
        let take = |a: &mut CodeAssembler| {
            a.mov(rax, place)?;
            a.add(rdx, qword_ptr(rax + 0x800))?;
            a.call(rax)?;
            a.add(rdx, rax)
        };
        a.mov(rax, CR4)?;
        a.mov(cr4, rax)?;
        a.mov(r12d, TURNS as u32)?;
        a.mov(r14, first)?;
        a.mov(r15, second)?;
        a.set_label(&mut again)?;
        a.mov(cr3, r14)?;
        take(a)?;
        a.mov(cr3, r15)?;
        take(a)?;
        // The second one's share does not change.
        a.xor(qword_ptr(ENTRY), 0x3000)?;
        forget(a)?;
        a.dec(r12)?;
        a.jnz(again)?;
        a.hlt()
    });
    for (page, number) in [(CODE + 0x1000, 1u64), (CODE + 0x2000, 1000)] {
        let code = assembled(PLACE, |a| {
            a.mov(eax, number as u32)?;
            a.ret()
        });
        machine.write(page, &code);
        machine.write(page + 0x800, &(10 * number).to_le_bytes());
    }
    machine.write(
        ENTRY,
        &((CODE + 0x1000) | 0x63 | (GLOBAL * u64::from(global))).to_le_bytes(),
    );
    // The tables of the first address space with another entry, and the same upper half.
    let put = |at: u64, value: u64| machine.write(at, &value.to_le_bytes());
    put(OTHER, (OTHER + 0x1000) | 0x27);
    put(OTHER + 8 * 511, 0x3000 | 0x27);
    put(OTHER + 0x1000, (OTHER + 0x2000) | 0x27);
    put(OTHER + 0x2000, (OTHER + 0x3000) | 0x27);
    for page in 0..0x40 {
        put(OTHER + 0x3000 + 8 * page, page << 12 | 0x63);
    }
    put(OTHER + 0x3000 + 8 * (PLACE >> 12), (CODE + 0x2000) | 0x63);
    machine
}

fn assert_sum(place: u64, global: bool, loads: [u64; 2], forget: Forget, sum: u64) {
    let mut translating = machine_with(place, global, loads, forget);
    let mut interpreting = machine_with(place, global, loads, forget);
    interpreting.emulator.set_translation(None).unwrap();
    for machine in [&mut translating, &mut interpreting] {
        run_to_halt(machine);
        assert_eq!(machine.emulator.cpu().gpr.get(2), sum);
    }
    assert!(translating.emulator.counters().translated > TURNS);
}

/// What all turns add up to: half of the first one's see either page.
const SUM: u64 = 11 * (TURNS / 2 * 1001 + TURNS * 1000);

fn invpcid(a: &mut CodeAssembler, kind: u32) -> Result<(), IcedError> {
    a.mov(qword_ptr(DESCRIPTOR), 1)?;
    a.mov(eax, PLACE as u32)?;
    a.mov(qword_ptr(DESCRIPTOR + 8), rax)?;
    a.mov(eax, kind)?;
    a.invpcid(rax, xmmword_ptr(DESCRIPTOR))
}

#[test]
fn what_invpcid_forgets_of_another_address_space_is_not_kept() {
    let kinds: [Forget; 4] = [
        |a| invpcid(a, 0),
        |a| invpcid(a, 1),
        |a| invpcid(a, 2),
        |a| invpcid(a, 3),
    ];
    for forget in kinds {
        assert_sum(PLACE, false, [PML4 | 1 | KEEP, OTHER | 2 | KEEP], forget, SUM);
    }
}

#[test]
fn a_load_of_cr3_without_bit_63_forgets_what_its_pcid_had() {
    assert_sum(PLACE, false, [PML4 | 1, OTHER | 2 | KEEP], |_| Ok(()), SUM);
    assert_sum(PLACE, false, [PML4 | 1, OTHER | 1], |_| Ok(()), SUM);
}

#[test]
fn address_spaces_that_are_kept_are_told_apart() {
    // The entry is changed back before the first address space is used again.
    let forget: Forget = |a| a.xor(qword_ptr(ENTRY), 0x3000);
    let sum = 11 * (TURNS + TURNS * 1000);
    assert_sum(PLACE, false, [PML4 | 1 | KEEP, OTHER | 2 | KEEP], forget, sum);
}

#[test]
fn changes_of_cr4_forget_all_address_spaces() {
    let changes: [Forget; 2] = [
        |a| {
            a.mov(rax, CR4 & !Cr4::PGE)?;
            a.mov(cr4, rax)?;
            a.mov(rax, CR4)?;
            a.mov(cr4, rax)
        },
        // PCIDs can be turned on with PCID 0 only.
        |a| {
            a.mov(rax, CR4 & !Cr4::PCIDE)?;
            a.mov(cr4, rax)?;
            a.mov(rax, OTHER)?;
            a.mov(cr3, rax)?;
            a.mov(rax, CR4)?;
            a.mov(cr4, rax)
        },
    ];
    for change in changes {
        assert_sum(PLACE, false, [PML4 | 1 | KEEP, OTHER | 2 | KEEP], change, SUM);
    }
}

#[test]
fn pages_of_the_upper_half_that_are_not_global_are_forgotten_with_cr3() {
    // Both address spaces share the upper half: each sees what the turn before has mapped.
    let sum = 11 * TURNS * 1001;
    assert_sum(HIGH + PLACE, false, [PML4 | 1, OTHER | 2], |_| Ok(()), sum);
}

#[test]
fn a_global_page_is_forgotten_with_invlpg_and_with_all() {
    let ways: [Forget; 2] = [
        |a| {
            a.mov(rax, HIGH + PLACE)?;
            a.invlpg(byte_ptr(rax))
        },
        |a| invpcid(a, 2),
    ];
    for forget in ways {
        let sum = 11 * TURNS * 1001;
        assert_sum(HIGH + PLACE, true, [PML4 | 1 | KEEP, OTHER | 2 | KEEP], forget, sum);
    }
}

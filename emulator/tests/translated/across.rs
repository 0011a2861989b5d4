//! An instruction that runs on into the next page, in translated form: each page may change by itself.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use reprise_emulator::{Entry, Exit};

use crate::changing::{FLAG, assembled, machine, run_to_halt, translate};
use crate::machine::{CODE, Machine, PML4, TABLE};

/// Where the second page is.
const PLACE: u64 = CODE + 0x3000;
const ENTRY: u64 = TABLE + 8 * (PLACE >> 12);
/// A function whose first instruction, MOV EAX, imm32, has its last two bytes in the second page.
const FUNCTION: u64 = PLACE - 3;

fn function(high: u16) -> Vec<u8> {
    let value = u32::from(high) << 16 | 7;
    assembled(FUNCTION, |a| {
        a.mov(eax, value)?;
        a.ret()
    })
}

/// What translated code has done by itself is most of it.
fn assert_translated(machine: &Machine) {
    let counters = machine.emulator.counters();
    assert!(counters.translated > counters.instructions / 2, "{counters:?}");
    assert!(counters.passes < counters.instructions / 4, "{counters:?}");
}

/// Calls the function 200 times, with one of two pages behind the first in turn.
fn remaps(forget: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>) {
    let mut machine = machine(|a| {
        let mut again = a.create_label();
        a.mov(ecx, 200)?;
        a.mov(r12, (CODE + 0x1000) | 0x63)?;
        a.set_label(&mut again)?;
        a.mov(qword_ptr(ENTRY), r12)?;
        forget(a)?;
        a.mov(eax, FUNCTION as u32)?;
        a.call(rax)?;
        a.add(rdx, rax)?;
        a.xor(r12, 0x3000)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.hlt()
    });
    machine.write(FUNCTION, &function(0)[..3]);
    for (page, high) in [(CODE + 0x1000, 1), (CODE + 0x2000, 3)] {
        machine.write(page, &function(high)[3..]);
    }
    run_to_halt(&mut machine);
    assert_eq!(machine.emulator.cpu().gpr.get(2), 100 * (0x1_0007 + 0x3_0007));
    assert!(machine.emulator.counters().translated > 1000);
}

#[test]
fn when_the_second_page_is_mapped_elsewhere_invlpg_is_enough() {
    remaps(|a| a.invlpg(byte_ptr(PLACE)));
}

#[test]
fn when_the_second_page_is_mapped_elsewhere_a_load_of_cr3_is_enough() {
    remaps(|a| {
        a.mov(eax, PML4 as u32)?;
        a.mov(cr3, rax)
    });
}

#[test]
fn what_a_device_writes_into_the_second_page_before_it_tells_is_executed_afterwards() {
    const LAST: u16 = 3000;
    let mut machine = machine(|a| {
        let (mut again, mut old) = (a.create_label(), a.create_label());
        a.set_label(&mut again)?;
        a.mov(r8d, dword_ptr(FLAG))?;
        a.call(FUNCTION)?;
        a.shr(eax, 16)?;
        a.cmp(eax, r8d)?;
        a.jb(old)?;
        a.cmp(r8d, i32::from(LAST))?;
        a.jne(again)?;
        a.hlt()?;
        a.set_label(&mut old)?;
        a.ud2()
    });
    machine.write(FUNCTION, &function(0));
    machine.write(FLAG, &[0; 4]);
    let device = machine.beside();
    let cpu = std::thread::spawn(move || {
        run_to_halt(&mut machine);
        machine.emulator.cpu().gpr.get(0)
    });
    for version in 1..=LAST {
        device.write(PLACE, &version.to_le_bytes());
        device.write(FLAG, &u32::from(version).to_le_bytes());
    }
    assert_eq!(cpu.join().unwrap(), u64::from(LAST));
}

#[test]
fn a_loop_through_such_an_instruction_is_translated_and_each_page_is_asked_for_its_rights() {
    let write = |a: &mut CodeAssembler| {
        let mut again = a.create_label();
        a.mov(ecx, 500)?;
        a.set_label(&mut again)?;
        a.call(FUNCTION)?;
        a.add(rdx, rax)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.mov(qword_ptr(ENTRY), 0)?;
        a.invlpg(byte_ptr(PLACE))?;
        a.call(FUNCTION)?;
        a.hlt()
    };
    let mut translating = machine(write);
    let mut interpreting = machine(write);
    interpreting.emulator.set_translation(None).unwrap();
    for machine in [&mut translating, &mut interpreting] {
        machine.write(FUNCTION, &function(2));
        let exit = machine.emulator.run(Entry::Resume).unwrap();
        assert_eq!(exit, Exit::Shutdown, "no handler of page faults");
        let cpu = machine.emulator.cpu();
        assert_eq!((cpu.rip, cpu.gpr.get(2)), (FUNCTION, 500 * 0x2_0007));
    }
    assert_translated(&translating);
    assert_eq!(translating.retired(), interpreting.retired());
    let passes = interpreting.emulator.counters().passes;
    assert!(
        passes < 20,
        "not even interpreted does it take the careful way: {passes}"
    );
}

#[test]
fn a_jump_back_to_such_an_instruction_in_its_own_page_is_linked() {
    // The loop is in the first page, but for the second half of its first instruction.
    let mut machine = machine(|a| {
        a.mov(ecx, 500)?;
        a.mov(eax, PLACE as u32 - 8)?;
        a.jmp(rax)
    });
    let code = assembled(PLACE - 8, |a| {
        let (mut again, mut back) = (a.create_label(), a.create_label());
        a.jmp(again)?;
        a.set_label(&mut back)?;
        a.jmp(again)?;
        a.nop()?;
        a.set_label(&mut again)?;
        a.add(edx, 0x1234_5678)?;
        a.dec(ecx)?;
        a.jnz(back)?;
        a.hlt()
    });
    machine.write(PLACE - 8, &code);
    translate(&mut machine);
    run_to_halt(&mut machine);
    assert_eq!(
        machine.emulator.cpu().gpr.get(2) as u32,
        0x1234_5678u32.wrapping_mul(500)
    );
    assert_translated(&machine);
}

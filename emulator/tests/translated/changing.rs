//! Code that changes, in translated form.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use reprise_emulator::translate::Translation;
use reprise_emulator::{Cpu, Entry, Exit};

use crate::dice::Dice;
use crate::machine::{CODE, DATA, Machine, PML4, Ring, TABLE};
use crate::program::Program;

/// A function that the program calls.
const FUNCTION: u64 = CODE + 0x1003;
/// What another CPU tells.
pub const FLAG: u64 = DATA + 0x100;

/// A CPU that translates everything at once, about to execute a program.
pub fn machine(write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Machine {
    begin(Machine::new(Ring::Supervisor), write)
}

/// The same on this machine.
pub fn begin(mut machine: Machine, write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Machine {
    let cpu = prepare(&machine, &assembled(CODE, write));
    machine.load(&Program::of(&assembled(CODE, |a| a.hlt())), &cpu.0);
    machine.let_write_tables();
    machine.write(CODE, &cpu.1);
    translate(&mut machine);
    machine
}

pub fn assembled(at: u64, write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(64).unwrap();
    write(&mut assembler).unwrap();
    assembler.assemble(at).unwrap()
}

pub fn prepare(machine: &Machine, code: &[u8]) -> (Cpu, Vec<u8>) {
    let mut cpu = machine.start(&Program::of(code), &mut Dice::new(1));
    cpu.rip = CODE;
    cpu.flags.set_bits(2);
    for register in 0..16 {
        if register != 4 {
            cpu.gpr.set(register, 0);
        }
    }
    (cpu, code.to_vec())
}

pub fn translate(machine: &mut Machine) {
    let translation = Translation {
        threshold: 0,
        ..Translation::default()
    };
    machine.emulator.set_translation(Some(translation)).unwrap();
}

pub fn run_to_halt(machine: &mut Machine) {
    loop {
        match machine.emulator.run(Entry::Resume).unwrap() {
            Exit::Halt => return,
            Exit::Attention => {}
            exit => panic!("{exit:?} at {:#x}", machine.emulator.cpu().rip),
        }
    }
}

#[test]
fn a_loop_that_rewrites_itself_sees_every_version() {
    let mut machine = machine(|a| {
        let mut again = a.create_label();
        a.mov(ecx, 300)?;
        // The immediate.
        a.lea(rdi, ptr(again))?;
        a.inc(rdi)?;
        a.set_label(&mut again)?;
        a.mov(eax, 0x1234_5678)?;
        a.add(rdx, rax)?;
        a.mov(dword_ptr(rdi), ecx)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.hlt()
    });
    run_to_halt(&mut machine);
    let sum: u64 = 0x1234_5678 + (2..=300).sum::<u64>();
    assert_eq!(machine.emulator.cpu().gpr.get(2), sum);
    assert!(machine.emulator.counters().translated > 0);
}

/// Calls the function until what it returns is the last version; stops at a fault if it returns an older one than is told.
fn calls(last: u32) -> impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError> {
    move |a| {
        let (mut again, mut old) = (a.create_label(), a.create_label());
        a.set_label(&mut again)?;
        a.mov(r8d, dword_ptr(FLAG))?;
        a.call(FUNCTION)?;
        a.cmp(eax, r8d)?;
        a.jb(old)?;
        a.cmp(r8d, last as i32)?;
        a.jne(again)?;
        a.hlt()?;
        a.set_label(&mut old)?;
        a.ud2()
    }
}

fn function() -> Vec<u8> {
    assembled(FUNCTION, |a| {
        a.mov(eax, 0)?;
        a.ret()
    })
}

#[test]
fn what_a_device_writes_over_code_before_it_tells_is_executed_afterwards() {
    const LAST: u32 = 3000;
    let mut machine = machine(calls(LAST));
    machine.write(FUNCTION, &function());
    machine.write(FLAG, &[0; 4]);
    let device = machine.beside();
    let cpu = std::thread::spawn(move || {
        run_to_halt(&mut machine);
        machine.emulator.cpu().gpr.get(0)
    });
    for version in 1..=LAST {
        device.write(FUNCTION + 1, &version.to_le_bytes());
        device.write(FLAG, &version.to_le_bytes());
    }
    assert_eq!(cpu.join().unwrap(), u64::from(LAST));
}

#[test]
fn what_another_cpu_writes_over_code_before_it_tells_is_executed_afterwards() {
    const LAST: u32 = 3000;
    let mut machine = machine(calls(LAST));
    machine.write(FUNCTION, &function());
    machine.write(FLAG, &[0; 4]);
    const WRITER: u64 = CODE + 0x2000;
    let code = assembled(WRITER, |a| {
        let mut again = a.create_label();
        a.mov(ecx, 1)?;
        a.set_label(&mut again)?;
        a.mov(dword_ptr(FUNCTION + 1), ecx)?;
        a.mov(dword_ptr(FLAG), ecx)?;
        a.inc(ecx)?;
        a.cmp(ecx, LAST as i32 + 1)?;
        a.jne(again)?;
        a.hlt()
    });
    machine.write(WRITER, &code);
    let mut other = machine.beside();
    let (mut cpu, _) = prepare(&other, &code);
    cpu.rip = WRITER;
    other.go_on(&cpu);
    translate(&mut other);
    std::thread::scope(|scope| {
        scope.spawn(|| run_to_halt(&mut other));
        run_to_halt(&mut machine);
    });
    assert_eq!(machine.emulator.cpu().gpr.get(0), u64::from(LAST));
}

/// A program that maps two pages in turn at one place, and calls what is there.
fn remaps(forget: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>) -> u64 {
    const PLACE: u64 = CODE + 0x3000;
    const ENTRY: u64 = TABLE + 8 * (PLACE >> 12);
    let mut machine = machine(|a| {
        let mut again = a.create_label();
        a.mov(ecx, 200)?;
        a.mov(r12, (CODE + 0x1000) | 0x63)?;
        a.set_label(&mut again)?;
        a.mov(qword_ptr(ENTRY), r12)?;
        forget(a)?;
        a.mov(eax, PLACE as u32)?;
        a.call(rax)?;
        a.add(rdx, rax)?;
        // The other page.
        a.xor(r12, 0x3000)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.hlt()
    });
    for (page, number) in [(CODE + 0x1000, 1), (CODE + 0x2000, 1000)] {
        let code = assembled(PLACE, |a| {
            a.mov(eax, number)?;
            a.ret()
        });
        machine.write(page, &code);
    }
    run_to_halt(&mut machine);
    assert!(machine.emulator.counters().translated > 1000);
    machine.emulator.cpu().gpr.get(2)
}

#[test]
fn code_that_is_mapped_elsewhere_is_found_there_after_invlpg() {
    let sum = remaps(|a| a.invlpg(byte_ptr(CODE + 0x3000)));
    assert_eq!(sum, 100 * 1001);
}

#[test]
fn code_that_is_mapped_elsewhere_is_found_there_after_a_load_of_cr3() {
    let sum = remaps(|a| {
        a.mov(eax, PML4 as u32)?;
        a.mov(cr3, rax)
    });
    assert_eq!(sum, 100 * 1001);
}

#[test]
fn an_endless_loop_is_left_when_somebody_calls() {
    let mut machine = machine(|a| {
        let (mut again, mut middle) = (a.create_label(), a.create_label());
        a.set_label(&mut again)?;
        a.inc(rax)?;
        a.jmp(middle)?;
        a.nop()?;
        a.set_label(&mut middle)?;
        a.jnz(again)?;
        a.hlt()
    });
    let attention = machine.emulator.attention().clone();
    let caller = std::thread::spawn(move || attention.call());
    assert_eq!(machine.emulator.run(Entry::Resume).unwrap(), Exit::Attention);
    caller.join().unwrap();
}

#[test]
fn a_limit_ends_an_endless_loop_at_exactly_that_instruction() {
    let mut machine = machine(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.inc(rax)?;
        a.jmp(again)
    });
    for limit in [100, 101, 5000] {
        let before = machine.retired();
        machine.run(limit);
        assert_eq!(machine.retired() - before, limit);
    }
    assert_eq!(machine.emulator.cpu().gpr.get(0), 5201 / 2 + 5201 % 2);
    assert!(machine.emulator.counters().translated > 4000);
}

#[test]
fn a_limit_ends_a_short_loop_in_any_of_its_turns_and_it_ends_itself_in_any() {
    for turns in [1, 2, 20, 21, 22, 63, 64, 65, 500] {
        let mut machine = machine(|a| {
            let mut again = a.create_label();
            a.mov(ecx, turns)?;
            a.set_label(&mut again)?;
            a.inc(rax)?;
            a.dec(ecx)?;
            a.jnz(again)?;
            a.hlt()
        });
        let all = 1 + 3 * turns as u64;
        let mut limit = 1;
        while machine.retired() + limit <= all {
            let before = machine.retired();
            machine.run(limit);
            assert_eq!(machine.retired() - before, limit);
            // INC is the second instruction, and then every third.
            assert_eq!(machine.emulator.cpu().gpr.get(0), (machine.retired() + 1) / 3);
            limit = limit * 2 % 89;
        }
        run_to_halt(&mut machine);
        assert_eq!(machine.emulator.cpu().gpr.get(0), turns as u64);
        assert_eq!(machine.emulator.cpu().rip % 0x1000, 5 + 3 + 2 + 2 + 1);
    }
}

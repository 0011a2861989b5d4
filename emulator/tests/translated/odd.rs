//! Code where nobody expects it, and code that never stays.

use std::time::{Duration, Instant};

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use reprise_emulator::translate::Translation;
use reprise_emulator::{Answer, Direction, Entry, Exit, Reply};

use crate::changing::{assembled, machine, prepare, run_to_halt, translate};
use crate::machine::{CODE, DATA, DEVICE, Machine};
use crate::{at_once, mixed, starved};

/// Where code is written to.
const SCRATCH: u64 = CODE + 0x2000;

/// All ways to execute a program; the first is the interpreter's.
fn ways() -> [Option<Translation>; 6] {
    let full = Translation { buffer: 0, ..at_once() };
    [
        None,
        Some(at_once()),
        Some(mixed(1)),
        Some(mixed(2)),
        Some(starved()),
        Some(full),
    ]
}

/// Runs a program in all ways: the same registers, and the same number of instructions. How many were translated the plain way.
fn same_in_all_ways(write: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>, rest: &[(u64, Vec<u8>)]) -> u64 {
    let mut expected = None;
    let mut translated = 0;
    for way in ways() {
        let mut machine = machine(&write);
        for (at, code) in rest {
            machine.write(*at, code);
        }
        machine.emulator.set_translation(way).unwrap();
        let before = machine.retired();
        run_to_halt(&mut machine);
        let gpr: Vec<u64> = (0..16)
            .map(|register| machine.emulator.cpu().gpr.get(register))
            .collect();
        let outcome = (machine.retired() - before, gpr, machine.emulator.cpu().flags);
        assert_eq!(*expected.get_or_insert(outcome.clone()), outcome, "{way:?}");
        if way == Some(at_once()) {
            translated = machine.emulator.counters().translated;
        }
    }
    translated
}

#[test]
fn a_program_takes_as_many_instructions_in_every_mix_of_tiers() {
    // Sorts numbers, sums them in a function in another page, and pushes flags on the way.
    let function = assembled(SCRATCH, |a| {
        a.xor(eax, eax)?;
        let mut next = a.create_label();
        a.set_label(&mut next)?;
        a.lodsq()?;
        a.pushfq()?;
        a.adc(rdx, rax)?;
        a.popfq()?;
        a.dec(ecx)?;
        a.jnz(next)?;
        a.ret()
    });
    let program = |a: &mut CodeAssembler| {
        let (mut fill, mut outer, mut inner, mut kept) =
            (a.create_label(), a.create_label(), a.create_label(), a.create_label());
        a.mov(rdi, DATA)?;
        a.mov(ecx, 64)?;
        a.mov(eax, 12345)?;
        a.set_label(&mut fill)?;
        a.imul_3(rax, rax, 1_103_515_245)?;
        a.add(rax, 12345)?;
        a.mov(qword_ptr(rdi + rcx * 8 - 8), rax)?;
        a.dec(ecx)?;
        a.jnz(fill)?;
        a.mov(r8d, 63)?;
        a.set_label(&mut outer)?;
        a.xor(ecx, ecx)?;
        a.set_label(&mut inner)?;
        a.mov(rax, qword_ptr(rdi + rcx * 8))?;
        a.mov(rbx, qword_ptr(rdi + rcx * 8 + 8))?;
        a.cmp(rax, rbx)?;
        a.jbe(kept)?;
        a.mov(qword_ptr(rdi + rcx * 8), rbx)?;
        a.mov(qword_ptr(rdi + rcx * 8 + 8), rax)?;
        a.set_label(&mut kept)?;
        a.inc(ecx)?;
        a.cmp(ecx, r8d)?;
        a.jb(inner)?;
        a.dec(r8d)?;
        a.jnz(outer)?;
        a.mov(rsi, rdi)?;
        a.mov(ecx, 64)?;
        a.mov(eax, SCRATCH as u32)?;
        a.call(rax)?;
        a.mov(r9, qword_ptr(rdi))?;
        a.mov(r10, qword_ptr(rdi + 63 * 8))?;
        a.hlt()
    };
    let translated = same_in_all_ways(program, &[(SCRATCH, function)]);
    assert!(translated > 10_000, "{translated}");
}

#[test]
fn a_jump_into_the_middle_of_an_instruction_finds_another_one_there() {
    // MOV EAX, imm32 whose immediate is INC EDX, RET and more.
    let function = vec![0xb8, 0xff, 0xc2, 0xc3, 0x90, 0xff, 0xc3, 0xc3];
    let program = |a: &mut CodeAssembler| {
        let mut again = a.create_label();
        a.mov(ecx, 100)?;
        a.set_label(&mut again)?;
        for offset in [0, 1, 5, 1, 0] {
            a.mov(ebp, (SCRATCH + offset) as u32)?;
            a.call(rbp)?;
        }
        a.dec(ecx)?;
        a.jnz(again)?;
        a.hlt()
    };
    let translated = same_in_all_ways(program, &[(SCRATCH, function)]);
    assert!(translated > 1000, "{translated}");
}

#[test]
fn code_in_a_device_is_executed_between_code_that_is_translated() {
    // INC EDX, RET.
    let code = [0xff_u8, 0xc2, 0xc3, 0x90];
    let program = |a: &mut CodeAssembler| {
        let mut again = a.create_label();
        a.mov(ecx, 50)?;
        a.set_label(&mut again)?;
        a.mov(ebp, DEVICE as u32)?;
        a.call(rbp)?;
        a.add(rbx, rdx)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.hlt()
    };
    let mut machine = machine(program);
    let mut entry = Entry::Resume;
    let mut asked = 0;
    loop {
        match machine.emulator.run(entry).unwrap() {
            Exit::Halt => break,
            Exit::Request(request) => {
                assert_eq!(request.direction, Direction::Read);
                let at = request.address & 0xfff;
                let byte = |i: u64| u64::from(code.get((at + i) as usize).copied().unwrap_or(0x90));
                let value = (0..u64::from(request.size)).fold(0, |value, i| value | byte(i) << (8 * i));
                asked += 1;
                let reply = Reply::Value(value);
                entry = Entry::Answer(Answer { id: request.id, reply });
            }
            exit => panic!("{exit:?}"),
        }
    }
    let cpu = machine.emulator.cpu();
    assert_eq!((cpu.gpr.get(2), cpu.gpr.get(3)), (50, 50 * 51 / 2));
    assert!(asked >= 100, "each instruction is fetched from the device each time");
    assert!(machine.emulator.counters().translated > 100);
}

/// A program that writes a new function and calls it, over and over.
fn writer(turns: u32) -> impl Fn(&mut CodeAssembler) -> Result<(), IcedError> {
    move |a| {
        let mut again = a.create_label();
        a.mov(ecx, turns)?;
        a.set_label(&mut again)?;
        // Somewhere in a page: MOV EAX, ECX; INC EAX …; RET.
        a.mov(edi, ecx)?;
        a.and(edi, 0x7f0)?;
        a.add(edi, SCRATCH as u32)?;
        a.mov(dword_ptr(rdi), 0xc0ff_c889_u32)?;
        a.mov(byte_ptr(rdi + 4), 0xb9)?;
        a.mov(dword_ptr(rdi + 5), ecx)?;
        a.mov(byte_ptr(rdi + 9), 0xc3)?;
        a.call(rdi)?;
        a.add(rdx, rax)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.hlt()
    }
}

#[test]
fn a_guest_that_keeps_writing_code_uses_no_more_memory() {
    const BUFFER: usize = 64 << 10;
    let is_long = std::env::var_os("REPRISE_LONG").is_some();
    let end = Instant::now() + Duration::from_secs(300);
    const TURNS: u32 = 20_000;
    let mut machine = machine(writer(TURNS));
    let translation = Translation {
        buffer: BUFFER,
        ..at_once()
    };
    machine.emulator.set_translation(Some(translation)).unwrap();
    let (mut most, mut rounds) = (0, 0);
    loop {
        run_to_halt(&mut machine);
        let expected: u64 = (1..=u64::from(TURNS)).map(|turn| turn + 1).sum();
        assert_eq!(machine.emulator.cpu().gpr.get(2), expected);
        most = most.max(machine.emulator.counters().code_bytes);
        rounds += 1;
        if !is_long || Instant::now() > end {
            break;
        }
        let (cpu, _) = prepare(&machine, &[0x90]);
        machine.go_on(&cpu);
    }
    let counters = machine.emulator.counters();
    println!("{rounds} rounds, at most {most} bytes of code: {counters:?}");
    assert!(most <= BUFFER as u64);
    assert!(counters.evictions > 10 && counters.invalidations > 1000 && counters.translations > 10_000);
}

#[test]
fn two_cpus_that_rewrite_the_function_of_each_other_see_every_version() {
    const TURNS: u32 = 300;
    /// Words: what each has told, and what it has taken.
    const TOLD: [u64; 2] = [DATA + 0x100, DATA + 0x140];
    const FUNCTIONS: [u64; 2] = [CODE + 0x1003, CODE + 0x3003];
    const PROGRAMS: [u64; 2] = [CODE, CODE + 0x2000];
    // Each tells the other a number, by an immediate of its function first, and waits until it has been told as much.
    let code = |own: usize| {
        assembled(PROGRAMS[own], |a| {
            let (mut again, mut wait, mut old) = (a.create_label(), a.create_label(), a.create_label());
            a.mov(ecx, 1)?;
            a.set_label(&mut again)?;
            a.mov(dword_ptr(FUNCTIONS[1 - own] + 1), ecx)?;
            a.mov(dword_ptr(TOLD[own]), ecx)?;
            a.set_label(&mut wait)?;
            a.pause()?;
            a.cmp(dword_ptr(TOLD[1 - own]), ecx)?;
            a.jb(wait)?;
            a.call(FUNCTIONS[own])?;
            a.cmp(eax, ecx)?;
            a.jb(old)?;
            a.inc(ecx)?;
            a.cmp(ecx, TURNS as i32 + 1)?;
            a.jne(again)?;
            a.hlt()?;
            a.set_label(&mut old)?;
            a.ud2()
        })
    };
    let mut first = machine(|a| a.hlt());
    let function = |at: u64| {
        assembled(at, |a| {
            a.mov(eax, 0)?;
            a.ret()
        })
    };
    for own in 0..2 {
        first.write(FUNCTIONS[own], &function(FUNCTIONS[own]));
        first.write(TOLD[own], &[0; 4]);
        first.write(PROGRAMS[own], &code(own));
    }
    let mut second = first.beside();
    for (own, machine) in [&mut first, &mut second].into_iter().enumerate() {
        let (mut cpu, _) = prepare(machine, &[0x90]);
        cpu.rip = PROGRAMS[own];
        // Stacks of their own.
        let stack = cpu.gpr.get(4) & !0xfff | 0x400 << own;
        cpu.gpr.set(4, stack);
        machine.go_on(&cpu);
        translate(machine);
    }
    std::thread::scope(|scope| {
        scope.spawn(|| run_to_halt(&mut first));
        run_to_halt(&mut second);
    });
    for machine in [&first, &second] {
        let last = |machine: &Machine| machine.emulator.cpu().gpr.get(0);
        assert!(last(machine) >= u64::from(TURNS));
        assert!(machine.emulator.counters().invalidations > 0);
    }
}

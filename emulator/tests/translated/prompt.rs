//! Calls and interrupts come through to code that is translated, and soon.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use reprise_emulator::cpu::{Shadow, flags};
use reprise_emulator::{Entry, Event, Exit};

use crate::changing::begin;
use crate::machine::{CODE, Caller, DATA, Machine, Ring};

/// Instructions that one stay may go on for: a block's, however long straight code is.
const SOON: u64 = 256;
/// Turns of a loop before somebody calls, by when it is translated and linked.
const TURNS: u32 = 50;

/// A machine that is called when it executes its RDTSC for the last time of so many.
fn called(reads: u32, write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Machine {
    let caller = Arc::new(Caller::default());
    let machine = begin(Machine::called(Ring::Supervisor, &caller), write);
    caller.reads_left.store(reads, Relaxed);
    machine
}

/// Runs it; how many instructions after RDTSC it comes out, if a turn has so many.
fn comes_out_after(machine: &mut Machine, turn: u64) -> u64 {
    let before = machine.retired();
    assert_eq!(machine.emulator.run(Entry::Resume).unwrap(), Exit::Attention);
    assert!(machine.emulator.counters().translated > u64::from(TURNS));
    // Each turn begins with RDTSC.
    machine.retired() - before - (turn * u64::from(TURNS - 1) + 1)
}

#[test]
fn a_call_is_answered_within_a_block_in_a_loop_that_never_ends() {
    let mut machine = called(TURNS, |a| {
        let [mut outer, mut inner] = [(); 2].map(|()| a.create_label());
        a.set_label(&mut outer)?;
        a.rdtsc()?;
        a.mov(ecx, 1000)?;
        a.set_label(&mut inner)?;
        a.inc(rbx)?;
        a.dec(ecx)?;
        a.jnz(inner)?;
        a.jmp(outer)
    });
    let after = comes_out_after(&mut machine, 3 + 3 * 1000);
    assert!(after <= SOON, "{after}");
}

#[test]
fn a_call_is_answered_within_a_block_in_thousands_of_instructions_without_a_jump() {
    const LENGTH: u32 = 4000;
    let mut machine = called(TURNS, |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.rdtsc()?;
        for _ in 0..LENGTH {
            a.inc(ebx)?;
        }
        a.jmp(again)
    });
    let after = comes_out_after(&mut machine, u64::from(LENGTH) + 2);
    assert!(after <= SOON, "{after}");
}

#[test]
fn a_call_is_answered_within_a_block_among_calls_and_returns_between_pages() {
    const FUNCTION: u64 = CODE + 0x1f00;
    let mut machine = called(TURNS, |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.rdtsc()?;
        for _ in 0..100 {
            a.call(FUNCTION)?;
        }
        a.jmp(again)
    });
    // INC EBX; RET
    machine.write(FUNCTION, &[0xff, 0xc3, 0xc3]);
    let after = comes_out_after(&mut machine, 2 + 100 * 3);
    assert!(after <= SOON, "{after}");
}

#[test]
fn a_call_is_answered_in_the_middle_of_a_long_repetition() {
    const BYTES: u64 = 0x3000;
    let mut machine = called(TURNS, |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.rdtsc()?;
        a.mov(edi, DATA as u32)?;
        a.mov(ecx, BYTES as u32)?;
        a.rep().stosb()?;
        a.jmp(again)
    });
    assert_eq!(machine.emulator.run(Entry::Resume).unwrap(), Exit::Attention);
    let cpu = machine.emulator.cpu();
    let (left, at) = (cpu.gpr.get(1), cpu.gpr.get(7));
    // It may not have been begun, or not be at its end; registers tell how far it is.
    if cpu.rip != CODE {
        assert!(left > 0 && left <= BYTES, "{left:#x} at {:#x}", cpu.rip);
        assert!(left == BYTES || at == DATA + BYTES - left, "{at:#x}");
    }
}

#[test]
fn an_interrupt_is_let_in_behind_the_instruction_after_sti_in_the_middle_of_translated_code() {
    let program = |a: &mut CodeAssembler| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.rdtsc()?;
        a.cli()?;
        for _ in 0..5 {
            a.inc(ebx)?;
        }
        a.sti()?;
        a.inc(ebx)?;
        a.inc(ebp)?;
        a.inc(ebx)?;
        a.jmp(again)
    };
    const TURN: u64 = 12;
    for translates in [false, true] {
        let mut machine = called(TURNS, program);
        if !translates {
            machine.emulator.set_translation(None).unwrap();
        }
        let before = machine.retired();
        assert_eq!(machine.emulator.run(Entry::Resume).unwrap(), Exit::Attention);
        // To where interrupts are kept out.
        while machine.emulator.cpu().flags.any(flags::IF) || (machine.retired() - before) % TURN != 4 {
            machine.run(1);
        }
        let begun = machine.retired();
        machine.emulator.request_window();
        assert_eq!(machine.emulator.run(Entry::Resume).unwrap(), Exit::Attention);
        let cpu = machine.emulator.cpu();
        assert!(cpu.accepts_interrupts() && cpu.shadow == Shadow::None);
        // Three INC, STI, and the INC in its shadow.
        assert_eq!(machine.retired() - begun, 5, "translated: {translates}");
        assert!(machine.emulator.inject(Event::external(0x40)));
        assert_eq!(machine.emulator.counters().translated > 0, translates);
    }
}

//! Instruction bytes.

use iced_x86::code_asm::*;
use reprise_emulator::cpu::gpr;
use reprise_emulator::replay::Kind;
use reprise_emulator::{Entry, Exit};

use crate::guest::*;

const GP: Option<u64> = Some(13);
const PF: Option<u64> = Some(14);

/// A guest about to execute `bytes` that end where the page ends; the next page is not there.
fn at_the_edge(bytes: &[u8]) -> Guest {
    let mut guest = Guest::new();
    let start = CODE + 0x1000 - bytes.len() as u64;
    guest.put(start, bytes);
    guest.map(CODE + 0x1000, 0);
    guest.emulator.change(|cpu| cpu.rip = start);
    guest
}

#[test]
fn rule_19_reading_ahead_does_not_fault_for_bytes_that_are_not_the_instructions() {
    // mov eax, [rbx]; hlt
    let mut guest = at_the_edge(&[0x8b, 0x03, 0xf4]);
    guest.set(&[(gpr::RBX, DEVICE)]);
    assert_eq!(guest.run(), Exit::Halt);
    assert_eq!((guest.vector(), guest.get(gpr::RAX)), (None, guest.in_device(0, 4)));
}

#[test]
fn rule_19_bytes_that_are_the_instructions_do_fault() {
    // mov eax, [rbx + disp8], without its displacement.
    let mut guest = at_the_edge(&[0x8b, 0x43]);
    guest.set(&[(gpr::RBX, DEVICE)]);
    guest.run();
    assert_eq!((guest.vector(), guest.emulator.cpu().cr2), (PF, CODE + 0x1000));
    assert_eq!(guest.trace, []);
}

#[test]
fn rule_19_fifteen_bytes_are_enough_to_know_that_an_instruction_is_too_long() {
    let mut guest = at_the_edge(&[0x66; 15]);
    guest.run();
    assert_eq!(guest.vector(), GP);
    let mut guest = at_the_edge(&[0x66; 14]);
    guest.run();
    assert_eq!(guest.vector(), PF);
    // The longest instruction there is.
    let mut longest = [0x2e; 16];
    longest[13..].copy_from_slice(&[0x8b, 0x03, 0xf4]);
    let mut guest = at_the_edge(&longest);
    guest.set(&[(gpr::RBX, DEVICE)]);
    guest.run();
    assert_eq!((guest.vector(), guest.trace.as_slice()), (None, &[read(0, 4)][..]));
}

#[test]
fn rule_19_an_instruction_is_at_most_fifteen_recorded_bytes() {
    let mut guest = Guest::with(|a| a.mov(eax, dword_ptr(rbx)));
    guest.set(&[(gpr::RBX, DEVICE)]);
    for at in [CODE, CODE + 0xff1, CODE + 0xfff] {
        guest.put(at, &[0x8b, 0x03]);
        guest.emulator.change(|cpu| cpu.rip = at);
        guest.request(Entry::Resume);
        let fetched = guest
            .emulator
            .record()
            .iter()
            .filter(|entry| entry.question.kind == Kind::Fetch);
        // As many as it takes to know that the instruction is complete, and no more than there can be.
        let bytes = fetched.map(|entry| entry.question.width).sum::<u8>();
        assert!((2..=15).contains(&bytes), "{bytes}");
    }
}

#[test]
fn rule_2_an_instruction_over_two_pages_replays_from_its_record() {
    let mut guest = Guest::new();
    let start = CODE + 0xfff;
    guest.put(start, &[0x8b, 0x43, 0x04]);
    guest.emulator.change(|cpu| cpu.rip = start);
    guest.set(&[(gpr::RBX, DEVICE)]);
    let request = guest.request(Entry::Resume);
    guest.put(start, &[0x0f, 0x0b, 0x0f]);
    guest.map(CODE, 0);
    guest.map(CODE + 0x1000, 0);
    guest.emulator.attention().call();
    let answer = guest.serve(request);
    assert_eq!(guest.enter(answer), Exit::Attention);
    assert_eq!(
        (guest.get(gpr::RAX), guest.emulator.cpu().rip),
        (guest.in_device(4, 4), start + 3)
    );
}

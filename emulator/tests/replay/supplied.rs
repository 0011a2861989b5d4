//! Instruction bytes that hardware or a hypervisor supplies with an exit.

use iced_x86::code_asm::*;
use reprise_emulator::cpu::{Cr4, gpr};
use reprise_emulator::replay::Kind;
use reprise_emulator::{Cause, Entry, Exit, Space, SupplyError};

use crate::guest::*;

/// MOV EAX, [RBX].
const LOAD: [u8; 2] = [0x8b, 0x03];
const READS: Cause = Cause::Memory { write: false };

/// A guest whose memory holds MOV ECX, [RBX], as if another CPU had just written that.
fn guest() -> Guest {
    let mut guest = Guest::new();
    guest.put(CODE, &[0x8b, 0x0b]);
    guest.set(&[(gpr::RBX, DEVICE)]);
    guest
}

#[test]
fn rule_18_supplied_bytes_are_the_first_entries_of_the_record() {
    let mut guest = guest();
    let mut bytes = [0xf4; 15];
    bytes[..2].copy_from_slice(&LOAD);
    guest.emulator.supply(&bytes, READS).unwrap();
    let request = guest.request(Entry::Resume);
    let first = guest.emulator.record()[0];
    assert_eq!((first.question.kind, first.question.address), (Kind::Supplied, CODE));
    assert_eq!((first.question.width, first.value), (2, 0x038b));
    assert!(
        !guest
            .emulator
            .record()
            .iter()
            .any(|entry| entry.question.kind == Kind::Fetch)
    );
    guest.emulator.attention().call();
    let answer = guest.serve(request);
    assert_eq!(guest.enter(answer), Exit::Attention);
    assert_eq!(guest.get(gpr::RAX), guest.in_device(0, 4));
    assert_eq!(guest.emulator.cpu().rip, CODE + 2);
}

#[test]
fn rule_18_bytes_that_do_not_explain_the_exit_are_fetched_instead() {
    let port = |size, write| Cause::Port { size, write };
    let cases: [(&[u8], Cause, bool); 9] = [
        (&LOAD, READS, true),
        (&LOAD, Cause::Emulation, true),
        (&LOAD, Cause::Memory { write: true }, false),
        (&LOAD, port(4, false), false),
        (&[0xec], port(1, false), true),
        (&[0xec], port(1, true), false),
        (&[0x66, 0x6f], port(2, true), true),
        // INC dword [RBX] does both.
        (&[0xff, 0x03], Cause::Memory { write: true }, true),
        (&[0x90], READS, false),
    ];
    for (bytes, cause, believed) in cases {
        let mut guest = guest();
        let expected = if believed { Ok(()) } else { Err(SupplyError::Mismatch) };
        assert_eq!(
            guest.emulator.supply(bytes, cause),
            expected,
            "{bytes:02x?} for {cause:?}"
        );
        assert_eq!(guest.emulator.is_in_flight(), believed);
        if !believed {
            assert_eq!(guest.run(), Exit::Halt);
            assert_eq!(guest.get(gpr::RCX), guest.in_device(0, 4), "what memory holds");
        }
    }
}

#[test]
fn rule_18_zeros_are_not_believed_while_smap_is_on() {
    for (smap, expected) in [(false, Ok(())), (true, Err(SupplyError::Erratum1096))] {
        let mut guest = guest();
        guest.emulator.change(|cpu| {
            if smap {
                cpu.cr4 = Cr4(cpu.cr4.0 | Cr4::SMAP);
            }
        });
        // ADD [RAX], AL
        assert_eq!(guest.emulator.supply(&[0; 15], Cause::Memory { write: true }), expected);
    }
}

#[test]
fn rule_18_bytes_that_are_cut_off_are_fetched_instead() {
    for bytes in [&LOAD[..1], &[], &[0x90; 16]] {
        let mut guest = guest();
        let length = bytes.len();
        assert_eq!(
            guest.emulator.supply(bytes, READS),
            Err(SupplyError::Incomplete { length })
        );
    }
}

#[test]
fn bytes_come_at_the_start_of_an_instruction_only() {
    let mut guest = guest();
    guest.request(Entry::Resume);
    assert_eq!(guest.emulator.supply(&LOAD, READS), Err(SupplyError::Busy));
}

#[test]
fn rule_8_a_device_that_has_answered_already_is_not_asked_again() {
    let mut guest = Guest::with(|a| a.lock().cmpxchg16b(xmmword_ptr(rbx)));
    guest.set(&[(gpr::RBX, DEVICE), (gpr::RAX, 1), (gpr::RDX, 2)]);
    for (half, value) in [(0, 0x11), (8, 0x22)] {
        guest
            .emulator
            .supply_answer(Space::Memory, DEVICE_GPA + half, 8, value)
            .unwrap();
    }
    assert_eq!(guest.run(), Exit::Halt);
    assert_eq!(guest.trace, [write(0, 8, 0x11), write(8, 8, 0x22)]);
    assert_eq!((guest.get(gpr::RAX), guest.get(gpr::RDX)), (0x11, 0x22));
}

#[test]
fn rule_24_an_answer_that_nobody_asked_for_does_not_survive_the_instruction() {
    let mut guest = Guest::with(|a| {
        a.nop()?;
        a.mov(eax, dword_ptr(rbx))
    });
    guest.set(&[(gpr::RBX, DEVICE)]);
    guest
        .emulator
        .supply_answer(Space::Memory, DEVICE_GPA, 4, 0x11)
        .unwrap();
    guest.emulator.supply(&[0x90], Cause::Emulation).unwrap();
    assert_eq!(guest.run(), Exit::Halt);
    assert_eq!(guest.trace, [read(0, 4)]);
}

#[test]
fn the_cpu_comes_out_after_as_many_instructions_as_were_asked_for() {
    for (count, registers) in [(1, [1, 0, 0]), (2, [1, 2, 0]), (3, [1, 2, 3])] {
        let mut guest = Guest::with(|a| {
            a.mov(eax, 1)?;
            a.mov(ecx, 2)?;
            a.mov(edx, 3)
        });
        guest.set(&[gpr::RAX, gpr::RCX, gpr::RDX].map(|register| (register, 0)));
        assert_eq!(
            guest.emulator.run_at_most(Entry::Resume, count).unwrap(),
            Exit::Attention
        );
        assert_eq!(
            [gpr::RAX, gpr::RCX, gpr::RDX].map(|register| guest.get(register)),
            registers
        );
        assert_eq!(guest.enter(Entry::Resume), Exit::Halt);
    }
}

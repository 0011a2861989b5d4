//! Who may end an instruction in flight.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use reprise_emulator::cpu::gpr;
use reprise_emulator::{Answer, Direction, Entry, Exit, Reply, Request};

use crate::guest::*;

type Code = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Runs to the `k`-th request, if that is a read.
fn run_to(guest: &mut Guest, k: usize) -> Option<Request> {
    let mut entry = Entry::Resume;
    for _ in 0..k {
        let request = match guest.enter(entry) {
            Exit::Request(request) => request,
            _ => return None,
        };
        entry = guest.serve(request);
    }
    match guest.enter(entry) {
        Exit::Request(request) if request.direction == Direction::Read => Some(request),
        _ => None,
    }
}

#[test]
fn rule_20_an_instruction_that_is_cancelled_has_changed_nothing_at_all() {
    let codes: [Code; 8] = [
        |a| a.movdqu(xmm1, xmmword_ptr(rbx)),
        |a| a.lock().xadd(qword_ptr(rbx), rax),
        |a| a.push(qword_ptr(rbx)),
        |a| a.iretq(),
        |a| a.cmpsq(),
        |a| a.fxrstor(ptr(rbx)),
        |a| a.insb(),
        |a| a.enter(8, 3),
    ];
    for code in codes {
        let mut k = 0;
        loop {
            let mut guest = Guest::with(code);
            let registers = [gpr::RBX, gpr::RSI, gpr::RDI, gpr::RSP, gpr::RBP];
            guest.set(&registers.map(|register| (register, DEVICE + 0x100)));
            guest.set(&[(gpr::RBP, DEVICE + 0x200)]);
            let (cpu, memory, device) = (guest.emulator.cpu().clone(), guest.memory(), guest.device().to_vec());
            let Some(request) = run_to(&mut guest, k) else { break };
            match k % 3 {
                0 => guest.emulator.cancel(),
                1 => guest.emulator.change(|_| ()),
                _ => guest.emulator.set_cpu(cpu.clone()),
            }
            assert!(*guest.emulator.cpu() == cpu && guest.memory() == memory && guest.device() == device);
            assert!(!guest.emulator.is_in_flight() && guest.emulator.record().is_empty());
            // What arrives late is discarded and counted, and the instruction begins anew.
            let answer = Answer {
                id: request.id,
                reply: Reply::Value(0x5555),
            };
            let first = guest.request(Entry::Answer(answer));
            let counters = guest.emulator.counters();
            assert_eq!((counters.stale_answers, counters.cancellations), (1, 1));
            assert_ne!(first.id, request.id);
            k += 1;
        }
        assert!(k > 0);
    }
}

#[test]
fn rule_20_a_retired_instruction_makes_all_its_stores() {
    // Sixteen bytes that end behind the device, and the same within it.
    for at in [BEHIND - 8, DEVICE] {
        let mut guest = Guest::with(|a| a.movdqu(xmmword_ptr(rbx), xmm1));
        guest.emulator.change(|cpu| {
            cpu.gpr.set(gpr::RBX, at);
            cpu.fpu.set_xmm(1, [7; 16]);
        });
        let request = guest.request(Entry::Resume);
        guest.serve(request);
        // Somebody sets a register before the device has said that it is done.
        guest.set(&[(gpr::RCX, 9)]);
        assert_eq!(guest.run(), Exit::Halt);
        assert_eq!(guest.emulator.cpu().rip, CODE + 5);
        let sevens = 0x0707_0707_0707_0707;
        if at == DEVICE {
            assert_eq!(guest.trace, [write(0, 8, sevens), write(8, 8, sevens)]);
        } else {
            assert_eq!(guest.trace, [write(0xfff8, 8, sevens)]);
            assert_eq!(guest.read(BEHIND_RAM, 8), sevens);
        }
        assert_eq!(guest.emulator.counters().cancellations, 0);
    }
}

#[test]
fn rule_20_an_answer_to_another_request_is_not_taken() {
    let mut guest = Guest::with(|a| a.mov(eax, dword_ptr(rbx)));
    guest.set(&[(gpr::RBX, DEVICE)]);
    let request = guest.request(Entry::Resume);
    let answer = Answer {
        id: request.id + 1,
        reply: Reply::Value(0x5555),
    };
    assert!(
        guest.emulator.run(Entry::Answer(answer)).is_err(),
        "the right one is still owed"
    );
    assert_eq!(guest.emulator.counters().stale_answers, 1);
    let answer = guest.serve(request);
    assert_eq!(guest.enter(answer), Exit::Halt);
    assert_eq!(guest.get(gpr::RAX), guest.in_device(0, 4));
}

#[test]
fn rule_21_a_call_for_attention_waits_for_the_end_of_the_instruction() {
    let mut guest = Guest::with(|a| a.movdqu(xmm1, xmmword_ptr(rbx)));
    guest.set(&[(gpr::RBX, DEVICE)]);
    let request = guest.request(Entry::Resume);
    guest.emulator.attention().call();
    let answer = guest.serve(request);
    let request = guest.request(answer);
    let answer = guest.serve(request);
    assert_eq!(guest.enter(answer), Exit::Attention);
    assert_eq!(guest.emulator.cpu().rip, CODE + 4);
    assert_eq!(guest.emulator.counters().cancellations, 0);
}

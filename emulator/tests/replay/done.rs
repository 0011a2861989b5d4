//! What a pass may do.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use reprise_emulator::cpu::{Attributes, Seg, Segment, gpr};
use reprise_emulator::{Direction, Entry, Error, Event, Exit};

use crate::guest::*;

type Code = fn(&mut CodeAssembler) -> Result<(), IcedError>;

const PF: Option<u64> = Some(14);

#[test]
fn rule_6_what_cannot_be_stored_is_not_taken_from_the_device() {
    let codes: [Code; 7] = [
        |a| a.insb(),
        |a| a.rep().insd(),
        |a| a.movsb(),
        |a| a.rep().movsq(),
        |a| a.pop(qword_ptr(rdi)),
        |a| a.lock().xadd(qword_ptr(rdi), rax),
        |a| a.push(qword_ptr(rsi)),
    ];
    // The first byte cannot be written, or the last one.
    for last in [false, true] {
        for (i, code) in codes.into_iter().enumerate() {
            let push = i == 6;
            if last && (i == 0 || i == 2) {
                continue;
            }
            let mut guest = Guest::with(code);
            // The handler's stack is in RAM all the same.
            guest.emulator.change(|cpu| cpu.tr.base = TSS);
            guest.write(TSS + 0x24, 8, STACK - 0x400);
            guest.write(0x6000 + 14 * 16 + 4, 1, 1);
            let page = DEVICE + 0x2000;
            guest.map(page, (DEVICE_GPA + 0x2000) | (ALL & !2));
            let at = if last { page - 2 } else { page };
            let top = if push { at + 8 } else { DEVICE };
            guest.set(&[(gpr::RSI, DEVICE), (gpr::RDI, at), (gpr::RSP, top), (gpr::RCX, 2)]);
            guest.run();
            assert_eq!(
                (guest.vector(), guest.trace.as_slice()),
                (PF, &[][..]),
                "code {i}, last {last}"
            );
        }
    }
}

#[test]
fn rule_6_enter_does_not_read_a_frame_pointer_that_it_cannot_push() {
    let mut guest = Guest::with(|a| a.enter(0, 2));
    guest.write(TSS + 0x24, 8, STACK - 0x400);
    guest.write(0x6000 + 14 * 16 + 4, 1, 1);
    // The first push goes into the page above, the others into one that cannot be written.
    guest.map(DATA, DATA | (ALL & !2));
    guest.set(&[(gpr::RSP, DATA + 0x1008), (gpr::RBP, DEVICE + 0x100)]);
    guest.run();
    assert_eq!((guest.vector(), guest.trace.as_slice()), (PF, &[][..]));
}

#[test]
fn rule_7_a_later_load_sees_what_the_instruction_has_stored() {
    for stack in [STACK, DEVICE + 0x800] {
        let mut guest = Guest::with(|a| a.enter(0, 2));
        // The outer frame pointer is read where RBP has just been pushed.
        guest.set(&[(gpr::RSP, stack), (gpr::RBP, stack)]);
        guest.run();
        let slot = |guest: &Guest, n: u64| match stack {
            STACK => guest.read(stack - 8 * n, 8),
            _ => guest.in_device(0x800 - 8 * n, 8),
        };
        let slots = [1, 2, 3].map(|n| slot(&guest, n));
        assert_eq!(slots, [stack, stack, stack - 8]);
        if stack != STACK {
            let writes = [
                write(0x7f8, 8, stack),
                write(0x7f0, 8, stack),
                write(0x7e8, 8, stack - 8),
            ];
            assert_eq!(guest.trace, writes, "nothing is asked for");
        }
    }
}

#[test]
fn rule_7_a_store_into_a_page_table_counts_within_the_instruction() {
    let mut guest = Guest::with(|a| a.enter(0, 2));
    let target = 0x3_8000;
    // The stack is the page table. RBP is pushed over the entry of the page that it points into, and fits as such.
    let pointer = target | ALL;
    let stack = 0x1e_0000;
    guest.map(stack, PAGE_TABLE | ALL);
    guest.map(target, DATA | ALL);
    guest.write(pointer - 8, 8, 0x1234_5678);
    guest.set(&[
        (gpr::RSP, stack + (entry_of(target) - PAGE_TABLE) + 8),
        (gpr::RBP, pointer),
    ]);
    guest.run();
    assert_eq!(guest.read(entry_of(target), 8), pointer);
    assert_eq!(
        guest.read(entry_of(target) - 8, 8),
        0x1234_5678,
        "the frame pointer, by the new entry"
    );
}

#[test]
fn rule_7_pushes_into_a_device_are_made_once_and_in_order() {
    let mut guest = Guest::new();
    guest.code(CODE, 32, |a| a.pushad());
    guest.emulator.change(|cpu| {
        cpu.segments[Seg::Cs] = Segment::flat(CODE32, Attributes(0xc09b));
        for register in 0..8 {
            cpu.gpr.set(register, 0x1000_0000 + u64::from(register));
        }
        cpu.gpr.set(gpr::RSP, DEVICE + 0x100);
    });
    guest.run();
    let expected: Vec<_> = (0..8u64)
        .map(|register| {
            let value = if register == 4 {
                DEVICE + 0x100
            } else {
                0x1000_0000 + register
            };
            write(0xfc - 4 * register, 4, value)
        })
        .collect();
    assert_eq!(guest.trace, expected);
}

#[test]
fn rule_7_a_far_call_through_a_device_onto_a_device_stack() {
    let mut guest = Guest::with(|a| a.call(fword_ptr(rbx)));
    let target = CODE + 0x200;
    guest.set(&[(gpr::RBX, DEVICE), (gpr::RSP, DEVICE + 0x100)]);
    let pointer = [0x00, 0x02, 0x01, 0x00, 0x08, 0x00];
    assert_eq!(target, 0x1_0200);
    let mut done = 0;
    let mut entry = Entry::Resume;
    while let Exit::Request(request) = guest.enter(entry) {
        entry = guest.serve(request);
        if let (Entry::Answer(answer), Direction::Read) = (&mut entry, request.direction) {
            let mut value = [0; 8];
            value[..usize::from(request.size)].copy_from_slice(&pointer[done..][..usize::from(request.size)]);
            done += usize::from(request.size);
            answer.reply = reprise_emulator::Reply::Value(u64::from_le_bytes(value));
        }
    }
    assert_eq!(guest.emulator.cpu().rip, target + 1, "one HLT later");
    assert_eq!(guest.trace[..2], [read(0, 4), read(4, 2)]);
    // An operand of 32 bits pushes doublewords.
    assert_eq!(
        guest.trace[2..],
        [write(0xfc, 4, u64::from(CODE64)), write(0xf8, 4, CODE + 2)]
    );
}

#[test]
fn rule_8_device_writes_drain_one_by_one_without_another_pass() {
    let mut guest = Guest::with(|a| a.movdqu(xmmword_ptr(rbx), xmm1));
    guest.emulator.change(|cpu| {
        cpu.gpr.set(gpr::RBX, BEHIND - 8);
        cpu.fpu.set_xmm(1, [7; 16]);
    });
    let request = guest.request(Entry::Resume);
    let passes = guest.emulator.counters().passes;
    let behind = guest.read(BEHIND_RAM, 8);
    assert_ne!(behind, 0x0707_0707_0707_0707, "stores are made in order");
    guest.emulator.attention().call();
    let answer = guest.serve(request);
    assert_eq!(guest.enter(answer), Exit::Attention);
    assert_eq!(guest.read(BEHIND_RAM, 8), 0x0707_0707_0707_0707);
    assert_eq!(guest.emulator.counters().passes, passes);
    assert_eq!(guest.trace, [write(0xfff8, 8, 0x0707_0707_0707_0707)]);
}

#[test]
fn rule_8_memory_before_the_device_is_written_before_it() {
    let mut guest = Guest::with(|a| a.mov(qword_ptr(rbx), rax));
    guest.set(&[(gpr::RBX, DEVICE - 4), (gpr::RAX, 0x1111_2222_3333_4444)]);
    guest.request(Entry::Resume);
    assert_eq!(guest.read(BEFORE_RAM + 0xffc, 4), 0x3333_4444);
}

/// A far return to user code, whose stack descriptor is in RAM and code descriptor in a table in the device. Runs to
/// the device's first question.
fn far_return() -> (Guest, reprise_emulator::Request) {
    let mut guest = Guest::with(|a| a.db(&[0x48, 0xcb]));
    let frame = [DATA, 0x07, STACK, 0x43];
    for (i, value) in frame.into_iter().enumerate() {
        guest.write(STACK + 8 * i as u64, 8, value);
    }
    // Neither has been accessed.
    guest.write(GDT + 0x40, 8, 0x00cf_f200_0000_ffff);
    guest.emulator.change(|cpu| {
        cpu.ldtr = Segment {
            selector: 0x50,
            attributes: Attributes(0x82),
            limit: 0xff,
            base: DEVICE,
        };
    });
    let request = guest.request(Entry::Resume);
    (guest, request)
}

#[test]
fn rule_9_and_10_an_atomic_operation_on_memory_happens_once() {
    let (mut guest, mut request) = far_return();
    let access_byte = GDT + 0x40 + 5;
    let mut cleared = 0;
    loop {
        // Another CPU takes the accessed bit back as soon as it is there.
        if guest.read(access_byte, 1) == 0xf3 {
            guest.write(access_byte, 1, 0xf2);
            cleared += 1;
        }
        guest.emulator.attention().call();
        let mut answer = guest.serve(request);
        if let (Entry::Answer(answer), Direction::Read) = (&mut answer, request.direction) {
            let descriptor = 0x00af_fa00_0000_ffff_u64;
            let value = descriptor >> (8 * (request.address - DEVICE_GPA));
            answer.reply = reprise_emulator::Reply::Value(value);
        }
        match guest.enter(answer) {
            Exit::Request(next) => request = next,
            exit => {
                assert_eq!(exit, Exit::Attention);
                break;
            }
        }
    }
    assert_eq!((guest.emulator.cpu().rip, guest.emulator.cpu().cpl()), (DATA, 3));
    assert_eq!((cleared, guest.read(access_byte, 1)), (1, 0xf2));
    // The descriptor in the device: read, then its accessed bit by one read and one write.
    assert_eq!(guest.trace, [read(0, 8), read(5, 1), write(5, 1, 0xfb)]);
}

#[test]
fn rule_9_a_locked_operation_on_a_device_is_one_read_and_one_write() {
    let codes: [(Code, u64); 4] = [
        (|a| a.lock().xadd(qword_ptr(rbx), rcx), 12),
        (|a| a.xchg(qword_ptr(rbx), rcx), 5),
        // Fails, and writes back what it has read.
        (|a| a.lock().cmpxchg(qword_ptr(rbx), rcx), 7),
        (|a| a.lock().add(qword_ptr(rbx), rcx), 12),
    ];
    for (code, written) in codes {
        let mut guest = Guest::with(code);
        guest.set(&[(gpr::RBX, DEVICE), (gpr::RCX, 5), (gpr::RAX, 1)]);
        let request = guest.request(Entry::Resume);
        let Entry::Answer(mut answer) = guest.serve(request) else {
            unreachable!()
        };
        answer.reply = reprise_emulator::Reply::Value(7);
        let request = guest.request(Entry::Answer(answer));
        let answer = guest.serve(request);
        assert_eq!(guest.enter(answer), Exit::Halt);
        assert_eq!(guest.trace, [read(0, 8), write(0, 8, written)]);
    }
}

#[test]
fn rule_9_a_locked_operation_over_the_edge_of_the_device_happens_once() {
    let mut guest = Guest::with(|a| a.lock().xadd(qword_ptr(rbx), rcx));
    guest.set(&[(gpr::RBX, DEVICE - 4), (gpr::RCX, 1)]);
    let old = guest.read(BEFORE_RAM + 0xffc, 4) | guest.in_device(0, 4) << 32;
    let request = guest.request(Entry::Resume);
    guest.write(BEFORE_RAM + 0xffc, 4, 77);
    let answer = guest.serve(request);
    let request = guest.request(answer);
    let answer = guest.serve(request);
    guest.enter(answer);
    assert_eq!(guest.get(gpr::RCX), old);
    assert_eq!(guest.read(BEFORE_RAM + 0xffc, 4), (old + 1) & 0xffff_ffff);
    assert_eq!(guest.trace, [read(0, 4), write(0, 4, (old + 1) >> 32)]);
}

#[test]
fn rule_10_accessed_and_dirty_bits_are_set_once() {
    let mut guest = Guest::with(|a| a.movsb());
    let clean = |page: u64| page | (ALL & !0x60);
    guest.map(DATA, clean(DATA));
    guest.map(DEVICE, clean(DEVICE_GPA));
    guest.set(&[(gpr::RSI, DEVICE), (gpr::RDI, DATA)]);
    let request = guest.request(Entry::Resume);
    let bits = |guest: &Guest, linear| guest.read(entry_of(linear), 8) & 0x60;
    assert_eq!((bits(&guest, DEVICE), bits(&guest, DATA)), (0x20, 0x60));
    // The guest's other CPU takes them back.
    guest.map(DATA, clean(DATA));
    guest.map(DEVICE, clean(DEVICE_GPA));
    guest.emulator.attention().call();
    let answer = guest.serve(request);
    assert_eq!(guest.enter(answer), Exit::Attention);
    assert_eq!((bits(&guest, DEVICE), bits(&guest, DATA)), (0, 0));
    assert_eq!(guest.read(DATA, 1), guest.in_device(0, 1));
}

#[test]
fn rule_11_each_iteration_commits_and_can_be_interrupted() {
    let mut guest = Guest::with(|a| a.rep().movsb());
    guest.set(&[(gpr::RSI, DEVICE), (gpr::RDI, DATA), (gpr::RCX, 3)]);
    let mut entry = Entry::Resume;
    for i in 0..3 {
        let request = guest.request(entry);
        let registers = [gpr::RCX, gpr::RSI, gpr::RDI].map(|register| guest.get(register));
        assert_eq!(registers, [3 - i, DEVICE + i, DATA + i]);
        guest.emulator.attention().call();
        let answer = if i < 2 {
            guest.serve_batch(request, 1)
        } else {
            guest.serve(request)
        };
        assert_eq!(guest.enter(answer), Exit::Attention);
        assert_eq!(guest.get(gpr::RCX), 2 - i);
        assert_eq!(guest.read(DATA + i, 1), guest.in_device(i, 1));
        entry = Entry::Resume;
        if i == 1 {
            assert!(guest.emulator.inject(Event::external(0x40)));
            assert_eq!(guest.enter(entry), Exit::Halt);
            // The handler would return to the instruction, for the iteration that is left.
            assert_eq!(guest.vector(), Some(0x40));
            let top = guest.get(gpr::RSP);
            assert_eq!(guest.read(top, 8), CODE);
            guest.restart();
        }
    }
    assert_eq!(guest.trace, [read(0, 1), read(1, 1), read(2, 1)]);
}

#[test]
fn rule_12_no_interrupt_in_flight_and_one_right_after() {
    let mut guest = Guest::with(|a| a.add(qword_ptr(rbx), rax));
    guest.set(&[(gpr::RBX, DEVICE)]);
    let event = Event::external(0x41);
    let request = guest.request(Entry::Resume);
    assert!(
        guest.emulator.is_in_flight() && !guest.emulator.inject(event),
        "it reads"
    );
    guest.emulator.attention().call();
    let answer = guest.serve(request);
    let request = guest.request(answer);
    assert!(
        guest.emulator.is_in_flight() && !guest.emulator.inject(event),
        "it writes"
    );
    let answer = guest.serve(request);
    assert_eq!(guest.enter(answer), Exit::Attention);
    assert!(!guest.emulator.is_in_flight() && guest.emulator.inject(event));
    assert_eq!(guest.enter(Entry::Resume), Exit::Halt);
    assert_eq!(guest.vector(), Some(0x41));
    assert_eq!(
        guest.read(guest.get(gpr::RSP), 8),
        CODE + 3,
        "the next instruction has not begun"
    );
}

#[test]
fn rule_12_the_cpu_is_not_entered_while_an_answer_is_owed() {
    let mut guest = Guest::with(|a| a.mov(eax, dword_ptr(rbx)));
    guest.set(&[(gpr::RBX, DEVICE)]);
    let request = guest.request(Entry::Resume);
    let before = guest.emulator.counters();
    let refused = guest.emulator.run(Entry::Resume);
    assert!(matches!(refused, Err(Error::AnswerOwed(id)) if id == request.id));
    assert_eq!(guest.emulator.counters(), before);
    let answer = guest.serve(request);
    assert_eq!(guest.enter(answer), Exit::Halt);
    assert_eq!(guest.get(gpr::RAX), guest.in_device(0, 4));
}

#[test]
fn rule_24_nothing_recorded_survives_into_the_next_instruction() {
    let mut guest = Guest::with(|a| {
        a.mov(eax, dword_ptr(rbx))?;
        a.mov(ecx, dword_ptr(rbx))
    });
    guest.set(&[(gpr::RBX, COUNTER)]);
    let request = guest.request(Entry::Resume);
    guest.emulator.attention().call();
    let answer = guest.serve(request);
    assert_eq!(guest.enter(answer), Exit::Attention);
    assert!(guest.emulator.record().is_empty());
    guest.run();
    assert_eq!((guest.get(gpr::RAX), guest.get(gpr::RCX)), (1, 2));
}

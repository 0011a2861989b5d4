//! What a pass may see.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use reprise_emulator::cpu::gpr;
use reprise_emulator::replay::{Entry as Recorded, Kind, Question, ReplayCache};
use reprise_emulator::{Entry, Exit, ReplayError, Space};

use crate::guest::*;

#[test]
fn rule_1_registers_do_not_change_until_the_instruction_retires() {
    type Code = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    let codes: [Code; 10] = [
        |a| a.add(eax, dword_ptr(rbx)),
        |a| a.pop(rax),
        |a| a.xchg(qword_ptr(rbx), rcx),
        |a| a.leave(),
        |a| a.lodsq(),
        |a| a.cmpxchg16b(xmmword_ptr(rbx)),
        |a| a.retf(),
        |a| a.iretq(),
        |a| a.movdqu(xmm1, xmmword_ptr(rbx + 8)),
        |a| a.rep().cmpsb(),
    ];
    for code in codes {
        let mut guest = Guest::with(code);
        let registers = [gpr::RBX, gpr::RSI, gpr::RDI, gpr::RSP, gpr::RBP];
        guest.set(&registers.map(|register| (register, DEVICE + 0x100)));
        guest.set(&[(gpr::RCX, 2)]);
        let before = guest.emulator.cpu().clone();
        let mut request = guest.request(Entry::Resume);
        let mut passes = 0;
        while !guest.emulator.record().is_empty() {
            passes += 1;
            assert!(*guest.emulator.cpu() == before, "after {passes} passes");
            guest.emulator.attention().call();
            let answer = guest.serve(request);
            match guest.enter(answer) {
                Exit::Request(next) => request = next,
                _ => break,
            }
        }
        assert!(passes > 0);
    }
}

/// Kinds and addresses of a record.
fn asked(record: &[Recorded]) -> Vec<(Kind, u64)> {
    record
        .iter()
        .map(|entry| (entry.question.kind, entry.question.address))
        .collect()
}

#[test]
fn rule_2_whatever_is_read_is_recorded_once_and_in_order() {
    let mut guest = Guest::with(|a| a.cmpsb());
    guest.set(&[(gpr::RSI, DATA), (gpr::RDI, DEVICE)]);
    guest.request(Entry::Resume);
    let walk =
        |linear: u64| [PML4, PML4 + 0x1000, PML4 + 0x2000, entry_of(linear)].map(|address| (Kind::PageTable, address));
    let mut expected = walk(CODE).to_vec();
    expected.extend([0].map(|offset| (Kind::Fetch, CODE + offset)));
    expected.extend(walk(DEVICE));
    expected.extend(walk(DATA));
    expected.push((Kind::Data, DATA));
    assert_eq!(asked(guest.emulator.record()), expected);
    for entry in guest.emulator.record() {
        let live = guest.read(entry.question.address, entry.question.width);
        assert_eq!(entry.value, live, "{entry:x?}");
    }
}

#[test]
fn rule_2_what_is_recorded_is_never_altered() {
    let mut guest = Guest::with(|a| a.fxrstor(ptr(rbx)));
    guest.set(&[(gpr::RBX, DEVICE)]);
    let mut last: Vec<Recorded> = Vec::new();
    let mut requests = 0;
    guest.run_late(|guest, _| {
        let now = guest.emulator.record();
        assert_eq!(now[..last.len()], last);
        last = now.to_vec();
        requests += 1;
        // Nobody reads this any more.
        guest.put(CODE, &[0; 3]);
        guest.map(DEVICE, 0);
        guest.emulator.attention().call();
    });
    assert!(requests > 20, "{requests}");
}

#[test]
fn rule_3_two_reads_of_one_device_register_get_two_answers() {
    let mut guest = Guest::with(|a| a.repe().cmpsb());
    guest.set(&[(gpr::RSI, COUNTER), (gpr::RDI, COUNTER), (gpr::RCX, 5)]);
    assert_eq!(guest.run(), Exit::Halt);
    assert_eq!(guest.trace, [read(0xf000, 1), read(0xf000, 1)]);
    let flags = guest.emulator.cpu().flags;
    // 1 is compared with 2, which ends the repetition.
    assert!(flags.carry() && !flags.zero());
    assert_eq!(guest.get(gpr::RCX), 4);
}

#[test]
fn rule_3_a_question_out_of_place_is_a_divergence_that_names_both() {
    let first = Question {
        kind: Kind::Data,
        space: Space::Memory,
        address: 8,
        width: 4,
    };
    let others = [
        Question {
            kind: Kind::Fetch,
            ..first
        },
        Question {
            space: Space::Port,
            ..first
        },
        Question { address: 9, ..first },
        Question { width: 2, ..first },
    ];
    for asked in others {
        let mut cache = ReplayCache::default();
        cache.record(first, 1, false).unwrap();
        cache.rewind();
        let mut touched = false;
        let answer = cache.read(asked, || {
            touched = true;
            2
        });
        let divergence = ReplayError::Divergence {
            index: 0,
            recorded: first,
            asked,
        };
        assert_eq!((answer, touched), (Err(divergence), false));
        assert_eq!(cache.read(first, || 2), Ok(1), "the record is as it was");
    }
}

#[test]
fn rule_3_clock_and_chance_are_recorded_too() {
    for kind in [Kind::Clock, Kind::Chance] {
        let question = Question {
            kind,
            space: Space::Msr,
            address: 0x10,
            width: 8,
        };
        let mut cache = ReplayCache::default();
        assert_eq!(cache.read(question, || 5), Ok(5));
        cache.rewind();
        assert_eq!(cache.read(question, || 6), Ok(5));
    }
}

#[test]
fn rule_4_a_hit_needs_nothing_live() {
    let mut guest = Guest::with(|a| a.movdqu(xmm1, xmmword_ptr(rbx)));
    guest.set(&[(gpr::RBX, DEVICE + 0x20)]);
    let first = guest.request(Entry::Resume);
    // Neither instruction nor operand can be reached any more.
    guest.put(CODE, &[0; 16]);
    guest.put(PML4, &[0; 8]);
    guest.emulator.attention().call();
    let answer = guest.serve(first);
    let second = guest.request(answer);
    let answer = guest.serve(second);
    assert_eq!(guest.enter(answer), Exit::Attention);
    assert_eq!(guest.trace, [read(0x20, 8), read(0x28, 8)]);
    assert_eq!(guest.emulator.cpu().fpu.xmm(1), guest.device()[0x20..0x30]);
}

#[test]
fn rule_4_a_page_that_became_a_device_range_still_replays() {
    let mut guest = Guest::with(|a| a.cmpsd());
    guest.set(&[(gpr::RSI, DATA), (gpr::RDI, DEVICE)]);
    guest.write(DATA, 4, guest.in_device(0, 4));
    let request = guest.request(Entry::Resume);
    guest.map(DATA, (DEVICE_GPA + 0x3000) | ALL);
    guest.write(DATA, 4, 0);
    guest.emulator.attention().call();
    let answer = guest.serve(request);
    assert_eq!(guest.enter(answer), Exit::Attention);
    assert!(guest.emulator.cpu().flags.zero());
    assert_eq!(guest.trace, [read(0, 4)]);
}

#[test]
fn rule_5_a_wide_load_asks_for_its_parts_and_no_more() {
    for (at, expected) in [
        (DEVICE + 8, vec![read(8, 8), read(0x10, 8)]),
        // Over a page boundary within the device.
        (
            DEVICE + 0xffd,
            vec![
                read(0xffd, 2),
                read(0xfff, 1),
                read(0x1000, 8),
                read(0x1008, 4),
                read(0x100c, 1),
            ],
        ),
        // From RAM into the device, and out of it again.
        (DEVICE - 4, vec![read(0, 8), read(8, 4)]),
        (BEHIND - 4, vec![read(0xfffc, 4)]),
    ] {
        let mut guest = Guest::with(|a| a.movdqu(xmm1, xmmword_ptr(rbx)));
        guest.set(&[(gpr::RBX, at)]);
        let passes = guest.emulator.counters().passes;
        guest.run();
        assert_eq!(guest.trace, expected, "{at:#x}");
        // Partial progress is kept: a pass for each part, and the last one.
        let passes = guest.emulator.counters().passes - passes;
        assert_eq!(passes as usize, expected.len() + 1);
    }
}

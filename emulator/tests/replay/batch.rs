//! Repeated string instructions hand many elements over in one request.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use reprise_emulator::cpu::{flags, gpr};
use reprise_emulator::replay::Kind;
use reprise_emulator::{Answer, Direction, Entry, Exit, Reply, Request, Space};

use crate::guest::*;

type Code = fn(&mut CodeAssembler) -> Result<(), IcedError>;

const PORT: u64 = 0x60;

/// RSI, RDI, RCX, and the port in DX.
fn pointing(guest: &mut Guest, from: u64, to: u64, count: u64) {
    guest.set(&[(gpr::RSI, from), (gpr::RDI, to), (gpr::RCX, count), (gpr::RDX, PORT)]);
}

#[test]
fn a_repetition_against_a_device_is_one_request_for_each_page() {
    let start = DATA + 0xf00;
    let cases: [(Code, u64, u64, Space, u64); 4] = [
        (|a| a.rep().insw(), 0, start, Space::Port, PORT),
        (|a| a.rep().outsw(), start, 0, Space::Port, PORT),
        (|a| a.rep().movsw(), start, DEVICE, Space::Memory, DEVICE_GPA),
        (|a| a.rep().movsw(), DEVICE, start, Space::Memory, DEVICE_GPA),
    ];
    for (case, (code, from, to, space, at)) in cases.into_iter().enumerate() {
        let mut guest = Guest::with(code);
        pointing(&mut guest, from, to, 0x100);
        let mut requests = Vec::new();
        guest.run_late(|_, request| {
            requests.push((request.space, request.address, request.size, request.direction));
        });
        let batch = |guest| match case {
            0 | 3 => Direction::ReadTo { guest, count: 0x80 },
            _ => Direction::WriteFrom { guest, count: 0x80 },
        };
        let behind = if space == Space::Port { at } else { at + 0x100 };
        assert_eq!(
            requests,
            [(space, at, 2, batch(start)), (space, behind, 2, batch(start + 0x100))]
        );
        assert_eq!(guest.trace.len(), 0x100);
        assert_eq!(guest.get(gpr::RCX), 0);
    }
}

#[test]
fn rule_11_as_many_iterations_commit_as_were_moved() {
    let mut guest = Guest::with(|a| a.rep().movsd());
    pointing(&mut guest, DEVICE, DATA, 10);
    let request = guest.request(Entry::Resume);
    guest.emulator.attention().call();
    let answer = guest.serve_batch(request, 4);
    assert_eq!(guest.enter(answer), Exit::Attention);
    let registers = [gpr::RSI, gpr::RDI, gpr::RCX].map(|register| guest.get(register));
    assert_eq!(registers, [DEVICE + 16, DATA + 16, 6]);
    assert_eq!(guest.emulator.cpu().rip, CODE);
    assert_eq!(guest.run(), Exit::Halt);
    assert_eq!(guest.trace, (0..10).map(|i| read(4 * i, 4)).collect::<Vec<_>>());
}

#[test]
fn rule_13_the_bytes_of_a_batch_are_not_in_the_record() {
    let mut guest = Guest::with(|a| a.rep().outsb());
    pointing(&mut guest, DATA, 0, 8);
    guest.request(Entry::Resume);
    let reads_data = |kind| matches!(kind, Kind::Data | Kind::Device | Kind::Batch);
    assert!(
        !guest
            .emulator
            .record()
            .iter()
            .any(|entry| reads_data(entry.question.kind))
    );
}

#[test]
fn rule_4_a_batch_is_answered_although_its_page_is_mapped_elsewhere() {
    let mut guest = Guest::with(|a| a.rep().insb());
    pointing(&mut guest, 0, DATA, 8);
    let request = guest.request(Entry::Resume);
    guest.map(DATA, DEVICE_GPA | ALL);
    guest.put(CODE, &[0xf4; 2]);
    guest.emulator.attention().call();
    let answer = guest.serve(request);
    assert_eq!(guest.enter(answer), Exit::Attention);
    assert_eq!((guest.get(gpr::RCX), guest.get(gpr::RDI)), (0, DATA + 8));
    assert_eq!(guest.read(DATA, 8), 0x0807_0605_0403_0201);
}

#[test]
fn rule_6_a_batch_that_cannot_be_stored_takes_nothing() {
    let mut guest = Guest::with(|a| a.rep().insb());
    pointing(&mut guest, 0, DATA + 0xffc, 8);
    guest.map(DATA + 0x1000, 0);
    guest.run();
    assert_eq!(guest.vector(), Some(14));
    // Four fit before the page that is not there.
    assert_eq!((guest.trace.len(), guest.get(gpr::RCX)), (4, 4));
}

#[test]
fn no_more_can_be_moved_than_was_asked() {
    let mut guest = Guest::with(|a| a.rep().movsb());
    pointing(&mut guest, DEVICE, DATA, 8);
    let request = guest.request(Entry::Resume);
    let reply = Reply::Value(u64::MAX);
    guest.emulator.attention().call();
    guest.enter(Entry::Answer(Answer { id: request.id, reply }));
    assert_eq!(guest.get(gpr::RCX), 0);
}

#[test]
fn who_moves_nothing_is_asked_for_one_element_at_a_time() {
    let mut guest = Guest::with(|a| a.rep().insb());
    pointing(&mut guest, 0, DATA, 2);
    let mut entry = Entry::Resume;
    for i in 0..2 {
        let Request { id, direction, .. } = guest.request(entry);
        if i == 0 {
            assert_eq!(direction, Direction::ReadTo { guest: DATA, count: 2 });
            let reply = Reply::Value(0);
            let single = guest.request(Entry::Answer(Answer { id, reply }));
            assert_eq!((single.direction, single.size), (Direction::Read, 1));
            entry = guest.serve(single);
        } else {
            assert_eq!(direction, Direction::Read, "the last one by itself anyway");
            let reply = Reply::Value(9);
            entry = Entry::Answer(Answer { id, reply });
        }
    }
    assert_eq!(guest.enter(entry), Exit::Halt);
    assert_eq!(guest.read(DATA, 2), 0x0901);
}

#[test]
fn where_something_is_to_be_seen_between_two_elements_they_go_one_by_one() {
    let directions = |prepare: fn(&mut Guest)| {
        let mut guest = Guest::with(|a| a.rep().movsb());
        pointing(&mut guest, DEVICE + 8, DATA + 8, 3);
        prepare(&mut guest);
        guest.request(Entry::Resume).direction
    };
    let single_step = |guest: &mut Guest| raise(guest, flags::TF);
    let downwards = |guest: &mut Guest| raise(guest, flags::DF);
    assert_eq!(directions(single_step), Direction::Read);
    assert_eq!(directions(downwards), Direction::Read);
    assert!(matches!(directions(|_| ()), Direction::ReadTo { count: 3, .. }));
}

/// Sets bits of RFLAGS.
fn raise(guest: &mut Guest, bits: u64) {
    guest.emulator.change(|cpu| {
        let flags = cpu.flags.bits() | bits;
        cpu.flags.set_bits(flags);
    });
}

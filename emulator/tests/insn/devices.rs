//! What devices see of an instruction: everything once, in order, and nothing of one that faults.

use reprise_emulator::Direction::{self, Read, Write};

use crate::world::{Area, End, Way, World, long_mode};

/// Runs `code` with rcx, and M and D as the areas say, after `prepare`.
fn run(code: &[u8], rcx: u64, way: Way, prepare: impl FnOnce(&mut World)) -> End {
    let mut cpu = long_mode();
    cpu.gpr.set(1, rcx);
    cpu.gpr.set(2, 0x42);
    let mut world = World::new(&cpu);
    prepare(&mut world);
    world.run(code, &cpu, way, false)
}

/// Offset in the page, size and direction of the requests to memory.
fn trace(end: &End) -> Vec<(u64, u8, Direction)> {
    end.requests
        .iter()
        .map(|(address, size, direction)| (address & 0xfff, *size, *direction))
        .collect()
}

#[test]
fn a_device_is_asked_for_what_the_instruction_asks_for() {
    let end = run(code!("mov eax, [rbx + 4]"), 0, Way::AllLate, |_| ());
    assert_eq!(trace(&end), [(4, 4, Read)]);
}

#[test]
fn a_read_and_write_is_one_read_and_one_write() {
    for code in [code!("add [rbx], rcx"), code!("lock xadd [rbx], rcx")] {
        let end = run(code, 7, Way::AllLate, |world| world.fill(Area::M, 0, &[5]));
        assert_eq!(trace(&end), [(0, 8, Read), (0, 8, Write(12))]);
    }
}

#[test]
fn a_comparison_that_fails_writes_back_what_it_read() {
    let end = run(code!("lock cmpxchg [rbx], ecx"), 7, Way::AllLate, |world| {
        world.fill(Area::M, 0, &[5]);
    });
    assert_eq!(trace(&end), [(0, 4, Read), (0, 4, Write(5))]);
}

#[test]
fn a_bit_test_does_not_write() {
    let end = run(code!("bt dword ptr [rbx], 0"), 0, Way::AllLate, |_| ());
    assert_eq!(trace(&end), [(0, 4, Read)]);
}

#[test]
fn each_element_of_a_repeated_move_is_read_once_and_written_once() {
    let end = run(code!("rep movsb"), 2, Way::AllLate, |world| {
        world.fill(Area::M, 0, &[8, 9]);
    });
    let expected = [(0, 1, Read), (0, 1, Write(8)), (1, 1, Read), (1, 1, Write(9))];
    assert_eq!(trace(&end), expected);
}

#[test]
fn enter_reads_each_frame_pointer_once_before_it_writes() {
    let mut cpu = long_mode();
    cpu.gpr.set(5, crate::world::STACK + 0x20);
    let end = World::new(&cpu).run(code!("enter 0, 3"), &cpu, Way::AllLate, true);
    let reads = end.requests.iter().take_while(|request| request.2 == Read).count();
    assert_eq!((reads, end.requests.len()), (2, 6));
}

#[test]
fn a_move_that_cannot_be_stored_asks_nothing() {
    for code in [code!("movsb"), code!("rep movsd"), code!("insb"), code!("rep insd")] {
        let end = run(code, 3, Way::Late(Area::M), |world| world.protect(Area::D));
        assert_eq!((end.fault, end.requests), (Some((14, Some(3))), vec![]), "{code:02x?}");
    }
}

#[test]
fn a_push_of_device_memory_that_cannot_be_stored_asks_nothing() {
    for code in [code!("push qword ptr [rbx]"), code!("call [rbx]")] {
        let end = run(code, 0, Way::Late(Area::M), |world| world.protect(Area::Stack));
        assert_eq!((end.fault, end.requests), (Some((14, Some(3))), vec![]), "{code:02x?}");
    }
}

#[test]
fn a_comparison_whose_second_operand_is_not_there_asks_nothing() {
    let mut cpu = long_mode();
    cpu.gpr.set(7, 0x20_0000_0000);
    let end = World::new(&cpu).run(code!("cmpsb"), &cpu, Way::AllLate, true);
    assert_eq!((end.fault, end.requests), (Some((14, Some(0))), vec![]));
}

#[test]
fn what_may_write_needs_a_page_that_can_be_written() {
    for code in [
        code!("add [rbx], ecx"),
        code!("shl dword ptr [rbx], 32"),
        code!("lock cmpxchg [rbx], ecx"),
        code!("cmpxchg8b [rbx]"),
        code!("bts dword ptr [rbx], 0"),
        code!("xchg [rbx], ecx"),
        code!("sete [rbx]"),
    ] {
        for way in [Way::Fast, Way::Careful] {
            let end = run(code, 1, way, |world| world.protect(Area::M));
            assert_eq!(end.fault, Some((14, Some(3))), "{code:02x?}");
        }
    }
}

#[test]
fn what_only_reads_needs_no_page_that_can_be_written() {
    for code in [
        code!("cmp [rbx], ecx"),
        code!("test [rbx], ecx"),
        code!("bt [rbx], ecx"),
        code!("clflush [rbx]"),
    ] {
        let end = run(code, 1, Way::Fast, |world| world.protect(Area::M));
        assert_eq!(end.fault, None, "{code:02x?}");
    }
}

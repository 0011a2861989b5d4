//! The room that an instruction's record has.

use iced_x86::{Code, OpCodeOperandKind};
use reprise_emulator::ReplayError;
use reprise_emulator::Space;
use reprise_emulator::replay::{CAPACITY, Kind, Question, ReplayCache};

use crate::{cache, dice};

/// The largest area of unnamed size: XRSTOR's, header and all components.
const UNSIZED: usize = 2696;

/// Entries of one translation: five levels, each read and updated.
const WALK: usize = 5 * 2;

/// Entries of `bytes` that lie over a page boundary: parts of 8, 4, 2 and 1 bytes on either side, and two translations.
fn operand(bytes: usize) -> usize {
    2 * WALK + bytes / 8 + 6
}

/// Most that the instruction can read: its bytes, its operands, and what far transfers and exceptions read of tables.
fn worst_case(code: Code) -> usize {
    let size = match code.op_code().memory_size().size() {
        0 => UNSIZED,
        size => size,
    };
    let kinds = code.op_code().op_kinds();
    let gathers = kinds.iter().any(|kind| {
        matches!(
            kind,
            OpCodeOperandKind::mem_vsib32x
                | OpCodeOperandKind::mem_vsib64x
                | OpCodeOperandKind::mem_vsib32y
                | OpCodeOperandKind::mem_vsib64y
                | OpCodeOperandKind::mem_vsib32z
                | OpCodeOperandKind::mem_vsib64z
        )
    });
    let memory = kinds
        .iter()
        .filter(|kind| {
            let name = format!("{kind:?}");
            name.contains("mem") || name.contains("rSI") || name.contains("rDI") || name.contains("rBX")
        })
        .count();
    let operands = if gathers {
        16 * (2 * WALK + 2)
    } else {
        memory * operand(size)
    };
    // ENTER reads up to 31 frame pointers, POPA and IRET fewer; all within two pages, one of them over the boundary.
    let stack = 2 * WALK + 31 + 4;
    // Gate, code and stack descriptors of 16 bytes in pages of their own, each read and marked; task state; twice,
    // since a contributory fault may come on top, and a double fault.
    let delivery = 3 * (5 * (2 * WALK + 4 + 4) + stack);
    2 * WALK + 8 + operands + stack + delivery
}

#[test]
fn rule_16_no_instruction_form_exceeds_the_room() {
    let mut most = 0;
    for code in Code::values() {
        let needed = worst_case(code);
        assert!(needed <= CAPACITY, "{code:?} needs {needed} entries of {CAPACITY}");
        most = most.max(needed);
    }
    assert!(
        most * 4 > CAPACITY,
        "the room is derived, not guessed: {most} of {CAPACITY}"
    );
}

#[test]
fn rule_17_an_overflow_is_an_error_before_the_next_side_effect() {
    let question = Question {
        kind: Kind::Data,
        space: Space::Memory,
        address: 8,
        width: 4,
    };
    let mut cache = ReplayCache::default();
    for _ in 0..CAPACITY {
        cache.record(question, 1, false).unwrap();
    }
    let mut touched = false;
    let answer = cache.read(question, || {
        touched = true;
        2
    });
    let overflow = ReplayError::Overflow { capacity: CAPACITY };
    assert_eq!((answer, touched), (Err(overflow), false));
    // The record is whole, and of use for another pass.
    cache.rewind();
    assert_eq!(cache.read(question, || 2), Ok(1));
    cache.clear();
    assert_eq!(cache.read(question, || 2), Ok(2));
}

#[test]
fn rule_3_the_cache_is_a_list_of_questions_and_answers_whatever_is_done_to_it() {
    let replayed: u64 = (1..2000).map(|seed| cache::operate(&dice::roll(seed, 300))).sum();
    assert!(replayed > 10_000, "{replayed}");
}

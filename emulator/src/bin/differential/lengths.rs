//! The decoder's edges: how many bytes an instruction has, and whether it is one.
//!
//! The bytes end where a page ends whose successor is not mapped. As long as too few of them lie before it, the processor
//! faults at the fetch beyond; the smallest number with which it does not is the length. So the same bytes are run once for
//! each number from 1 to 15, and each time the outcomes must agree.

use iced_x86::{Code, Instruction};
use reprise_emulator::Model;

use crate::case::{Case, code_size, decode, state};
use crate::dice::Dice;
use crate::emulated::TF;
use crate::encode::encode;
use crate::form::{self, Forms, host_has};
use crate::quirk::{LeftOut, mask};
use crate::state::{CODE, CODE_PAGES, Input, PAGE, PATCHES, Patch};

/// The longest instruction.
pub const LONGEST: usize = 15;

/// What prefixes, escapes and the bytes behind them may be.
const PREFIXES: [u8; 11] = [0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x67, 0xf0, 0xf2, 0xf3];

/// Random bytes: anything, prefixes first, escapes first, or an instruction with one damaged byte or bit.
fn bytes(dice: &mut Dice, forms: &Forms, bits: u32) -> [u8; LONGEST] {
    let mut bytes = [0; LONGEST];
    for byte in &mut bytes {
        *byte = dice.next() as u8;
    }
    let mut at = 0;
    let mut put = |byte| {
        if let Some(slot) = bytes.get_mut(at) {
            *slot = byte;
        }
        at += 1;
    };
    match dice.below(8) {
        0 => {}
        1 => (0..dice.below(16)).for_each(|_| put(dice.pick(&PREFIXES))),
        2 | 3 => {
            (0..dice.below(3)).for_each(|_| put(dice.pick(&PREFIXES)));
            put(0x0f);
        }
        4 => {
            (0..dice.below(3)).for_each(|_| put(dice.pick(&PREFIXES)));
            put(0x0f);
            put(dice.pick(&[0x38, 0x3a]));
        }
        5 => {
            (0..dice.below(2)).for_each(|_| put(dice.pick(&PREFIXES)));
            put(dice.pick(&[0xc4, 0xc5, 0x62, 0x8f]));
            put(dice.next() as u8 & 0xe3 | dice.pick(&[1, 2, 3]));
        }
        _ => {
            let form = dice.pick(forms.of(bits));
            bytes.copy_from_slice(&encode(dice, form.code, bits).bytes[..LONGEST]);
            match dice.below(4) {
                0 => bytes[dice.below(6) as usize] = dice.next() as u8,
                // Another W, L, vvvv, map or mandatory prefix.
                1 => bytes[dice.below(4) as usize] ^= 1 << dice.below(8),
                _ => {}
            }
            if dice.percent(20) {
                bytes.rotate_right(1);
                bytes[0] = dice.pick(&PREFIXES);
            }
        }
    }
    bytes
}

/// The emulator and the processor do not both know this instruction.
fn is_known_to_one(model: &Model, instruction: &Instruction) -> bool {
    let code = instruction.code();
    if form::excluded(instruction.mnemonic()).is_some() {
        return true;
    }
    if instruction.is_invalid() || model.supports(code) || is_undefined(code) {
        return false;
    }
    code.cpuid_features()
        .iter()
        .all(|feature| host_has(*feature) || form::is_unknown(*feature))
}

/// What is decoded, and defined to be undefined.
fn is_undefined(code: Code) -> bool {
    use iced_x86::Mnemonic::*;
    matches!(code.mnemonic(), Ud0 | Ud1 | Ud2)
}

/// The cases of one string of bytes; none if it must not be run.
pub fn make(dice: &mut Dice, forms: &Forms, model: &Model, left_out: &mut LeftOut) -> Vec<Case> {
    let bits = code_size(dice);
    let bytes = bytes(dice, forms, bits);
    let end = CODE + (CODE_PAGES * PAGE) as u64;
    let Some((instruction, ..)) = decode(&bytes, end, bits) else {
        return Vec::new();
    };
    if is_known_to_one(model, &instruction) || left_out.takes(&bytes) {
        return Vec::new();
    }
    let mut start = state(dice, end, bits);
    start.flags |= TF;
    let none = Patch {
        page: 0,
        length: 0,
        at: 0,
        bytes: [0; 72],
    };
    (1..=LONGEST)
        .map(|length| {
            let mut code = [0; 16];
            code[..length].copy_from_slice(&bytes[..length]);
            let mut state = start;
            state.rip = start.rip - length as u64;
            Case {
                input: Input {
                    state,
                    code,
                    length: length as u64,
                    patches: [none; PATCHES],
                },
                bits,
                family: [64, 32, 16].iter().position(|size| *size == bits).unwrap_or(0),
                mask: mask(&instruction, None),
                is_single: false,
            }
        })
        .collect()
}

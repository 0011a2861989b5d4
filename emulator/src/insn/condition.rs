//! The sixteen conditions of Jcc, SETcc and CMOVcc (SDM Vol. 1, EFLAGS Condition Codes), by their number in the opcode.

use crate::cpu::Flags;

/// Condition number `C` holds.
#[inline(always)]
pub(super) fn holds<const C: u8>(flags: &Flags) -> bool {
    let positive = match C >> 1 {
        0 => flags.overflow(),
        1 => flags.carry(),
        2 => flags.zero(),
        3 => flags.carry() | flags.zero(),
        4 => flags.sign(),
        5 => flags.parity(),
        6 => flags.sign() != flags.overflow(),
        _ => flags.zero() | (flags.sign() != flags.overflow()),
    };
    positive != (C & 1 != 0)
}

//! What is not compared, though both sides execute the instruction: what processors leave undefined, and what this one
//! does beside the architecture.

use iced_x86::{Code, Instruction, Mnemonic};

use crate::case::undefined_flags;
use crate::form::is_modelled;
use crate::state::Output;

/// What is left out of a comparison.
#[derive(Debug, Clone, Copy, Default)]
pub struct Mask {
    /// Flags that are not compared.
    pub flags: u64,
    /// After a fault, memory is not compared.
    pub memory_after_fault: bool,
    /// After a fault, general registers are not compared.
    pub registers_after_fault: bool,
    /// After a fault, x87 state is not compared.
    pub x87_after_fault: bool,
    /// MXCSR_MASK is stored here, which says what each processor can do.
    pub mxcsr_mask: Option<u64>,
}

/// What is not run at all, and why.
pub const LEFT_OUT: [(&str, &str); 2] = [
    (
        "LOCK on what 0F 00 begins",
        "is found to be undefined when this processor has looked at the operand already",
    ),
    (
        "VPERMQ and VPERMPD with VEX.W = 0",
        "are executed by this processor, though only VEX.W1 is there (SDM Vol. 2, VPERMQ, VPERMPD: #UD)",
    ),
];

/// How often what is in [`LEFT_OUT`] came up.
#[derive(Debug, Clone, Copy, Default)]
pub struct LeftOut(pub [u64; LEFT_OUT.len()]);

impl LeftOut {
    /// Whether the instruction at the start of `code` is left out; it is counted then.
    pub fn takes(&mut self, code: &[u8]) -> bool {
        let which = [is_locked_0f00(code), is_narrow_permutation(code)]
            .iter()
            .position(|is| *is);
        if let Some(which) = which {
            self.0[which] += 1;
        }
        which.is_some()
    }

    /// Adds what somebody else has counted.
    pub fn add(&mut self, other: LeftOut) {
        for (sum, count) in self.0.iter_mut().zip(other.0) {
            *sum += count;
        }
    }
}

fn is_locked_0f00(code: &[u8]) -> bool {
    code.contains(&0xf0) && code.windows(2).any(|pair| pair == [0x0f, 0x00])
}

/// VEX.256.66.0F3A.W0 00 and 01. Outside 64-bit mode it is VEX as well: R and X are set, or it is LES.
fn is_narrow_permutation(code: &[u8]) -> bool {
    code.windows(4)
        .any(|vex| matches!(*vex, [0xc4, map, last, 0x00 | 0x01] if map & 0x1f == 3 && last & 0x87 == 5))
}

/// What is compared in part only, and why.
pub const REASONS: [(&str, &str); 7] = [
    (
        "far calls, ENTER, PUSHA and the instructions that store x87 and vector state",
        "may fault when this processor has stored a part already; the emulator stores all or nothing",
    ),
    ("POPA", "may fault when this processor has loaded a part already"),
    (
        "MASKMOVQ",
        "faults on this processor after its transition from x87 to MMX state",
    ),
    (
        "FXSAVE and XSAVE",
        "store in MXCSR_MASK that this processor has a bit 17, which the emulator has not",
    ),
    (
        "SHLD and SHRD of 16 bits",
        "leave in OF what follows no rule for counts above 16",
    ),
    (
        "x87 instructions",
        "leave pointers that this processor tells only while an unmasked exception is pending",
    ),
    (
        "operands of which a part lies at the end of the address space, and the rest at its start",
        "are #GP on this processor where the sum of base and offset has a carry, too; a page fault otherwise, and in the emulator",
    ),
];

/// A difference that comes of an operand around the end of the address space.
pub fn wraps(expected: &Output, found: &Output) -> bool {
    const GP: u64 = 13;
    const PF: u64 = 14;
    const LONGEST_OPERAND: u64 = 64;
    (u64::from(expected.vector), u64::from(found.vector)) == (GP, PF)
        && found.cr2.checked_add(LONGEST_OPERAND).is_none()
}

/// Where MXCSR_MASK is in what FXSAVE stores.
pub const MXCSR_MASK_OFFSET: u64 = 28;

/// The instruction may store MXCSR_MASK.
pub fn stores_mxcsr_mask(instruction: &Instruction) -> bool {
    use Mnemonic::*;
    matches!(
        instruction.mnemonic(),
        Fxsave | Fxsave64 | Xsave | Xsave64 | Xsaveopt | Xsaveopt64 | Xsavec | Xsavec64
    )
}

/// What is not compared after `instruction`, which may store MXCSR_MASK at `mxcsr_mask`.
pub fn mask(instruction: &Instruction, mxcsr_mask: Option<u64>) -> Mask {
    use Mnemonic::*;
    let mnemonic = instruction.mnemonic();
    let saves = stores_mxcsr_mask(instruction);
    let mut flags = if is_modelled() { 0 } else { undefined_flags(instruction) };
    let is_narrow_double_shift = matches!(
        instruction.code(),
        Code::Shld_rm16_r16_CL | Code::Shld_rm16_r16_imm8 | Code::Shrd_rm16_r16_CL | Code::Shrd_rm16_r16_imm8
    );
    if is_narrow_double_shift {
        flags |= 1 << 11;
    }
    Mask {
        flags,
        memory_after_fault: saves
            || matches!(mnemonic, Enter | Pusha | Pushad | Fnsave | Fnstenv)
            || mnemonic == Call && instruction.is_call_far() | instruction.is_call_far_indirect(),
        registers_after_fault: matches!(mnemonic, Popa | Popad),
        x87_after_fault: mnemonic == Maskmovq,
        mxcsr_mask: if saves && has_misaligned_sse() {
            mxcsr_mask
        } else {
            None
        },
    }
}

/// MXCSR bit 17, MM, is there.
fn has_misaligned_sse() -> bool {
    core::arch::x86_64::__cpuid(0x8000_0001).ecx >> 7 & 1 != 0
}

//! What is not compared, though both sides execute the instruction: what processors leave undefined, and what this one
//! does beside the architecture.

use iced_x86::{Code, Instruction, Mnemonic};

use crate::case::undefined_flags;
use crate::form::is_modelled;

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

/// Reasons for what is left out.
pub const REASONS: [(&str, &str); 7] = [
    (
        "LOCK on what 0F 00 begins",
        "is found to be undefined when this processor has looked at the operand already; it is left out",
    ),
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
];

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

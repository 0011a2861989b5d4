//! What instructions with a VEX or EVEX prefix have in `imm` besides their 8-bit immediate.
//!
//! | bits  | meaning                                                                                                  |
//! |-------|----------------------------------------------------------------------------------------------------------|
//! | 7:0   | immediate                                                                                                |
//! | 15:8  | third register operand, `r3`, in the order in which the instruction lists them                           |
//! | 23:16 | fourth operand (bits 7:4 of an immediate), or index register of a vector of addresses: `r4`              |
//! | 26:24 | opmask register, 0 for none                                                                              |
//! | 27    | masked elements become zero                                                                              |
//! | 28    | EVEX.b: the memory operand is one element for all; on registers, no exceptions are reported              |
//! | 30:29 | rounding control as in MXCSR, if bit 31 is set                                                           |
//! | 47:32 | number of the form among those of its family                                                             |
//!
//! With a memory operand the registers move up: of `shlx eax, [rbx], ecx` the registers are EAX and ECX, of
//! `vpaddd ymm1, ymm2, [rbx]` YMM1 and YMM2.

use super::Op;

const OPMASK: u32 = 24;
const ZEROING: u32 = 27;
const BROADCAST: u32 = 28;
const ROUNDING: u32 = 29;
const ROUNDS: u32 = 31;
const FORM: u32 = 32;

/// What goes into `imm`, but for the form's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Extra {
    pub imm8: u8,
    pub r3: u8,
    pub r4: u8,
    pub opmask: u8,
    pub zeroing: bool,
    pub broadcast: bool,
    pub rounding: Option<u8>,
}

impl Extra {
    /// As `imm` holds it.
    pub fn bits(self) -> u64 {
        u64::from(self.imm8)
            | u64::from(self.r3) << 8
            | u64::from(self.r4) << 16
            | u64::from(self.opmask & 7) << OPMASK
            | u64::from(self.zeroing) << ZEROING
            | u64::from(self.broadcast) << BROADCAST
            | self
                .rounding
                .map_or(0, |rounding| u64::from(rounding & 3) << ROUNDING | 1 << ROUNDS)
    }
}

/// Of instructions with a VEX or EVEX prefix.
impl<M> Op<M> {
    /// The immediate.
    #[inline(always)]
    pub fn imm8(&self) -> u8 {
        self.imm as u8
    }

    /// Third register operand.
    #[inline(always)]
    pub fn r3(&self) -> u8 {
        (self.imm >> 8) as u8
    }

    /// Fourth register operand, or the vector register with the indices of the addresses.
    #[inline(always)]
    pub fn r4(&self) -> u8 {
        (self.imm >> 16) as u8
    }

    /// Opmask register that selects elements; 0 if all are.
    #[inline(always)]
    pub fn opmask(&self) -> u8 {
        (self.imm >> OPMASK) as u8 & 7
    }

    /// Elements that are not selected become zero instead of staying.
    #[inline(always)]
    pub fn is_zeroing(&self) -> bool {
        self.imm >> ZEROING & 1 != 0
    }

    /// The memory operand is one element for all; or, on registers, exceptions are suppressed.
    #[inline(always)]
    pub fn is_broadcast(&self) -> bool {
        self.imm >> BROADCAST & 1 != 0
    }

    /// Rounding control instead of that in MXCSR, coded as there.
    #[inline(always)]
    pub fn rounding(&self) -> Option<u8> {
        (self.imm >> ROUNDS & 1 != 0).then_some((self.imm >> ROUNDING) as u8 & 3)
    }

    /// Number of the form among those of its family.
    #[inline(always)]
    pub fn form(&self) -> usize {
        usize::from((self.imm >> FORM) as u16)
    }

    /// Sets the number of the form.
    pub(crate) fn set_form(&mut self, form: u16) {
        self.imm |= u64::from(form) << FORM;
    }
}

//! x87, MXCSR and vector registers: what XSAVE saves.

use serde::{Deserialize, Serialize};

/// An x87 register: 64-bit significand and sign with 15-bit exponent, as FXSAVE stores them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct F80 {
    /// Significand, with its explicit integer bit.
    pub significand: u64,
    /// Sign (bit 15) and biased exponent.
    pub sign_exponent: u16,
}

/// A vector register of up to 512 bits, low bits first.
pub type Vector = [u64; 8];

/// Floating-point and vector state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fpu {
    /// R0 to R7 by physical number, not by ST(i).
    pub registers: [F80; 8],
    /// Control word.
    pub control: u16,
    /// Status word; bits 13:11 are TOP.
    pub status: u16,
    /// Abridged tags by physical number, as FXSAVE has them: bit i is set if register i is not empty.
    pub tags: u8,
    /// Opcode of the last x87 instruction, 11 bits.
    pub opcode: u16,
    /// Offset of the last x87 instruction.
    pub ip: u64,
    /// Its code segment.
    pub cs: u16,
    /// Offset of the last x87 memory operand.
    pub dp: u64,
    /// Its segment.
    pub ds: u16,
    /// MXCSR.
    pub mxcsr: u32,
    /// ZMM0 to ZMM31; XMM and YMM registers are their low parts.
    pub vectors: [Vector; 32],
}

impl Default for Fpu {
    /// The state after RESET.
    fn default() -> Fpu {
        Fpu {
            registers: [F80::default(); 8],
            control: 0x0040,
            status: 0,
            // RESET leaves the registers marked as holding +0.0 (SDM Vol. 3, Processor State After Reset).
            tags: 0xff,
            opcode: 0,
            ip: 0,
            cs: 0,
            dp: 0,
            ds: 0,
            mxcsr: 0x1f80,
            vectors: [[0; 8]; 32],
        }
    }
}

//! x87, MXCSR and vector registers: what XSAVE saves.

use core::ops::Range;

use serde::{Deserialize, Serialize};

/// An x87 register: 64-bit significand and sign with 15-bit exponent, as FXSAVE stores them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct F80 {
    /// Significand, with its explicit integer bit.
    pub significand: u64,
    /// Sign (bit 15) and biased exponent.
    pub sign_exponent: u16,
}

/// Bits of the x87 status word (SDM Vol. 1, x87 FPU Status Register).
pub mod status {
    /// Invalid operation.
    pub const IE: u16 = 1 << 0;
    /// Denormal operand.
    pub const DE: u16 = 1 << 1;
    /// Division by zero.
    pub const ZE: u16 = 1 << 2;
    /// Overflow.
    pub const OE: u16 = 1 << 3;
    /// Underflow.
    pub const UE: u16 = 1 << 4;
    /// Inexact result.
    pub const PE: u16 = 1 << 5;
    /// Stack fault.
    pub const SF: u16 = 1 << 6;
    /// Error summary: an unmasked exception is pending.
    pub const ES: u16 = 1 << 7;
    /// Condition codes C0 to C3.
    pub const CONDITION: u16 = 0x4700;
    /// Top of stack.
    pub const TOP: u16 = 7 << 11;
    /// Busy, a copy of ES.
    pub const B: u16 = 1 << 15;
    /// IE to PE, which the control word masks bit by bit.
    pub const EXCEPTIONS: u16 = 0x3f;
}

/// Control word after FNINIT: everything masked, 64-bit precision, round to nearest.
pub const CONTROL_INIT: u16 = 0x037f;
/// MXCSR after RESET: everything masked, round to nearest.
pub const MXCSR_INIT: u32 = 0x1f80;
/// Bits of MXCSR that may be set, MXCSR_MASK.
pub const MXCSR_MASK: u32 = 0xffff;

/// XCR0 bit of x87 and MMX.
pub const X87: u64 = 1 << 0;
/// XCR0 bit of XMM0 to XMM15 and MXCSR.
pub const SSE: u64 = 1 << 1;
/// XCR0 bit of the upper halves of YMM0 to YMM15.
pub const AVX: u64 = 1 << 2;

/// XCR0 bit of the opmask registers.
pub const OPMASK: u64 = 1 << 5;
/// XCR0 bit of the upper halves of ZMM0 to ZMM15.
pub const ZMM_HI256: u64 = 1 << 6;
/// XCR0 bit of ZMM16 to ZMM31.
pub const HI16_ZMM: u64 = 1 << 7;
/// XCR0 bit of the rights of protection keys, PKRU.
pub const PKRU: u64 = 1 << 9;
/// XCR0 bits of AVX-512, which are set together.
pub const AVX512: u64 = OPMASK | ZMM_HI256 | HI16_ZMM;

/// Size of the legacy region, where the header begins.
pub const LEGACY_SIZE: usize = 512;
/// Size of the legacy region and the header, where the other components begin.
pub const EXTENDED_START: usize = 576;

/// The registers that a state component holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Registers {
    /// Parts of vector registers.
    Vectors,
    /// Opmask registers.
    Opmasks,
    /// PKRU, and 32 bits that are zero.
    ProtectionKeys,
}

/// A state component of XSAVE that holds vector or opmask registers, or parts of them (SDM Vol. 1, XSAVE-Supported
/// Features).
#[derive(Debug, Clone)]
pub struct Component {
    /// Its bit in XCR0.
    pub bit: u64,
    /// Offset in the standard format.
    pub offset: usize,
    /// What they are.
    pub kind: Registers,
    /// The registers of which it holds a part.
    pub registers: Range<usize>,
    /// Which quadwords of each.
    pub quadwords: Range<usize>,
}

impl Component {
    /// Size in bytes.
    pub const fn size(&self) -> usize {
        (self.registers.end - self.registers.start) * (self.quadwords.end - self.quadwords.start) * 8
    }

    /// What it holds of `registers`, in the order in which it is saved.
    pub fn values<'a>(&'a self, fpu: &'a Fpu, registers: Range<usize>) -> impl Iterator<Item = u64> + 'a {
        registers.flat_map(move |register| {
            self.quadwords.clone().map(move |quadword| match self.kind {
                Registers::Vectors => fpu.vectors[register][quadword],
                Registers::Opmasks => fpu.k[register],
                Registers::ProtectionKeys => u64::from(fpu.pkru),
            })
        })
    }

    /// Sets what it holds of `registers`, in this order.
    pub fn set_values(&self, fpu: &mut Fpu, registers: Range<usize>, mut values: impl Iterator<Item = u64>) {
        for register in registers {
            for quadword in self.quadwords.clone() {
                let Some(value) = values.next() else { return };
                match self.kind {
                    Registers::Vectors => fpu.vectors[register][quadword] = value,
                    Registers::Opmasks => fpu.k[register] = value,
                    Registers::ProtectionKeys => fpu.pkru = value as u32,
                }
            }
        }
    }
}

const fn vectors(bit: u64, offset: usize, registers: Range<usize>, quadwords: Range<usize>) -> Component {
    Component {
        bit,
        offset,
        kind: Registers::Vectors,
        registers,
        quadwords,
    }
}

/// The components of vector and opmask registers, in the order of their bits. x87 is not among them: with MXCSR it has a
/// layout of its own.
pub const COMPONENTS: &[Component] = &[
    vectors(SSE, 160, 0..16, 0..2),
    vectors(AVX, 576, 0..16, 2..4),
    Component {
        bit: OPMASK,
        offset: 1088,
        kind: Registers::Opmasks,
        registers: 0..8,
        quadwords: 0..1,
    },
    vectors(ZMM_HI256, 1152, 0..16, 4..8),
    vectors(HI16_ZMM, 1664, 16..32, 0..8),
    Component {
        bit: PKRU,
        offset: 2688,
        kind: Registers::ProtectionKeys,
        registers: 0..1,
        quadwords: 0..1,
    },
];

/// XCR0 bits that may be set.
pub const XCR0_SUPPORTED: u64 = {
    let mut bits = X87;
    let mut i = 0;
    while i < COMPONENTS.len() {
        bits |= COMPONENTS[i].bit;
        i += 1;
    }
    bits
};

/// Size of an XSAVE area in the standard format for the components of `xcr0`, as CPUID leaf 0DH says it.
pub fn xsave_size(xcr0: u64) -> usize {
    COMPONENTS
        .iter()
        .filter(|component| xcr0 & component.bit != 0)
        .map(|component| component.offset + component.size())
        .fold(EXTENDED_START, usize::max)
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
    /// Opmask registers k0 to k7.
    #[serde(default)]
    pub k: [u64; 8],
    /// PKRU: for each protection key whether access (even bits) and writing (odd bits) are forbidden.
    #[serde(default)]
    pub pkru: u32,
}

impl Fpu {
    /// Bits 127:0 of a vector register, in memory order.
    #[inline(always)]
    pub fn xmm(&self, register: u8) -> [u8; 16] {
        let [low, high, ..] = self.vectors[usize::from(register & 31)];
        (u128::from(high) << 64 | u128::from(low)).to_le_bytes()
    }

    /// Sets bits 127:0 of a vector register and keeps the others, as instructions without VEX prefix do.
    #[inline(always)]
    pub fn set_xmm(&mut self, register: u8, value: [u8; 16]) {
        let value = u128::from_le_bytes(value);
        let vector = &mut self.vectors[usize::from(register & 31)];
        vector[0] = value as u64;
        vector[1] = (value >> 64) as u64;
    }

    /// Bits 63:0 of a vector register.
    #[inline(always)]
    pub fn xmm_low(&self, register: u8) -> u64 {
        self.vectors[usize::from(register & 31)][0]
    }

    /// Sets bits 63:0 of a vector register and keeps the others.
    #[inline(always)]
    pub fn set_xmm_low(&mut self, register: u8, value: u64) {
        self.vectors[usize::from(register & 31)][0] = value;
    }

    /// MMi: the significand of physical register i.
    #[inline(always)]
    pub fn mm(&self, register: u8) -> u64 {
        self.registers[usize::from(register & 7)].significand
    }

    /// Sets MMi: sign and exponent become all ones (SDM Vol. 1, Effect of MMX on the x87 State).
    #[inline(always)]
    pub fn set_mm(&mut self, register: u8, value: u64) {
        self.registers[usize::from(register & 7)] = F80 {
            significand: value,
            sign_exponent: 0xffff,
        };
    }

    /// What every MMX instruction does: TOP becomes 0 and all tags valid.
    #[inline(always)]
    pub fn enter_mmx(&mut self) {
        self.status &= !status::TOP;
        self.tags = 0xff;
    }

    /// Physical number of ST(0).
    #[inline]
    pub fn top(&self) -> u8 {
        (self.status >> 11 & 7) as u8
    }

    /// Physical number of ST(i).
    #[inline]
    pub fn physical(&self, i: u8) -> usize {
        usize::from(self.top().wrapping_add(i) & 7)
    }

    /// An unmasked x87 exception waits to be reported.
    #[inline(always)]
    pub fn is_pending(&self) -> bool {
        self.status & status::ES != 0
    }

    /// Sets the control word; its reserved bits read as the processor has them.
    pub fn set_control(&mut self, value: u16) {
        self.control = value & 0x1f3f | 0x0040;
        self.update_summary();
    }

    /// Makes ES and B what the exception flags and their masks say.
    pub fn update_summary(&mut self) {
        self.status &= !(status::ES | status::B);
        if self.status & !self.control & status::EXCEPTIONS != 0 {
            self.status |= status::ES | status::B;
        }
    }

    /// FNINIT; the registers' contents stay, but are empty.
    pub fn init(&mut self) {
        self.control = CONTROL_INIT;
        self.status = 0;
        self.tags = 0;
        self.opcode = 0;
        self.ip = 0;
        self.cs = 0;
        self.dp = 0;
        self.ds = 0;
    }

    /// The x87 state is as FNINIT leaves it and the registers are zero: what XSAVE calls the initial configuration.
    pub fn is_x87_initial(&self) -> bool {
        self.control == CONTROL_INIT
            && self.status == 0
            && self.tags == 0
            && self.opcode == 0
            && (self.ip, self.cs, self.dp, self.ds) == (0, 0, 0, 0)
            && self.registers == [F80::default(); 8]
    }

    /// The tag word with two bits for each register (SDM Vol. 1, x87 FPU Tag Word): valid, zero, special or empty.
    pub fn full_tags(&self) -> u16 {
        let mut word = 0;
        for (i, register) in self.registers.iter().enumerate() {
            let tag = match (self.tags >> i & 1, register.sign_exponent & 0x7fff) {
                (0, _) => 3,
                (_, 0) if register.significand == 0 => 1,
                (_, 0 | 0x7fff) => 2,
                _ if register.significand >> 63 == 0 => 2,
                _ => 0,
            };
            word |= tag << (2 * i);
        }
        word
    }

    /// Sets the abridged tags from a full tag word.
    pub fn set_full_tags(&mut self, word: u16) {
        self.tags = 0;
        for i in 0..8 {
            if word >> (2 * i) & 3 != 3 {
                self.tags |= 1 << i;
            }
        }
    }
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
            mxcsr: MXCSR_INIT,
            vectors: [[0; 8]; 32],
            k: [0; 8],
            pkru: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_standard_area_ends_with_the_last_component_and_is_never_below_the_header() {
        assert_eq!(xsave_size(X87), 576);
        assert_eq!(xsave_size(X87 | SSE), 576);
        assert_eq!(xsave_size(X87 | SSE | AVX), 832);
        assert_eq!(xsave_size(X87 | SSE | AVX | AVX512), 2688);
    }

    #[test]
    fn full_tags_tell_valid_zero_special_and_empty_apart() {
        let mut fpu = Fpu::default();
        fpu.registers[0] = F80 {
            significand: 1 << 63,
            sign_exponent: 0x3fff,
        };
        fpu.registers[2] = F80 {
            significand: 1 << 63,
            sign_exponent: 0x7fff,
        };
        fpu.registers[3] = F80 {
            significand: 1,
            sign_exponent: 0,
        };
        fpu.registers[4] = F80 {
            significand: 1,
            sign_exponent: 0x3fff,
        };
        fpu.tags = 0b0001_1111;
        assert_eq!(fpu.full_tags(), 0b11_11_11_10_10_10_01_00);
        let tags = fpu.tags;
        fpu.set_full_tags(fpu.full_tags());
        assert_eq!(fpu.tags, tags);
    }

    #[test]
    fn entering_mmx_makes_all_tags_valid_and_clears_top() {
        let mut fpu = Fpu::default();
        fpu.init();
        fpu.status = status::TOP | status::IE;
        fpu.enter_mmx();
        fpu.set_mm(3, 5);
        assert_eq!((fpu.tags, fpu.status), (0xff, status::IE));
        assert_eq!(
            fpu.registers[3],
            F80 {
                significand: 5,
                sign_exponent: 0xffff
            }
        );
    }
}

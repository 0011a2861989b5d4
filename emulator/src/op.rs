//! A decoded instruction, compact and specialised: which function executes it and on what.
//!
//! # Operands
//! Lowering is the same for every instruction. Register operands fill `r1` and `r2` in the order in which the
//! instruction lists them (implied registers such as AL included; a third one is always CL), an immediate fills `imm`,
//! a near branch target fills `imm` as a distance from the start of the block, and a memory operand fills `base`,
//! `index`, `scale`, `seg` and `disp`. Registers are numbered as instructions number them: general-purpose 0 to 15 (AH,
//! CH, DH, BH are 32 to 35), segment registers 0 to 5, ST(i), MMi and XMMi by i, control and debug registers by number.
//!
//! Instructions with a VEX or EVEX prefix have up to four register operands and much to say about them, but an immediate
//! of only 8 bits; the rest of `imm` holds what else there is: see [`vex`].

pub mod vex;

use crate::access::Outcome;
use crate::cpu::Cpu;

/// Executes one instruction.
pub type Handler<M> = fn(&mut Cpu, &mut M, &Op<M>) -> Outcome;

/// A decoded instruction for accessor `M`.
#[derive(Debug)]
pub struct Op<M: 'static> {
    /// Executes it.
    pub run: Handler<M>,
    /// Immediate, sign- or zero-extended as the instruction does; or near branch target relative to the block's start;
    /// or opcode of an x87 instruction, 11 bits.
    pub imm: u64,
    /// Displacement of the memory operand; if `base` is RIP, relative to the block's start.
    pub disp: u64,
    /// Base register, or 16 for none, or 17 for RIP.
    pub base: u8,
    /// Index register, or 16 for none.
    pub index: u8,
    /// Segment register of the memory operand (the prefix or the default) in bits 4:2, left shift of the index in 1:0.
    pub(crate) seg_scale: u8,
    /// First register operand.
    pub r1: u8,
    /// Second register operand.
    pub r2: u8,
    /// Prefixes and sizes.
    pub attr: Attr,
    /// Length in bytes, 1 to 15.
    pub len: u8,
    /// Distance from the block's start to this instruction, in bytes.
    pub off: u8,
}

impl<M> Clone for Op<M> {
    fn clone(&self) -> Op<M> {
        *self
    }
}

impl<M> Copy for Op<M> {}

impl<M> Op<M> {
    /// Number of the memory operand's segment register: that of the prefix, or the default.
    #[inline(always)]
    pub fn seg(&self) -> u8 {
        self.seg_scale >> 2
    }

    /// Left shift of the index, 0 to 3.
    #[inline(always)]
    pub fn scale(&self) -> u8 {
        self.seg_scale & 3
    }

    /// Offset of this instruction in CS, untruncated.
    #[inline(always)]
    pub fn ip(&self, cpu: &Cpu) -> u64 {
        cpu.rip.wrapping_add(u64::from(self.off))
    }

    /// Offset of the next instruction in CS.
    #[inline(always)]
    pub fn next_ip(&self, cpu: &Cpu) -> u64 {
        cpu.truncate_ip(cpu.rip.wrapping_add(u64::from(self.off) + u64::from(self.len)))
    }
}

/// Prefixes and sizes of an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attr(u8);

impl Attr {
    const ADDRESS: u8 = 3;
    /// REP or REPE (F3).
    pub const REP: u8 = 1 << 2;
    /// REPNE (F2).
    pub const REPNE: u8 = 1 << 3;
    /// LOCK (F0).
    pub const LOCK: u8 = 1 << 4;
    /// The memory operand's effective operand size is 16 bits (prefix and code size taken together).
    pub const OPERAND_16: u8 = 1 << 5;
    /// REX.W or its like: the effective operand size is 64 bits.
    pub const OPERAND_64: u8 = 1 << 6;

    /// Attributes with an address size of 2, 4 or 8 bytes and the given flag bits.
    pub fn new(address_size: u8, flags: u8) -> Attr {
        Attr(address_size.trailing_zeros() as u8 & Attr::ADDRESS | flags)
    }

    /// Any of the given flag bits is set.
    #[inline(always)]
    pub fn any(self, flags: u8) -> bool {
        self.0 & flags != 0
    }

    /// REP, REPE or REPNE.
    #[inline(always)]
    pub fn is_repeated(self) -> bool {
        self.any(Attr::REP | Attr::REPNE)
    }

    /// The valid bits of an effective address: 16, 32 or 64 of them.
    #[inline(always)]
    pub fn address_mask(self) -> u64 {
        match self.0 & Attr::ADDRESS {
            1 => 0xffff,
            2 => 0xffff_ffff,
            _ => u64::MAX,
        }
    }

    /// Effective operand size in bytes: 2, 4 or 8.
    #[inline(always)]
    pub fn operand_size(self) -> u8 {
        if self.any(Attr::OPERAND_64) {
            8
        } else if self.any(Attr::OPERAND_16) {
            2
        } else {
            4
        }
    }
}

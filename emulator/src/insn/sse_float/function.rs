//! Floating-point operations on vectors of any length, 16 bytes at a time.
//!
//! Elements that the opmask leaves out compute with 1.0 (or, of integers, with something that converts exactly), which
//! raises nothing in any operation; scalar operations are those on one element.

use crate::native::sse::{Operation, Range};

/// Sources of one step: 16 bytes of the operands, or what 16 bytes of result are made of.
#[derive(Debug, Clone, Copy)]
pub(in crate::insn) struct Chunk {
    /// First source.
    pub a: [u8; 16],
    /// Second, or the only one.
    pub b: [u8; 16],
    /// Third.
    pub c: [u8; 16],
    /// Immediate byte.
    pub imm: u8,
    /// Control and status register.
    pub mxcsr: u32,
}

/// The result and the flags raised.
pub(in crate::insn) type Step = fn(&Chunk) -> ([u8; 16], u32);

/// An operation.
#[derive(Debug, Clone, Copy)]
pub(in crate::insn) struct Function {
    /// Computes the elements of a chunk. Flags are those with all exceptions masked if `range` says how to find the others
    /// from there, and else those with the exceptions masked that MXCSR masks.
    pub step: Step,
    /// Whether results can leave the range.
    pub range: Range,
    /// Size of an element of the sources in bytes.
    pub source: usize,
    /// Size of an element of the result.
    pub result: usize,
}

impl Function {
    /// An instruction of the host.
    pub const fn host<O: Operation>(source: usize, result: usize) -> Function {
        Function {
            step: |chunk| O::run(chunk.a, chunk.b, chunk.mxcsr),
            range: O::RANGE,
            source,
            result,
        }
    }

    /// An operation that tells its flags itself.
    pub const fn own(step: Step, source: usize, result: usize) -> Function {
        Function {
            step,
            range: Range::Safe,
            source,
            result,
        }
    }

    /// Elements of a step.
    pub fn elements(&self) -> usize {
        16 / self.source.max(self.result)
    }
}

/// Operands and result of an operation.
#[derive(Debug, Clone, Copy)]
pub(in crate::insn) struct Vectors {
    /// First source.
    pub a: [u64; 8],
    /// Second.
    pub b: [u64; 8],
    /// Third.
    pub c: [u64; 8],
    /// Immediate byte.
    pub imm: u8,
    /// Vector length in bytes, of the sources or of the result, whichever are longer.
    pub bytes: usize,
    /// The elements that are computed.
    pub active: u64,
    /// Control and status register.
    pub mxcsr: u32,
}

impl Vectors {
    /// The sources of step `i`, with what harms nobody in elements that are not active.
    pub fn chunk(&self, function: &Function, i: usize) -> Chunk {
        let count = function.elements();
        let active = self.active >> (i * count);
        let part = |vector: &[u64; 8]| {
            let size = function.source;
            let bytes = slice(vector, i * count * size, count * size);
            harmless(bytes, size, active)
        };
        Chunk {
            a: part(&self.a),
            b: part(&self.b),
            c: part(&self.c),
            imm: self.imm,
            mxcsr: self.mxcsr,
        }
    }

    /// How many steps there are.
    pub fn steps(&self) -> usize {
        self.bytes / 16
    }
}

/// `length` bytes (8 or 16) of a vector from `at` on.
fn slice(vector: &[u64; 8], at: usize, length: usize) -> [u8; 16] {
    let low = vector[at / 8];
    let high = if length > 8 { vector[at / 8 + 1] } else { 0 };
    (u128::from(high) << 64 | u128::from(low)).to_le_bytes()
}

/// Puts 16 bytes, of which `length` (8 or 16) count, into a vector.
pub(in crate::insn) fn put(vector: &mut [u64; 8], at: usize, length: usize, bytes: [u8; 16]) {
    let value = u128::from_le_bytes(bytes);
    vector[at / 8] = value as u64;
    if length > 8 {
        vector[at / 8 + 1] = (value >> 64) as u64;
    }
}

/// The bytes with 1.0 in the elements of `size` bytes that are not active.
fn harmless(bytes: [u8; 16], size: usize, active: u64) -> [u8; 16] {
    if active == u64::MAX {
        return bytes;
    }
    let (one, mask) = match size {
        2 => (0x3c00, 0xffff),
        4 => (0x3f80_0000, 0xffff_ffff),
        _ => (0x3ff0_0000_0000_0000, u128::from(u64::MAX)),
    };
    let mut value = u128::from_le_bytes(bytes);
    for i in 0..16 / size {
        if active >> i & 1 == 0 {
            let shift = 8 * size * i;
            value = value & !(mask << shift) | one << shift;
        }
    }
    value.to_le_bytes()
}

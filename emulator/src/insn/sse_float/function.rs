//! Floating-point operations on vectors of any length, 16 bytes at a time.
//!
//! Elements that the opmask leaves out compute with 1.0 (or, of integers, with something that converts exactly), which
//! raises nothing in any operation; scalar operations are those on one element.

use super::exceptions::evaluate;
use super::format::Format;
use crate::insn::vector::{Bytes, Lanes};
use crate::native::sse::{Operation, Range};

/// Sources of one step: 16 bytes of the operands, or what 16 bytes of result are made of.
#[derive(Debug, Clone, Copy)]
pub(in crate::insn) struct Chunk {
    /// Old destination.
    pub a: [u8; 16],
    /// First of several sources.
    pub b: [u8; 16],
    /// Last source, or the only one.
    pub c: [u8; 16],
    /// Immediate byte.
    pub imm: u8,
    /// Control and status register.
    pub mxcsr: u32,
}

/// Computes a chunk: the result and the flags raised.
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
            step: |chunk| O::run(chunk.b, chunk.c, chunk.mxcsr),
            range: O::RANGE,
            source,
            result,
        }
    }

    /// An operation that tells its flags itself.
    pub const fn own(source: usize, result: usize, step: Step) -> Function {
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

    /// The sources of step `i`, with what harms nobody in elements that are not in `active`.
    pub fn chunk(&self, lanes: &Lanes, active: u64, mxcsr: u32, i: usize) -> Chunk {
        let count = self.elements();
        let active = active >> (i * count);
        let length = count * self.source;
        let part = |bytes: &Bytes| {
            let mut part = [0; 16];
            part[..length].copy_from_slice(&bytes[i * length..(i + 1) * length]);
            harmless(part, self.source, active)
        };
        Chunk {
            a: part(&lanes.a),
            b: part(&lanes.b),
            c: part(&lanes.c),
            imm: lanes.imm,
            mxcsr,
        }
    }
}

/// Kernels of operations whose elements have the size of the result's: name, size, how they are computed, step.
macro_rules! kernels {
    ($($(#[$doc:meta])* $name:ident $size:literal $run:ident $step:ident;)*) => {$(
        $(#[$doc])*
        pub(in crate::insn) fn $name(lanes: &mut Lanes) {
            $run(&const { Function::own($size, $size, |chunk| $step(Format::of_size($size), chunk)) }, lanes);
        }
    )*};
}

pub(super) use kernels;

/// Applies `f` to the elements of both sources; the flags of all.
pub(super) fn pairs(format: Format, chunk: &Chunk, mut f: impl FnMut(u64, u64) -> (u64, u32)) -> ([u8; 16], u32) {
    let mask = u128::from(u64::MAX >> (64 - format.width));
    let (b, c) = (u128::from_le_bytes(chunk.b), u128::from_le_bytes(chunk.c));
    let (mut out, mut flags) = (0, 0);
    for at in (0..128).step_by(format.width as usize) {
        let (element, raised) = f((b >> at & mask) as u64, (c >> at & mask) as u64);
        out |= u128::from(element) << at;
        flags |= raised;
    }
    (out.to_le_bytes(), flags)
}

/// Computes the first element only; what is above it is as in the first source.
pub(in crate::insn) fn scalar(function: &Function, lanes: &mut Lanes) {
    let above = lanes.b;
    evaluate(function, lanes);
    lanes.a[function.result..].copy_from_slice(&above[function.result..]);
}

/// The operands of an SSE form: destination and source.
pub(super) fn legacy(destination: [u8; 16], source: [u8; 16], imm: u8, active: u64, mxcsr: u32) -> Lanes {
    let wide = |bytes: [u8; 16]| {
        let mut wide = [0; 64];
        wide[..16].copy_from_slice(&bytes);
        wide
    };
    Lanes {
        a: wide(destination),
        b: wide(destination),
        c: wide(source),
        d: [0; 64],
        imm,
        bytes: 16,
        active,
        general: 0,
        out: 0,
        mxcsr,
        raised: 0,
    }
}

/// The bytes with 1.0 in the elements of `size` bytes that are not active.
fn harmless(bytes: [u8; 16], size: usize, active: u64) -> [u8; 16] {
    let one = u128::from(Format::of_size(size).one());
    let mask = u128::from(u64::MAX >> (64 - 8 * size));
    let count = 16 / size;
    if active.trailing_ones() as usize >= count {
        return bytes;
    }
    let mut value = u128::from_le_bytes(bytes);
    for i in (0..count).filter(|i| active >> i & 1 == 0) {
        let shift = 8 * size * i;
        value = value & !(mask << shift) | one << shift;
    }
    value.to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_active_is_one() {
        let bytes = harmless([0xff; 16], 4, 0b0110);
        assert_eq!(u128::from_le_bytes(bytes), 0x3f80_0000_ffff_ffff_ffff_ffff_3f80_0000);
        let bytes = harmless([0xff; 16], 8, 0b01);
        assert_eq!(u128::from_le_bytes(bytes), 0x3ff0_0000_0000_0000_ffff_ffff_ffff_ffff);
        assert_eq!(harmless([0xff; 16], 2, 0xff), [0xff; 16]);
    }
}

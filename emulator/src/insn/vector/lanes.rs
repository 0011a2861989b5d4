//! The operands of one instruction, side by side.

use crate::cpu::fpu::Vector;
use crate::insn::shuffle::Lane;

/// A vector register in memory order.
pub(in crate::insn) type Bytes = [u8; 64];

/// Computes one instruction.
pub(in crate::insn) type Kernel = fn(&mut Lanes);

/// What a kernel computes with.
#[derive(Debug, Clone)]
pub(in crate::insn) struct Lanes {
    /// The destination: its old value, then the result.
    pub a: Bytes,
    /// The first of several sources.
    pub b: Bytes,
    /// The last source: that which may be in memory, or the only one.
    pub c: Bytes,
    /// The register that an immediate names (VBLENDVPS and its like).
    pub d: Bytes,
    /// The immediate.
    pub imm: u8,
    /// Length of the longest vector operand: 16, 32 or 64.
    pub bytes: usize,
    /// The selected elements, the first lowest.
    pub active: u64,
    /// Bytes of a general-purpose operand: 4 or 8.
    pub general: usize,
    /// A result for an opmask register, a bit for each element; or for the status flags, as in RFLAGS.
    pub out: u64,
    /// Control register of floating point: see the rules of [`vector`](super).
    pub mxcsr: u32,
    /// Floating-point flags raised.
    pub raised: u32,
}

/// A register's bytes.
#[inline(always)]
pub(super) fn to_bytes(vector: &Vector) -> Bytes {
    let mut bytes = [0; 64];
    for (part, quadword) in bytes.chunks_exact_mut(8).zip(vector) {
        part.copy_from_slice(&quadword.to_le_bytes());
    }
    bytes
}

/// A register from bytes.
#[inline(always)]
pub(super) fn to_vector(bytes: &Bytes) -> Vector {
    core::array::from_fn(|i| u64::get(bytes, i))
}

/// The `i`-th 16 bytes.
#[inline(always)]
pub(in crate::insn) fn chunk(bytes: &Bytes, i: usize) -> [u8; 16] {
    let mut chunk = [0; 16];
    chunk.copy_from_slice(&bytes[16 * i..16 * i + 16]);
    chunk
}

impl Lanes {
    /// How many elements of type `T` the vector has.
    #[inline(always)]
    pub fn count<T: Lane>(&self) -> usize {
        self.bytes / size_of::<T>()
    }

    /// The result, 16 bytes at a time, of those of both sources; `f` is told which.
    #[inline(always)]
    pub fn chunks(&mut self, f: impl Fn(usize, [u8; 16], [u8; 16]) -> [u8; 16]) {
        for i in 0..self.bytes / 16 {
            let value = f(i, chunk(&self.b, i), chunk(&self.c, i));
            self.a[16 * i..16 * i + 16].copy_from_slice(&value);
        }
    }

    /// Element by element: of the only source.
    #[inline(always)]
    pub fn unary<T: Lane>(&mut self, f: impl Fn(T) -> T) {
        for i in 0..self.count::<T>() {
            f(T::get(&self.c, i)).put(&mut self.a, i);
        }
    }

    /// Element by element: of both sources.
    #[inline(always)]
    pub fn binary<T: Lane>(&mut self, f: impl Fn(T, T) -> T) {
        for i in 0..self.count::<T>() {
            f(T::get(&self.b, i), T::get(&self.c, i)).put(&mut self.a, i);
        }
    }

    /// Element by element: of the old destination and both sources.
    #[inline(always)]
    pub fn ternary<T: Lane>(&mut self, f: impl Fn(T, T, T) -> T) {
        for i in 0..self.count::<T>() {
            f(T::get(&self.a, i), T::get(&self.b, i), T::get(&self.c, i)).put(&mut self.a, i);
        }
    }

    /// A bit for each pair of elements that `f` holds for.
    #[inline(always)]
    pub fn compare<T: Lane>(&mut self, f: impl Fn(T, T) -> bool) {
        self.out = 0;
        for i in 0..self.count::<T>() {
            self.out |= u64::from(f(T::get(&self.b, i), T::get(&self.c, i))) << i;
        }
    }
}

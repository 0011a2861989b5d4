//! Additions and subtractions in turn, and of neighbours (SSE3).
//!
//! Each is an addition or a subtraction of operands put together otherwise.

use super::exceptions::evaluate;
use super::format::Format;
use super::function::Function;
use crate::insn::lanes::{build, count};
use crate::insn::shuffle::Lane;
use crate::insn::vector::{Lanes, chunk};
use crate::native::sse::{Addpd, Addps, Subpd, Subps};

macro_rules! kernels {
    ($($name:ident $operation:ident $prepare:ident $lane:ty;)*) => {$(
        pub(in crate::insn) fn $name(lanes: &mut Lanes) {
            const SIZE: usize = size_of::<$lane>();
            for i in 0..lanes.bytes / 16 {
                let (b, c) = $prepare::<$lane>(chunk(&lanes.b, i), chunk(&lanes.c, i));
                lanes.b[16 * i..16 * i + 16].copy_from_slice(&b);
                lanes.c[16 * i..16 * i + 16].copy_from_slice(&c);
            }
            evaluate(&const { Function::host::<$operation>(SIZE, SIZE) }, lanes);
        }
    )*};
}

kernels! {
    addsubps Addps alternate u32;
    addsubpd Addpd alternate u64;
    haddps Addps apart u32;
    haddpd Addpd apart u64;
    hsubps Subps apart u32;
    hsubpd Subpd apart u64;
}

/// The even elements of both operands, and the odd ones: neighbours that are to be added.
fn apart<T: Lane>(a: [u8; 16], b: [u8; 16]) -> ([u8; 16], [u8; 16]) {
    let half = count::<T, 16>() / 2;
    let element = |i: usize, odd: usize| {
        let (from, i) = if i < half { (&a, i) } else { (&b, i - half) };
        T::get(from, 2 * i + odd)
    };
    (build(|i| element(i, 0)), build(|i| element(i, 1)))
}

/// The second operand with its even elements negated: subtracting is adding that. A NaN keeps its sign.
fn alternate<T: Lane>(a: [u8; 16], b: [u8; 16]) -> ([u8; 16], [u8; 16]) {
    let size = size_of::<T>();
    let format = Format::of_size(size);
    let mut negated = b;
    for (i, bytes) in negated.chunks_exact_mut(size).enumerate() {
        let mut bits = [0; 8];
        bits[..size].copy_from_slice(bytes);
        if i & 1 == 0 && !format.is_nan(u64::from_le_bytes(bits)) {
            bytes[size - 1] ^= 0x80;
        }
    }
    (a, negated)
}

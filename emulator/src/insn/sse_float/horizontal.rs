//! SSE3: additions and subtractions in turn, and of neighbours.
//!
//! Each is an addition or a subtraction of operands put together otherwise.

use super::exceptions::compute;
use super::format::Format;
use crate::access::Outcome;
use crate::cpu::Cpu;
use crate::insn::lanes::{build, count};
use crate::insn::shuffle::Lane;
use crate::native::sse::{Addpd, Addps, Operation, Subpd, Subps};

macro_rules! instructions {
    ($($name:ident $operation:ident $prepare:ident $lane:ty;)*) => {$(
        pub(super) fn $name(cpu: &mut Cpu, register: u8, source: [u8; 16], _: u8) -> Outcome {
            let (a, b) = $prepare::<$lane>(cpu.fpu.xmm(register), source);
            update::<$operation>(cpu, register, a, b)
        }
    )*};
}

instructions! {
    addsubps Addps alternate u32;
    addsubpd Addpd alternate u64;
    haddps Addps apart u32;
    haddpd Addpd apart u64;
    hsubps Subps apart u32;
    hsubpd Subpd apart u64;
}

fn update<O: Operation>(cpu: &mut Cpu, register: u8, a: [u8; 16], b: [u8; 16]) -> Outcome {
    let value = compute::<O>(cpu, a, b)?;
    cpu.fpu.set_xmm(register, value);
    Ok(())
}

/// The even elements of both operands, and the odd ones: neighbours that are to be added.
pub(super) fn apart<T: Lane>(a: [u8; 16], b: [u8; 16]) -> ([u8; 16], [u8; 16]) {
    let half = count::<T, 16>() / 2;
    let element = |i: usize, odd: usize| {
        let (from, i) = if i < half { (&a, i) } else { (&b, i - half) };
        T::get(from, 2 * i + odd)
    };
    (build(|i| element(i, 0)), build(|i| element(i, 1)))
}

/// The second operand with its even elements negated: subtracting is adding that. A NaN keeps its sign.
pub(super) fn alternate<T: Lane>(a: [u8; 16], b: [u8; 16]) -> ([u8; 16], [u8; 16]) {
    let format = if size_of::<T>() == 4 {
        Format::SINGLE
    } else {
        Format::DOUBLE
    };
    let mut negated = b;
    for (i, bytes) in negated.chunks_exact_mut(size_of::<T>()).enumerate() {
        let mut bits = [0; 8];
        bits[..size_of::<T>()].copy_from_slice(bytes);
        if i & 1 == 0 && !format.is_nan(u64::from_le_bytes(bits)) {
            bytes[size_of::<T>() - 1] ^= 0x80;
        }
    }
    (a, negated)
}

//! Kernels made of the 16-byte operations of the SSE forms: each once for every 16 bytes of the vector.

use super::lanes::{Lanes, chunk};
use crate::insn::shuffle::PackedImmediate;
use crate::native::packed::Packed;

/// Of both sources; or of the only one, if the operation has but one.
pub(in crate::insn) fn packed<O: Packed>(lanes: &mut Lanes) {
    lanes.chunks(|_, b, c| O::xmm(b, c));
}

/// Of both sources (or the only one) and the immediate, the same for all.
pub(in crate::insn) fn immediate<O: PackedImmediate>(lanes: &mut Lanes) {
    let imm = lanes.imm;
    lanes.chunks(|_, b, c| O::apply(b, c, imm));
}

/// As [`immediate`], where each 16 bytes have `BITS` bits of the immediate of their own.
pub(in crate::insn) fn immediate_bits<O: PackedImmediate, const BITS: usize>(lanes: &mut Lanes) {
    let imm = u32::from(lanes.imm);
    lanes.chunks(|i, b, c| O::apply(b, c, (imm >> (BITS * i)) as u8));
}

/// A shift by the count in the low quadword of the second source, or of the only source by the immediate.
pub(in crate::insn) fn count<O: Packed>(lanes: &mut Lanes) {
    let count = chunk(&lanes.c, 0);
    lanes.chunks(|_, b, _| O::xmm(b, count));
}

/// A shift of the only source by the immediate.
pub(in crate::insn) fn immediate_count<O: Packed>(lanes: &mut Lanes) {
    let count = u128::from(lanes.imm).to_le_bytes();
    lanes.chunks(|_, _, c| O::xmm(c, count));
}

//! Dot products (SSE4.1).
//!
//! Each multiplication and addition earns its own exceptions; an unmasked one ends the instruction.

use super::exceptions::{evaluate, unmasked};
use super::function::Function;
use crate::insn::shuffle::Lane;
use crate::insn::vector::{Bytes, Lanes};
use crate::native::sse::{Addpd, Addps, Mulpd, Mulps};

/// DPPS: the products that immediate bits 7:4 choose are added, neighbours first, and go where bits 3:0 say.
pub(in crate::insn) fn dpps(lanes: &mut Lanes) {
    let imm = lanes.imm;
    let products = |from: &Bytes| map::<u32>(from, |lane, i| if imm >> (4 + i) & 1 != 0 { lane[i] } else { 0 });
    (lanes.b, lanes.c) = (products(&lanes.b), products(&lanes.c));
    evaluate(&const { Function::host::<Mulps>(4, 4) }, lanes);
    for step in [2, 0] {
        if is_over(lanes) {
            return;
        }
        // First t0 + t1 and t2 + t3 in elements 0 and 1, then their sum everywhere.
        lanes.b = map::<u32>(&lanes.a, |lane, i| lane[(i * step) & 3]);
        lanes.c = map::<u32>(&lanes.a, |lane, i| lane[(1 + i * step) & 3]);
        evaluate(&const { Function::host::<Addps>(4, 4) }, lanes);
    }
    lanes.a = map::<u32>(&lanes.a, |lane, i| if imm >> i & 1 != 0 { lane[i] } else { 0 });
}

/// DPPD: the same with two products, which immediate bits 5:4 choose.
pub(in crate::insn) fn dppd(lanes: &mut Lanes) {
    let imm = lanes.imm;
    let products = |from: &Bytes| map::<u64>(from, |lane, i| if imm >> (4 + i) & 1 != 0 { lane[i] } else { 0 });
    (lanes.b, lanes.c) = (products(&lanes.b), products(&lanes.c));
    evaluate(&const { Function::host::<Mulpd>(8, 8) }, lanes);
    if is_over(lanes) {
        return;
    }
    lanes.b = map::<u64>(&lanes.a, |lane, _| lane[0]);
    lanes.c = map::<u64>(&lanes.a, |lane, _| lane[1]);
    evaluate(&const { Function::host::<Addpd>(8, 8) }, lanes);
    lanes.a = map::<u64>(&lanes.a, |lane, i| if imm >> i & 1 != 0 { lane[i] } else { 0 });
}

fn is_over(lanes: &Lanes) -> bool {
    lanes.raised & unmasked(lanes.mxcsr) != 0
}

/// Each 16 bytes by themselves: element `i` becomes `f` of them all.
fn map<T: Lane + Default>(bytes: &Bytes, f: impl Fn(&[T; 4], usize) -> T) -> Bytes {
    let mut out = [0; 64];
    for (from, to) in bytes.chunks_exact(16).zip(out.chunks_exact_mut(16)) {
        let count = 16 / size_of::<T>();
        let lane = core::array::from_fn(|i| if i < count { T::get(from, i) } else { T::default() });
        for i in 0..count {
            f(&lane, i).put(to, i);
        }
    }
    out
}

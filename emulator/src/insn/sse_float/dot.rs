//! SSE4.1's dot products.

use super::exceptions::compute;
use crate::access::Outcome;
use crate::cpu::Cpu;
use crate::insn::lanes::build;
use crate::insn::shuffle::Lane;
use crate::native::sse::{Addpd, Addps, Mulpd, Mulps};

/// DPPS: the products that immediate bits 7:4 choose are added, neighbours first, and go where bits 3:0 say.
pub(super) fn dpps(cpu: &mut Cpu, register: u8, source: [u8; 16], imm: u8) -> Outcome {
    let chosen = |bytes: &[u8; 16]| build::<u32, 16>(|i| if imm >> (4 + i) & 1 != 0 { u32::get(bytes, i) } else { 0 });
    let destination = cpu.fpu.xmm(register);
    let products = compute::<Mulps>(cpu, chosen(&destination), chosen(&source))?;
    let apart =
        |bytes: &[u8; 16], from: usize, step: usize| build::<u32, 16>(|i| u32::get(bytes, (from + i * step) & 3));
    let pairs = compute::<Addps>(cpu, apart(&products, 0, 2), apart(&products, 1, 2))?;
    let sum = compute::<Addps>(cpu, apart(&pairs, 0, 0), apart(&pairs, 1, 0))?;
    cpu.fpu.set_xmm(
        register,
        build::<u32, 16>(|i| if imm >> i & 1 != 0 { u32::get(&sum, i) } else { 0 }),
    );
    Ok(())
}

/// DPPD: the same with two products, which immediate bits 5:4 choose.
pub(super) fn dppd(cpu: &mut Cpu, register: u8, source: [u8; 16], imm: u8) -> Outcome {
    let chosen = |bytes: &[u8; 16]| build::<u64, 16>(|i| if imm >> (4 + i) & 1 != 0 { u64::get(bytes, i) } else { 0 });
    let destination = cpu.fpu.xmm(register);
    let products = compute::<Mulpd>(cpu, chosen(&destination), chosen(&source))?;
    let both = |from: usize| build::<u64, 16>(|_| u64::get(&products, from));
    let sum = compute::<Addpd>(cpu, both(0), both(1))?;
    cpu.fpu.set_xmm(
        register,
        build::<u64, 16>(|i| if imm >> i & 1 != 0 { u64::get(&sum, i) } else { 0 }),
    );
    Ok(())
}

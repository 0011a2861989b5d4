//! XADD, CMPXCHG, CMPXCHG8B and CMPXCHG16B.

use iced_x86::Code;

use super::{Add, Sub, apply};
use crate::access::{Access, Outcome};
use crate::cpu::{Cpu, flags, gpr};
use crate::event::Exception;
use crate::op::{Attr, Op};
use crate::operand::{Addressing, Flat, General, Use};
use crate::table::Table;
use crate::word::Word;

fn xadd_registers<M: Access, T: Word>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    let (a, b) = (cpu.gpr.read::<T>(op.r1), cpu.gpr.read::<T>(op.r2));
    let result = apply::<Add, T>(cpu, a, b);
    // The destination is written last: it wins where both are one register.
    cpu.gpr.write::<T>(op.r2, a);
    cpu.gpr.write::<T>(op.r1, result);
    Ok(())
}

fn xadd_memory<M: Access, T: Word, A: Addressing>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    let at = A::linear(cpu, op, T::SIZE as u64, Use::Write)?;
    let b = cpu.gpr.read::<T>(op.r1);
    let add = |old: T| T::truncate(old.zero_extend().wrapping_add(b));
    let old = if op.attr.any(Attr::LOCK) {
        m.atomic::<T, _>(cpu, at, |old| (Some(add(old)), old))?
    } else {
        m.update::<T, _>(cpu, at, |old| (add(old), old))?
    };
    apply::<Add, T>(cpu, old.zero_extend(), b);
    cpu.gpr.write::<T>(op.r1, old.zero_extend());
    Ok(())
}

/// The register that a comparison leaves alone keeps its upper half, too, at 32 bits: so does the processor.
fn cmpxchg_registers<M: Access, T: Word>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    let (accumulator, old) = (cpu.gpr.read::<T>(gpr::RAX), cpu.gpr.read::<T>(op.r1));
    apply::<Sub, T>(cpu, accumulator, old);
    if accumulator == old {
        let new = cpu.gpr.read::<T>(op.r2);
        cpu.gpr.write::<T>(op.r1, new);
    } else {
        cpu.gpr.write::<T>(gpr::RAX, old);
    }
    Ok(())
}

fn cmpxchg_memory<M: Access, T: Word, A: Addressing>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    let at = A::linear(cpu, op, T::SIZE as u64, Use::Write)?;
    let accumulator = T::truncate(cpu.gpr.read::<T>(gpr::RAX));
    let new = T::truncate(cpu.gpr.read::<T>(op.r1));
    let old = if op.attr.any(Attr::LOCK) {
        m.atomic::<T, _>(cpu, at, |old| ((old == accumulator).then_some(new), old))?
    } else {
        m.update::<T, _>(cpu, at, |old| (if old == accumulator { new } else { old }, old))?
    };
    apply::<Sub, T>(cpu, accumulator.zero_extend(), old.zero_extend());
    if old != accumulator {
        cpu.gpr.write::<T>(gpr::RAX, old.zero_extend());
    }
    Ok(())
}

/// CMPXCHG8B. Locked or not, it is one atomic operation.
fn cmpxchg8b<M: Access, A: Addressing>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    let at = A::linear(cpu, op, 8, Use::Write)?;
    let pair = |high: u8, low: u8| cpu.gpr.read::<u32>(high) << 32 | cpu.gpr.read::<u32>(low);
    let (expected, new) = (pair(gpr::RDX, gpr::RAX), pair(gpr::RCX, gpr::RBX));
    let old = m.atomic::<u64, _>(cpu, at, |old| ((old == expected).then_some(new), old))?;
    if old != expected {
        cpu.gpr.write::<u32>(gpr::RAX, old);
        cpu.gpr.write::<u32>(gpr::RDX, old >> 32);
    }
    set_zero(cpu, old == expected);
    Ok(())
}

/// CMPXCHG16B. Locked or not, it is one atomic operation.
fn cmpxchg16b<M: Access, A: Addressing>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    let at = A::linear(cpu, op, 16, Use::Write)?;
    if !at.address.is_multiple_of(16) {
        return Err(Exception::gp(0).into());
    }
    let pair = |high: u8, low: u8| u128::from(cpu.gpr.get(high)) << 64 | u128::from(cpu.gpr.get(low));
    let (expected, new) = (pair(gpr::RDX, gpr::RAX), pair(gpr::RCX, gpr::RBX));
    let old = m.compare_exchange_16(cpu, at, expected, new)?;
    if old != expected {
        cpu.gpr.set(gpr::RAX, old as u64);
        cpu.gpr.set(gpr::RDX, (old >> 64) as u64);
    }
    set_zero(cpu, old == expected);
    Ok(())
}

/// Sets ZF and keeps the other flags.
fn set_zero(cpu: &mut Cpu, zero: bool) {
    let status = cpu.flags.status() & !flags::ZF;
    cpu.flags.set_status(if zero { status | flags::ZF } else { status });
}

fn exchanges<M: Access, T: Word>(table: &mut Table<M>, xadd: Code, cmpxchg: Code) {
    table.rm_flat(
        xadd,
        xadd_registers::<M, T>,
        xadd_memory::<M, T, General>,
        xadd_memory::<M, T, Flat>,
    );
    table.rm_flat(
        cmpxchg,
        cmpxchg_registers::<M, T>,
        cmpxchg_memory::<M, T, General>,
        cmpxchg_memory::<M, T, Flat>,
    );
}

/// Adds the rows of this family.
#[rustfmt::skip]
pub(super) fn fill<M: Access>(table: &mut Table<M>) {
    use Code::*;
    exchanges::<M, u8>(table, Xadd_rm8_r8, Cmpxchg_rm8_r8);
    exchanges::<M, u16>(table, Xadd_rm16_r16, Cmpxchg_rm16_r16);
    exchanges::<M, u32>(table, Xadd_rm32_r32, Cmpxchg_rm32_r32);
    exchanges::<M, u64>(table, Xadd_rm64_r64, Cmpxchg_rm64_r64);
    table.rm_flat(Cmpxchg8b_m64, cmpxchg8b::<M, General>, cmpxchg8b::<M, General>, cmpxchg8b::<M, Flat>);
    table.rm_flat(Cmpxchg16b_m128, cmpxchg16b::<M, General>, cmpxchg16b::<M, General>, cmpxchg16b::<M, Flat>);
}

//! Decimal adjustment (DAA DAS AAA AAS AAM AAD), SALC, BOUND: what 64-bit mode has no room for.
//!
//! The flags that the SDM leaves undefined are as the modelled processor leaves them: those of the addition or subtraction
//! that the adjustment is, on eight bits.

use iced_x86::Code;

use crate::access::{Access, Outcome};
use crate::cpu::{Cpu, gpr};
use crate::event::{self, Exception};
use crate::op::Op;
use crate::operand::{Use, of_fields};
use crate::table::Table;
use crate::word::{Word, sign_extend};

/// AH.
const AH: u8 = gpr::RAX | gpr::HIGH;

fn set_result(cpu: &mut Cpu, al: u8, carry: bool, adjust: bool) {
    cpu.gpr.write::<u8>(gpr::RAX, u64::from(al));
    cpu.flags.set_shift::<u8>(u64::from(al), carry, false, adjust);
}

/// Whether adding (or subtracting) a little to (from) `before` has crossed the sign.
fn overflows<const SUBTRACTS: bool, T: Word>(before: T, after: T) -> bool {
    let is_negative = |value: T| value.zero_extend() >> (T::BITS - 1) != 0;
    let (positive, negative) = if SUBTRACTS { (after, before) } else { (before, after) };
    !is_negative(positive) && is_negative(negative)
}

/// DAA, or DAS if `SUBTRACTS` (SDM Vol. 2). The carry out of the first step counts for DAS only.
fn decimal<M: Access, const SUBTRACTS: bool>(cpu: &mut Cpu, _: &mut M, _: &Op<M>) -> Outcome {
    let old = cpu.gpr.read::<u8>(gpr::RAX) as u8;
    let step = |value: u8, by: u8| {
        if SUBTRACTS {
            value.wrapping_sub(by)
        } else {
            value.wrapping_add(by)
        }
    };
    let adjust = old & 0xf > 9 || cpu.flags.adjust();
    let upper = old > 0x99 || cpu.flags.carry();
    let mut al = old;
    if adjust {
        al = step(al, 6);
    }
    if upper {
        al = step(al, 0x60);
    }
    let borrowed = SUBTRACTS && adjust && old < 6;
    cpu.gpr.write::<u8>(gpr::RAX, u64::from(al));
    let overflow = overflows::<SUBTRACTS, u8>(old, al);
    cpu.flags
        .set_shift::<u8>(u64::from(al), upper || borrowed, overflow, adjust);
    Ok(())
}

/// AAA, or AAS if `SUBTRACTS`: AX is adjusted as a whole, as every processor since the 80286 does. SF, ZF, PF and OF are those
/// of AX before the upper half of AL is cleared.
fn unpacked<M: Access, const SUBTRACTS: bool>(cpu: &mut Cpu, _: &mut M, _: &Op<M>) -> Outcome {
    let mut ax = cpu.gpr.read::<u16>(gpr::RAX) as u16;
    let adjust = ax & 0xf > 9 || cpu.flags.adjust();
    if adjust {
        ax = if SUBTRACTS {
            ax.wrapping_sub(0x106)
        } else {
            ax.wrapping_add(0x106)
        };
    }
    let overflow = overflows::<SUBTRACTS, u16>(cpu.gpr.read::<u16>(gpr::RAX) as u16, ax);
    cpu.flags.set_shift::<u16>(u64::from(ax), adjust, overflow, adjust);
    cpu.gpr.write::<u16>(gpr::RAX, u64::from(ax & 0xff0f));
    Ok(())
}

/// AAM: #DE if the base is zero.
fn aam<M: Access>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    let (al, base) = (cpu.gpr.read::<u8>(gpr::RAX) as u8, op.imm as u8);
    let (Some(high), Some(low)) = (al.checked_div(base), al.checked_rem(base)) else {
        return Err(Exception::plain(event::DE).into());
    };
    cpu.gpr.write::<u8>(AH, u64::from(high));
    set_result(cpu, low, false, false);
    Ok(())
}

fn aad<M: Access>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    let (al, ah) = (cpu.gpr.read::<u8>(gpr::RAX) as u8, cpu.gpr.read::<u8>(AH) as u8);
    let tens = ah.wrapping_mul(op.imm as u8);
    let result = al.wrapping_add(tens);
    let carries = al & tens | (al | tens) & !result;
    cpu.gpr.write::<u8>(AH, 0);
    cpu.gpr.write::<u8>(gpr::RAX, u64::from(result));
    cpu.flags.set_arithmetic::<u8>(u64::from(result), u64::from(carries));
    Ok(())
}

/// SALC: AL becomes all ones if CF is set, else zero.
fn salc<M: Access>(cpu: &mut Cpu, _: &mut M, _: &Op<M>) -> Outcome {
    let value = if cpu.flags.carry() { 0xff } else { 0 };
    cpu.gpr.write::<u8>(gpr::RAX, value);
    Ok(())
}

/// BOUND: #BR unless the signed index lies within the two bounds in memory.
fn bound<M: Access, T: Word>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    let size = T::SIZE as u64;
    let at = of_fields(cpu, m, op, size, 2 * size, Use::Read)?;
    let lower = m.load::<T>(cpu, at)?.sign_extend() as i64;
    let upper = m.load::<T>(cpu, at.offset(size))?.sign_extend() as i64;
    let index = sign_extend::<T>(cpu.gpr.read::<T>(op.r1)) as i64;
    if (lower..=upper).contains(&index) {
        Ok(())
    } else {
        Err(Exception::plain(event::BR).into())
    }
}

/// Adds the rows of this family.
pub(super) fn fill<M: Access>(table: &mut Table<M>) {
    table.plain(Code::Daa, decimal::<M, false>);
    table.plain(Code::Das, decimal::<M, true>);
    table.plain(Code::Aaa, unpacked::<M, false>);
    table.plain(Code::Aas, unpacked::<M, true>);
    table.plain(Code::Aam_imm8, aam::<M>);
    table.plain(Code::Aad_imm8, aad::<M>);
    table.plain(Code::Salc, salc::<M>);
    table.plain(Code::Bound_r16_m1616, bound::<M, u16>);
    table.plain(Code::Bound_r32_m3232, bound::<M, u32>);
}

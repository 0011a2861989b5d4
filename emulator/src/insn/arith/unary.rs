//! INC, DEC, NEG and NOT.

use iced_x86::Code;

use super::{difference, sum};
use crate::access::{Access, Outcome};
use crate::cpu::Cpu;
use crate::op::{Attr, Op};
use crate::operand::{Addressing, Flat, General, Use};
use crate::table::Table;
use crate::word::Word;

/// An operation on one operand.
trait Unary: 'static {
    /// The result.
    fn compute(a: u64) -> u64;
    /// Records the flags.
    fn record<T: Word>(cpu: &mut Cpu, a: u64);
}

/// INC.
struct Inc;
/// DEC.
struct Dec;
/// NEG.
struct Neg;
/// NOT.
struct Not;

impl Unary for Inc {
    #[inline(always)]
    fn compute(a: u64) -> u64 {
        a.wrapping_add(1)
    }

    #[inline(always)]
    fn record<T: Word>(cpu: &mut Cpu, a: u64) {
        let (result, carries) = sum(a, 1, 0);
        cpu.flags.set_arithmetic_keep_carry::<T>(result, carries);
    }
}

impl Unary for Dec {
    #[inline(always)]
    fn compute(a: u64) -> u64 {
        a.wrapping_sub(1)
    }

    #[inline(always)]
    fn record<T: Word>(cpu: &mut Cpu, a: u64) {
        let (result, carries) = difference(a, 1, 0);
        cpu.flags.set_arithmetic_keep_carry::<T>(result, carries);
    }
}

impl Unary for Neg {
    #[inline(always)]
    fn compute(a: u64) -> u64 {
        a.wrapping_neg()
    }

    #[inline(always)]
    fn record<T: Word>(cpu: &mut Cpu, a: u64) {
        let (result, carries) = difference(0, a, 0);
        cpu.flags.set_arithmetic::<T>(result, carries);
    }
}

impl Unary for Not {
    #[inline(always)]
    fn compute(a: u64) -> u64 {
        !a
    }

    #[inline(always)]
    fn record<T: Word>(_: &mut Cpu, _: u64) {}
}

fn unary_register<M: Access, O: Unary, T: Word>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    let a = cpu.gpr.read::<T>(op.r1);
    cpu.gpr.write::<T>(op.r1, O::compute(a));
    O::record::<T>(cpu, a);
    Ok(())
}

fn unary_memory<M: Access, O: Unary, T: Word, A: Addressing>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    let at = A::linear(cpu, op, T::SIZE as u64, Use::Write)?;
    let a = if op.attr.any(Attr::LOCK) {
        m.atomic::<T, _>(cpu, at, |old| {
            (Some(T::truncate(O::compute(old.zero_extend()))), old.zero_extend())
        })?
    } else {
        m.update::<T, _>(cpu, at, |old| {
            (T::truncate(O::compute(old.zero_extend())), old.zero_extend())
        })?
    };
    O::record::<T>(cpu, a);
    Ok(())
}

fn unary<M: Access, O: Unary>(table: &mut Table<M>, codes: [Code; 4]) {
    fn width<M: Access, O: Unary, T: Word>(table: &mut Table<M>, code: Code) {
        table.rm_flat(
            code,
            unary_register::<M, O, T>,
            unary_memory::<M, O, T, General>,
            unary_memory::<M, O, T, Flat>,
        );
    }
    let [byte, word, dword, qword] = codes;
    width::<M, O, u8>(table, byte);
    width::<M, O, u16>(table, word);
    width::<M, O, u32>(table, dword);
    width::<M, O, u64>(table, qword);
}

/// Adds the rows of this family.
pub(super) fn fill<M: Access>(table: &mut Table<M>) {
    use Code::*;
    unary::<M, Inc>(table, [Inc_rm8, Inc_rm16, Inc_rm32, Inc_rm64]);
    unary::<M, Dec>(table, [Dec_rm8, Dec_rm16, Dec_rm32, Dec_rm64]);
    unary::<M, Neg>(table, [Neg_rm8, Neg_rm16, Neg_rm32, Neg_rm64]);
    unary::<M, Not>(table, [Not_rm8, Not_rm16, Not_rm32, Not_rm64]);
    table.plain(Inc_r16, unary_register::<M, Inc, u16>);
    table.plain(Inc_r32, unary_register::<M, Inc, u32>);
    table.plain(Dec_r16, unary_register::<M, Dec, u16>);
    table.plain(Dec_r32, unary_register::<M, Dec, u32>);
}

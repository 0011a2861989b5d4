//! Addition, subtraction and logic: ADD OR ADC SBB AND SUB XOR CMP TEST. `unary`: INC DEC NEG NOT. `exchange`: XADD, CMPXCHG,
//! CMPXCHG8B/16B.
//!
//! Each operation is a result and the carries out of every bit; logic is an addition without carries. A LOCK prefix turns
//! the read and the write of the destination into one atomic operation.

mod exchange;
mod unary;

use iced_x86::Code;

use crate::access::{Access, Outcome};
use crate::cpu::Cpu;
use crate::op::{Attr, Op};
use crate::operand::{Addressing, Flat, General, Use};
use crate::table::Table;
use crate::word::Word;

/// An operation on two operands and the carry flag.
trait Binary: 'static {
    /// The result, and for each bit whether it carried (borrowed) out; both right in as many bits as the operands are.
    fn compute(a: u64, b: u64, carry: bool) -> (u64, u64);
}

/// ADD.
struct Add;
/// ADC.
struct Adc;
/// SUB and CMP.
struct Sub;
/// SBB.
struct Sbb;
/// AND and TEST.
struct And;
/// OR.
struct Or;
/// XOR.
struct Xor;

#[inline(always)]
fn sum(a: u64, b: u64, carry: u64) -> (u64, u64) {
    let result = a.wrapping_add(b).wrapping_add(carry);
    (result, (a & b) | ((a | b) & !result))
}

#[inline(always)]
fn difference(a: u64, b: u64, borrow: u64) -> (u64, u64) {
    let result = a.wrapping_sub(b).wrapping_sub(borrow);
    (result, (!a & b) | ((!a | b) & result))
}

impl Binary for Add {
    #[inline(always)]
    fn compute(a: u64, b: u64, _: bool) -> (u64, u64) {
        sum(a, b, 0)
    }
}

impl Binary for Adc {
    #[inline(always)]
    fn compute(a: u64, b: u64, carry: bool) -> (u64, u64) {
        sum(a, b, u64::from(carry))
    }
}

impl Binary for Sub {
    #[inline(always)]
    fn compute(a: u64, b: u64, _: bool) -> (u64, u64) {
        difference(a, b, 0)
    }
}

impl Binary for Sbb {
    #[inline(always)]
    fn compute(a: u64, b: u64, carry: bool) -> (u64, u64) {
        difference(a, b, u64::from(carry))
    }
}

impl Binary for And {
    #[inline(always)]
    fn compute(a: u64, b: u64, _: bool) -> (u64, u64) {
        (a & b, 0)
    }
}

impl Binary for Or {
    #[inline(always)]
    fn compute(a: u64, b: u64, _: bool) -> (u64, u64) {
        (a | b, 0)
    }
}

impl Binary for Xor {
    #[inline(always)]
    fn compute(a: u64, b: u64, _: bool) -> (u64, u64) {
        (a ^ b, 0)
    }
}

/// Computes and records the flags.
#[inline(always)]
fn apply<O: Binary, T: Word>(cpu: &mut Cpu, a: u64, b: u64) -> u64 {
    let (result, carries) = O::compute(a, b, cpu.flags.carry());
    cpu.flags.set_arithmetic::<T>(result, carries);
    result
}

/// Records the flags of `a - b`, as CMP does.
#[inline(always)]
pub(super) fn set_difference_flags<T: Word>(cpu: &mut Cpu, a: u64, b: u64) {
    apply::<Sub, T>(cpu, a, b);
}

/// `op r1, r2`.
fn registers<M: Access, O: Binary, T: Word>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    let result = apply::<O, T>(cpu, cpu.gpr.read::<T>(op.r1), cpu.gpr.read::<T>(op.r2));
    cpu.gpr.write::<T>(op.r1, result);
    Ok(())
}

/// `op r1, imm`.
fn register_immediate<M: Access, O: Binary, T: Word>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    let result = apply::<O, T>(cpu, cpu.gpr.read::<T>(op.r1), op.imm);
    cpu.gpr.write::<T>(op.r1, result);
    Ok(())
}

/// `op r1, [m]`.
fn register_memory<M: Access, O: Binary, T: Word, A: Addressing>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    let at = A::linear(cpu, op, T::SIZE as u64, Use::Read)?;
    let b = m.load::<T>(cpu, at)?.zero_extend();
    let result = apply::<O, T>(cpu, cpu.gpr.read::<T>(op.r1), b);
    cpu.gpr.write::<T>(op.r1, result);
    Ok(())
}

/// `op [m], r1`.
fn memory_register<M: Access, O: Binary, T: Word, A: Addressing>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    let b = cpu.gpr.read::<T>(op.r1);
    memory::<M, O, T, A>(cpu, m, op, b)
}

/// `op [m], imm`.
fn memory_immediate<M: Access, O: Binary, T: Word, A: Addressing>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    memory::<M, O, T, A>(cpu, m, op, op.imm)
}

#[inline(always)]
fn memory<M: Access, O: Binary, T: Word, A: Addressing>(cpu: &mut Cpu, m: &mut M, op: &Op<M>, b: u64) -> Outcome {
    if op.attr.any(Attr::LOCK) {
        return locked::<M, O, T, A>(cpu, m, op, b);
    }
    let at = A::linear(cpu, op, T::SIZE as u64, Use::Write)?;
    let carry = cpu.flags.carry();
    let (result, carries) = m.update::<T, _>(cpu, at, |old| {
        let (result, carries) = O::compute(old.zero_extend(), b, carry);
        (T::truncate(result), (result, carries))
    })?;
    cpu.flags.set_arithmetic::<T>(result, carries);
    Ok(())
}

#[inline(never)]
fn locked<M: Access, O: Binary, T: Word, A: Addressing>(cpu: &mut Cpu, m: &mut M, op: &Op<M>, b: u64) -> Outcome {
    let at = A::linear(cpu, op, T::SIZE as u64, Use::Write)?;
    let carry = cpu.flags.carry();
    let (result, carries) = m.atomic::<T, _>(cpu, at, |old| {
        let (result, carries) = O::compute(old.zero_extend(), b, carry);
        (Some(T::truncate(result)), (result, carries))
    })?;
    cpu.flags.set_arithmetic::<T>(result, carries);
    Ok(())
}

/// `cmp r1, r2` and the like: flags only.
fn compare_registers<M: Access, O: Binary, T: Word>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    apply::<O, T>(cpu, cpu.gpr.read::<T>(op.r1), cpu.gpr.read::<T>(op.r2));
    Ok(())
}

/// `cmp r1, imm`.
fn compare_register_immediate<M: Access, O: Binary, T: Word>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    apply::<O, T>(cpu, cpu.gpr.read::<T>(op.r1), op.imm);
    Ok(())
}

/// `cmp r1, [m]`.
fn compare_register_memory<M: Access, O: Binary, T: Word, A: Addressing>(
    cpu: &mut Cpu,
    m: &mut M,
    op: &Op<M>,
) -> Outcome {
    let at = A::linear(cpu, op, T::SIZE as u64, Use::Read)?;
    let b = m.load::<T>(cpu, at)?.zero_extend();
    apply::<O, T>(cpu, cpu.gpr.read::<T>(op.r1), b);
    Ok(())
}

/// `cmp [m], r1`.
fn compare_memory_register<M: Access, O: Binary, T: Word, A: Addressing>(
    cpu: &mut Cpu,
    m: &mut M,
    op: &Op<M>,
) -> Outcome {
    let at = A::linear(cpu, op, T::SIZE as u64, Use::Read)?;
    let a = m.load::<T>(cpu, at)?.zero_extend();
    apply::<O, T>(cpu, a, cpu.gpr.read::<T>(op.r1));
    Ok(())
}

/// `cmp [m], imm`.
fn compare_memory_immediate<M: Access, O: Binary, T: Word, A: Addressing>(
    cpu: &mut Cpu,
    m: &mut M,
    op: &Op<M>,
) -> Outcome {
    let at = A::linear(cpu, op, T::SIZE as u64, Use::Read)?;
    let a = m.load::<T>(cpu, at)?.zero_extend();
    apply::<O, T>(cpu, a, op.imm);
    Ok(())
}

/// Rows of one width: `op rm, r`, `op r, rm`, `op accumulator, imm`, and all forms of `op rm, imm`.
fn binary<M: Access, O: Binary, T: Word>(
    table: &mut Table<M>,
    rm_r: Code,
    r_rm: Code,
    accumulator: Code,
    rm_imm: &[Code],
) {
    table.rm_flat(
        rm_r,
        registers::<M, O, T>,
        memory_register::<M, O, T, General>,
        memory_register::<M, O, T, Flat>,
    );
    table.rm_flat(
        r_rm,
        registers::<M, O, T>,
        register_memory::<M, O, T, General>,
        register_memory::<M, O, T, Flat>,
    );
    table.plain(accumulator, register_immediate::<M, O, T>);
    for code in rm_imm {
        table.rm_flat(
            *code,
            register_immediate::<M, O, T>,
            memory_immediate::<M, O, T, General>,
            memory_immediate::<M, O, T, Flat>,
        );
    }
}

/// As [`binary`], for operations that only set flags; TEST has no `r, rm` form.
fn compare<M: Access, O: Binary, T: Word>(
    table: &mut Table<M>,
    rm_r: Code,
    r_rm: Option<Code>,
    accumulator: Code,
    rm_imm: &[Code],
) {
    table.rm_flat(
        rm_r,
        compare_registers::<M, O, T>,
        compare_memory_register::<M, O, T, General>,
        compare_memory_register::<M, O, T, Flat>,
    );
    if let Some(code) = r_rm {
        table.rm_flat(
            code,
            compare_registers::<M, O, T>,
            compare_register_memory::<M, O, T, General>,
            compare_register_memory::<M, O, T, Flat>,
        );
    }
    table.plain(accumulator, compare_register_immediate::<M, O, T>);
    for code in rm_imm {
        table.rm_flat(
            *code,
            compare_register_immediate::<M, O, T>,
            compare_memory_immediate::<M, O, T, General>,
            compare_memory_immediate::<M, O, T, Flat>,
        );
    }
}

/// Adds the rows of this family.
#[rustfmt::skip]
pub(super) fn fill<M: Access>(table: &mut Table<M>) {
    use Code::*;
    binary::<M, Add, u8>(table, Add_rm8_r8, Add_r8_rm8, Add_AL_imm8, &[Add_rm8_imm8, Add_rm8_imm8_82]);
    binary::<M, Add, u16>(table, Add_rm16_r16, Add_r16_rm16, Add_AX_imm16, &[Add_rm16_imm16, Add_rm16_imm8]);
    binary::<M, Add, u32>(table, Add_rm32_r32, Add_r32_rm32, Add_EAX_imm32, &[Add_rm32_imm32, Add_rm32_imm8]);
    binary::<M, Add, u64>(table, Add_rm64_r64, Add_r64_rm64, Add_RAX_imm32, &[Add_rm64_imm32, Add_rm64_imm8]);
    binary::<M, Or, u8>(table, Or_rm8_r8, Or_r8_rm8, Or_AL_imm8, &[Or_rm8_imm8, Or_rm8_imm8_82]);
    binary::<M, Or, u16>(table, Or_rm16_r16, Or_r16_rm16, Or_AX_imm16, &[Or_rm16_imm16, Or_rm16_imm8]);
    binary::<M, Or, u32>(table, Or_rm32_r32, Or_r32_rm32, Or_EAX_imm32, &[Or_rm32_imm32, Or_rm32_imm8]);
    binary::<M, Or, u64>(table, Or_rm64_r64, Or_r64_rm64, Or_RAX_imm32, &[Or_rm64_imm32, Or_rm64_imm8]);
    binary::<M, Adc, u8>(table, Adc_rm8_r8, Adc_r8_rm8, Adc_AL_imm8, &[Adc_rm8_imm8, Adc_rm8_imm8_82]);
    binary::<M, Adc, u16>(table, Adc_rm16_r16, Adc_r16_rm16, Adc_AX_imm16, &[Adc_rm16_imm16, Adc_rm16_imm8]);
    binary::<M, Adc, u32>(table, Adc_rm32_r32, Adc_r32_rm32, Adc_EAX_imm32, &[Adc_rm32_imm32, Adc_rm32_imm8]);
    binary::<M, Adc, u64>(table, Adc_rm64_r64, Adc_r64_rm64, Adc_RAX_imm32, &[Adc_rm64_imm32, Adc_rm64_imm8]);
    binary::<M, Sbb, u8>(table, Sbb_rm8_r8, Sbb_r8_rm8, Sbb_AL_imm8, &[Sbb_rm8_imm8, Sbb_rm8_imm8_82]);
    binary::<M, Sbb, u16>(table, Sbb_rm16_r16, Sbb_r16_rm16, Sbb_AX_imm16, &[Sbb_rm16_imm16, Sbb_rm16_imm8]);
    binary::<M, Sbb, u32>(table, Sbb_rm32_r32, Sbb_r32_rm32, Sbb_EAX_imm32, &[Sbb_rm32_imm32, Sbb_rm32_imm8]);
    binary::<M, Sbb, u64>(table, Sbb_rm64_r64, Sbb_r64_rm64, Sbb_RAX_imm32, &[Sbb_rm64_imm32, Sbb_rm64_imm8]);
    binary::<M, And, u8>(table, And_rm8_r8, And_r8_rm8, And_AL_imm8, &[And_rm8_imm8, And_rm8_imm8_82]);
    binary::<M, And, u16>(table, And_rm16_r16, And_r16_rm16, And_AX_imm16, &[And_rm16_imm16, And_rm16_imm8]);
    binary::<M, And, u32>(table, And_rm32_r32, And_r32_rm32, And_EAX_imm32, &[And_rm32_imm32, And_rm32_imm8]);
    binary::<M, And, u64>(table, And_rm64_r64, And_r64_rm64, And_RAX_imm32, &[And_rm64_imm32, And_rm64_imm8]);
    binary::<M, Sub, u8>(table, Sub_rm8_r8, Sub_r8_rm8, Sub_AL_imm8, &[Sub_rm8_imm8, Sub_rm8_imm8_82]);
    binary::<M, Sub, u16>(table, Sub_rm16_r16, Sub_r16_rm16, Sub_AX_imm16, &[Sub_rm16_imm16, Sub_rm16_imm8]);
    binary::<M, Sub, u32>(table, Sub_rm32_r32, Sub_r32_rm32, Sub_EAX_imm32, &[Sub_rm32_imm32, Sub_rm32_imm8]);
    binary::<M, Sub, u64>(table, Sub_rm64_r64, Sub_r64_rm64, Sub_RAX_imm32, &[Sub_rm64_imm32, Sub_rm64_imm8]);
    binary::<M, Xor, u8>(table, Xor_rm8_r8, Xor_r8_rm8, Xor_AL_imm8, &[Xor_rm8_imm8, Xor_rm8_imm8_82]);
    binary::<M, Xor, u16>(table, Xor_rm16_r16, Xor_r16_rm16, Xor_AX_imm16, &[Xor_rm16_imm16, Xor_rm16_imm8]);
    binary::<M, Xor, u32>(table, Xor_rm32_r32, Xor_r32_rm32, Xor_EAX_imm32, &[Xor_rm32_imm32, Xor_rm32_imm8]);
    binary::<M, Xor, u64>(table, Xor_rm64_r64, Xor_r64_rm64, Xor_RAX_imm32, &[Xor_rm64_imm32, Xor_rm64_imm8]);

    compare::<M, Sub, u8>(table, Cmp_rm8_r8, Some(Cmp_r8_rm8), Cmp_AL_imm8, &[Cmp_rm8_imm8, Cmp_rm8_imm8_82]);
    compare::<M, Sub, u16>(table, Cmp_rm16_r16, Some(Cmp_r16_rm16), Cmp_AX_imm16, &[Cmp_rm16_imm16, Cmp_rm16_imm8]);
    compare::<M, Sub, u32>(table, Cmp_rm32_r32, Some(Cmp_r32_rm32), Cmp_EAX_imm32, &[Cmp_rm32_imm32, Cmp_rm32_imm8]);
    compare::<M, Sub, u64>(table, Cmp_rm64_r64, Some(Cmp_r64_rm64), Cmp_RAX_imm32, &[Cmp_rm64_imm32, Cmp_rm64_imm8]);
    compare::<M, And, u8>(table, Test_rm8_r8, None, Test_AL_imm8, &[Test_rm8_imm8, Test_rm8_imm8_F6r1]);
    compare::<M, And, u16>(table, Test_rm16_r16, None, Test_AX_imm16, &[Test_rm16_imm16, Test_rm16_imm16_F7r1]);
    compare::<M, And, u32>(table, Test_rm32_r32, None, Test_EAX_imm32, &[Test_rm32_imm32, Test_rm32_imm32_F7r1]);
    compare::<M, And, u64>(table, Test_rm64_r64, None, Test_RAX_imm32, &[Test_rm64_imm32, Test_rm64_imm32_F7r1]);

    unary::fill(table);
    exchange::fill(table);
}

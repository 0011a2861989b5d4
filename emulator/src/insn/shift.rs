//! Shifts and rotates: ROL ROR RCL RCR SHL SHR SAR, SHLD SHRD.
//!
//! A count is masked to 5 bits, or 6 at 64 bits; one of zero leaves every flag as it was. Where the SDM leaves flags
//! undefined, they are as the processor at hand (AMD family 25) leaves them: OF as for a count of one by its formula on the
//! result, AF set by the shifts.

use iced_x86::Code;

use crate::access::{Access, Outcome};
use crate::cpu::{Cpu, Flags, gpr};
use crate::op::Op;
use crate::operand::{Addressing, Flat, General, Use};
use crate::table::Table;
use crate::word::{Word, sign_extend};

/// A shift or rotate by a count that is masked and not zero.
trait Shift: 'static {
    /// The result, right in the low bits of width `T`; `value` is zero-extended.
    fn apply<T: Word>(flags: &mut Flags, value: u64, count: u32) -> u64;
}

/// SHL, also known as SAL.
struct Shl;
/// SHR.
struct Shr;
/// SAR.
struct Sar;
/// ROL.
struct Rol;
/// ROR.
struct Ror;
/// RCL.
struct Rcl;
/// RCR.
struct Rcr;

/// Bit `i`, counted from the lowest.
#[inline(always)]
fn bit(value: u64, i: u32) -> bool {
    value >> i & 1 != 0
}

/// OF after a shift to the left: the sign is not the carry.
#[inline(always)]
fn overflow_left<T: Word>(result: u64, carry: bool) -> bool {
    bit(result, T::BITS - 1) != carry
}

/// OF after a shift to the right: the two upper bits of the result differ.
#[inline(always)]
fn overflow_right<T: Word>(result: u64) -> bool {
    bit(result, T::BITS - 1) != bit(result, T::BITS - 2)
}

impl Shift for Shl {
    #[inline(always)]
    fn apply<T: Word>(flags: &mut Flags, value: u64, count: u32) -> u64 {
        // The last bit out is at most at position 63 + BITS of the product, so 128 bits hold it.
        let wide = u128::from(value) << count;
        let result = wide as u64 & T::MASK;
        let carry = wide >> T::BITS & 1 != 0;
        flags.set_shift::<T>(result, carry, overflow_left::<T>(result, carry), true);
        result
    }
}

impl Shift for Shr {
    #[inline(always)]
    fn apply<T: Word>(flags: &mut Flags, value: u64, count: u32) -> u64 {
        let last = value >> (count - 1);
        let result = last >> 1;
        flags.set_shift::<T>(result, bit(last, 0), overflow_right::<T>(result), true);
        result
    }
}

impl Shift for Sar {
    #[inline(always)]
    fn apply<T: Word>(flags: &mut Flags, value: u64, count: u32) -> u64 {
        let last = sign_extend::<T>(value) as i64 >> (count - 1);
        let result = (last >> 1) as u64;
        flags.set_shift::<T>(result, last & 1 != 0, false, true);
        result
    }
}

impl Shift for Rol {
    #[inline(always)]
    fn apply<T: Word>(flags: &mut Flags, value: u64, count: u32) -> u64 {
        let result = rotate_left::<T>(value, count);
        let carry = bit(result, 0);
        flags.set_carry_overflow(carry, overflow_left::<T>(result, carry));
        result
    }
}

impl Shift for Ror {
    #[inline(always)]
    fn apply<T: Word>(flags: &mut Flags, value: u64, count: u32) -> u64 {
        let result = rotate_left::<T>(value, T::BITS - count % T::BITS);
        flags.set_carry_overflow(bit(result, T::BITS - 1), overflow_right::<T>(result));
        result
    }
}

#[inline(always)]
fn rotate_left<T: Word>(value: u64, count: u32) -> u64 {
    match T::SIZE {
        1 => u64::from((value as u8).rotate_left(count)),
        2 => u64::from((value as u16).rotate_left(count)),
        4 => u64::from((value as u32).rotate_left(count)),
        _ => value.rotate_left(count),
    }
}

impl Shift for Rcl {
    fn apply<T: Word>(flags: &mut Flags, value: u64, count: u32) -> u64 {
        let (result, carry) = rotate_through_carry::<T>(value, flags.carry(), count);
        flags.set_carry_overflow(carry, overflow_left::<T>(result, carry));
        result
    }
}

impl Shift for Rcr {
    fn apply<T: Word>(flags: &mut Flags, value: u64, count: u32) -> u64 {
        let bits = T::BITS + 1;
        let (result, carry) = rotate_through_carry::<T>(value, flags.carry(), bits - count % bits);
        flags.set_carry_overflow(carry, overflow_right::<T>(result));
        result
    }
}

/// Rotates the operand with the carry above it to the left.
fn rotate_through_carry<T: Word>(value: u64, carry: bool, count: u32) -> (u64, bool) {
    let bits = T::BITS + 1;
    let count = count % bits;
    let wide = u128::from(carry) << T::BITS | u128::from(value);
    let rotated = wide << count | wide >> (bits - count);
    (rotated as u64 & T::MASK, rotated >> T::BITS & 1 != 0)
}

/// Where the count is.
trait Count: 'static {
    fn count<M>(cpu: &Cpu, op: &Op<M>) -> u64;
}

/// In the immediate; 1 in the forms that imply it.
struct Immediate;
/// In CL.
struct Cl;

impl Count for Immediate {
    #[inline(always)]
    fn count<M>(_: &Cpu, op: &Op<M>) -> u64 {
        op.imm
    }
}

impl Count for Cl {
    #[inline(always)]
    fn count<M>(cpu: &Cpu, _: &Op<M>) -> u64 {
        cpu.gpr.get(gpr::RCX)
    }
}

#[inline(always)]
fn masked<T: Word>(count: u64) -> u32 {
    (count & if T::SIZE == 8 { 0x3f } else { 0x1f }) as u32
}

fn register<M: Access, O: Shift, T: Word, N: Count>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    let count = masked::<T>(N::count(cpu, op));
    let value = cpu.gpr.read::<T>(op.r1);
    // The register is written even if the count is zero: at 32 bits that clears its upper half.
    let result = if count == 0 {
        value
    } else {
        O::apply::<T>(&mut cpu.flags, value, count)
    };
    cpu.gpr.write::<T>(op.r1, result);
    Ok(())
}

/// The page must be writable even if the count is zero.
fn memory<M: Access, O: Shift, T: Word, N: Count, A: Addressing>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    let at = A::linear(cpu, op, T::SIZE as u64, Use::Write)?;
    let count = masked::<T>(N::count(cpu, op));
    let before = cpu.flags;
    let flags = m.update::<T, _>(cpu, at, |old| {
        let mut flags = before;
        if count == 0 {
            return (old, flags);
        }
        let result = O::apply::<T>(&mut flags, old.zero_extend(), count);
        (T::truncate(result), flags)
    })?;
    cpu.flags = flags;
    Ok(())
}

/// A shift of two operands as one.
trait DoubleShift: 'static {
    /// The result and the last bit out. `count` is masked and not zero. Counts above 16 at 16 bits are undefined: the
    /// processor at hand shifts the source in a second time and clears the carry (what it does with OF is not modelled).
    fn shift<T: Word>(value: u64, filler: u64, count: u32) -> (u64, bool);
    fn overflow<T: Word>(result: u64, carry: bool) -> bool;
}

/// SHLD.
struct Shld;
/// SHRD.
struct Shrd;

impl DoubleShift for Shld {
    #[inline(always)]
    fn shift<T: Word>(value: u64, filler: u64, count: u32) -> (u64, bool) {
        let (value, filler) = (u128::from(value), u128::from(filler));
        let bits = T::BITS;
        let (wide, width) = if T::SIZE == 2 {
            (value << 32 | filler << 16 | filler, 48)
        } else {
            (value << bits | filler, 2 * bits)
        };
        let result = (wide >> (width - bits - count)) as u64 & T::MASK;
        (result, count <= bits && wide >> (width - count) & 1 != 0)
    }

    #[inline(always)]
    fn overflow<T: Word>(result: u64, carry: bool) -> bool {
        overflow_left::<T>(result, carry)
    }
}

impl DoubleShift for Shrd {
    #[inline(always)]
    fn shift<T: Word>(value: u64, filler: u64, count: u32) -> (u64, bool) {
        let (value, filler) = (u128::from(value), u128::from(filler));
        let wide = if T::SIZE == 2 {
            filler << 32 | filler << 16 | value
        } else {
            filler << T::BITS | value
        };
        let last = wide >> (count - 1);
        ((last >> 1) as u64 & T::MASK, count <= T::BITS && last & 1 != 0)
    }

    #[inline(always)]
    fn overflow<T: Word>(result: u64, _: bool) -> bool {
        overflow_right::<T>(result)
    }
}

#[inline(always)]
fn double<O: DoubleShift, T: Word>(flags: &mut Flags, value: u64, filler: u64, count: u32) -> u64 {
    if count == 0 {
        return value;
    }
    let (result, carry) = O::shift::<T>(value, filler, count);
    flags.set_shift::<T>(result, carry, O::overflow::<T>(result, carry), true);
    result
}

fn double_register<M: Access, O: DoubleShift, T: Word, N: Count>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    let count = masked::<T>(N::count(cpu, op));
    let (value, filler) = (cpu.gpr.read::<T>(op.r1), cpu.gpr.read::<T>(op.r2));
    let result = double::<O, T>(&mut cpu.flags, value, filler, count);
    cpu.gpr.write::<T>(op.r1, result);
    Ok(())
}

fn double_memory<M: Access, O: DoubleShift, T: Word, N: Count>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    let at = General::linear(cpu, op, T::SIZE as u64, Use::Write)?;
    let count = masked::<T>(N::count(cpu, op));
    let filler = cpu.gpr.read::<T>(op.r1);
    let before = cpu.flags;
    let flags = m.update::<T, _>(cpu, at, |old| {
        let mut flags = before;
        let result = double::<O, T>(&mut flags, old.zero_extend(), filler, count);
        (T::truncate(result), flags)
    })?;
    cpu.flags = flags;
    Ok(())
}

fn row<M: Access, O: Shift, T: Word, N: Count>(table: &mut Table<M>, code: Code) {
    table.rm_flat(
        code,
        register::<M, O, T, N>,
        memory::<M, O, T, N, General>,
        memory::<M, O, T, N, Flat>,
    );
}

/// The forms of one width: by 1, by an immediate, by CL.
fn width<M: Access, O: Shift, T: Word>(table: &mut Table<M>, [one, immediate, cl]: [Code; 3]) {
    row::<M, O, T, Immediate>(table, one);
    row::<M, O, T, Immediate>(table, immediate);
    row::<M, O, T, Cl>(table, cl);
}

fn double_width<M: Access, O: DoubleShift, T: Word>(table: &mut Table<M>, [immediate, cl]: [Code; 2]) {
    table.rm(
        immediate,
        double_register::<M, O, T, Immediate>,
        double_memory::<M, O, T, Immediate>,
    );
    table.rm(cl, double_register::<M, O, T, Cl>, double_memory::<M, O, T, Cl>);
}

/// Adds the rows of this family.
#[rustfmt::skip]
pub(super) fn fill<M: Access>(table: &mut Table<M>) {
    use Code::*;
    width::<M, Rol, u8>(table, [Rol_rm8_1, Rol_rm8_imm8, Rol_rm8_CL]);
    width::<M, Rol, u16>(table, [Rol_rm16_1, Rol_rm16_imm8, Rol_rm16_CL]);
    width::<M, Rol, u32>(table, [Rol_rm32_1, Rol_rm32_imm8, Rol_rm32_CL]);
    width::<M, Rol, u64>(table, [Rol_rm64_1, Rol_rm64_imm8, Rol_rm64_CL]);
    width::<M, Ror, u8>(table, [Ror_rm8_1, Ror_rm8_imm8, Ror_rm8_CL]);
    width::<M, Ror, u16>(table, [Ror_rm16_1, Ror_rm16_imm8, Ror_rm16_CL]);
    width::<M, Ror, u32>(table, [Ror_rm32_1, Ror_rm32_imm8, Ror_rm32_CL]);
    width::<M, Ror, u64>(table, [Ror_rm64_1, Ror_rm64_imm8, Ror_rm64_CL]);
    width::<M, Rcl, u8>(table, [Rcl_rm8_1, Rcl_rm8_imm8, Rcl_rm8_CL]);
    width::<M, Rcl, u16>(table, [Rcl_rm16_1, Rcl_rm16_imm8, Rcl_rm16_CL]);
    width::<M, Rcl, u32>(table, [Rcl_rm32_1, Rcl_rm32_imm8, Rcl_rm32_CL]);
    width::<M, Rcl, u64>(table, [Rcl_rm64_1, Rcl_rm64_imm8, Rcl_rm64_CL]);
    width::<M, Rcr, u8>(table, [Rcr_rm8_1, Rcr_rm8_imm8, Rcr_rm8_CL]);
    width::<M, Rcr, u16>(table, [Rcr_rm16_1, Rcr_rm16_imm8, Rcr_rm16_CL]);
    width::<M, Rcr, u32>(table, [Rcr_rm32_1, Rcr_rm32_imm8, Rcr_rm32_CL]);
    width::<M, Rcr, u64>(table, [Rcr_rm64_1, Rcr_rm64_imm8, Rcr_rm64_CL]);
    width::<M, Shl, u8>(table, [Shl_rm8_1, Shl_rm8_imm8, Shl_rm8_CL]);
    width::<M, Shl, u16>(table, [Shl_rm16_1, Shl_rm16_imm8, Shl_rm16_CL]);
    width::<M, Shl, u32>(table, [Shl_rm32_1, Shl_rm32_imm8, Shl_rm32_CL]);
    width::<M, Shl, u64>(table, [Shl_rm64_1, Shl_rm64_imm8, Shl_rm64_CL]);
    width::<M, Shl, u8>(table, [Sal_rm8_1, Sal_rm8_imm8, Sal_rm8_CL]);
    width::<M, Shl, u16>(table, [Sal_rm16_1, Sal_rm16_imm8, Sal_rm16_CL]);
    width::<M, Shl, u32>(table, [Sal_rm32_1, Sal_rm32_imm8, Sal_rm32_CL]);
    width::<M, Shl, u64>(table, [Sal_rm64_1, Sal_rm64_imm8, Sal_rm64_CL]);
    width::<M, Shr, u8>(table, [Shr_rm8_1, Shr_rm8_imm8, Shr_rm8_CL]);
    width::<M, Shr, u16>(table, [Shr_rm16_1, Shr_rm16_imm8, Shr_rm16_CL]);
    width::<M, Shr, u32>(table, [Shr_rm32_1, Shr_rm32_imm8, Shr_rm32_CL]);
    width::<M, Shr, u64>(table, [Shr_rm64_1, Shr_rm64_imm8, Shr_rm64_CL]);
    width::<M, Sar, u8>(table, [Sar_rm8_1, Sar_rm8_imm8, Sar_rm8_CL]);
    width::<M, Sar, u16>(table, [Sar_rm16_1, Sar_rm16_imm8, Sar_rm16_CL]);
    width::<M, Sar, u32>(table, [Sar_rm32_1, Sar_rm32_imm8, Sar_rm32_CL]);
    width::<M, Sar, u64>(table, [Sar_rm64_1, Sar_rm64_imm8, Sar_rm64_CL]);
    double_width::<M, Shld, u16>(table, [Shld_rm16_r16_imm8, Shld_rm16_r16_CL]);
    double_width::<M, Shld, u32>(table, [Shld_rm32_r32_imm8, Shld_rm32_r32_CL]);
    double_width::<M, Shld, u64>(table, [Shld_rm64_r64_imm8, Shld_rm64_r64_CL]);
    double_width::<M, Shrd, u16>(table, [Shrd_rm16_r16_imm8, Shrd_rm16_r16_CL]);
    double_width::<M, Shrd, u32>(table, [Shrd_rm32_r32_imm8, Shrd_rm32_r32_CL]);
    double_width::<M, Shrd, u64>(table, [Shrd_rm64_r64_imm8, Shrd_rm64_r64_CL]);
}

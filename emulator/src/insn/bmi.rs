//! Bit manipulation on three operands: ANDN BEXTR BLSI BLSMSK BLSR (BMI1), BZHI MULX PDEP PEXT RORX SARX SHLX SHRX (BMI2).
//!
//! They have a VEX prefix and so are there in protected mode only, but touch no vector register: CR4 and XCR0 do not
//! matter. The flags that the SDM leaves undefined are as the processor at hand (AMD family 25) leaves them.

use iced_x86::Code;

use super::available;
use crate::access::{Access, Outcome};
use crate::cpu::{Cpu, flags, gpr};
use crate::op::Op;
use crate::operand::{Addressing, Flat, General, Use};
use crate::table::Table;
use crate::word::{Word, sign_extend};

/// An operation on the r/m operand and another register.
trait Operation: 'static {
    /// The other register is listed before the r/m operand.
    const OTHER_FIRST: bool = false;
    /// Result and status flags, of the present ones.
    fn compute<T: Word>(rm: u64, other: u64, status: u64) -> (u64, u64);
}

/// SF, ZF and PF of a result, and CF; the others are clear.
fn logic_flags<T: Word>(result: u64, carry: bool) -> u64 {
    let carry = if carry { flags::CF } else { 0 };
    let sign = if result >> (T::BITS - 1) & 1 != 0 { flags::SF } else { 0 };
    let zero = if result == 0 { flags::ZF } else { 0 };
    let parity = if (result as u8).count_ones().is_multiple_of(2) {
        flags::PF
    } else {
        0
    };
    carry | sign | zero | parity
}

macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident $(($first:literal))? <$t:ident> |$rm:ident, $other:ident, $status:ident| $body:expr;)*) => {$(
        $(#[$doc])*
        struct $name;

        impl Operation for $name {
            $(const OTHER_FIRST: bool = $first;)?

            #[inline(always)]
            fn compute<$t: Word>($rm: u64, $other: u64, $status: u64) -> (u64, u64) {
                $body
            }
        }
    )*};
}

operations! {
    /// ANDN.
    AndNot(true)<T> |rm, other, _status| {
        let result = !other & rm & T::MASK;
        (result, logic_flags::<T>(result, false))
    };
    /// BEXTR: start in bits 7:0 of the other register, length in 15:8.
    Extract<T> |rm, other, _status| {
        let (start, length) = (other as u8, (other >> 8) as u8);
        let shifted = if start < 64 { rm >> start } else { 0 };
        let result = if length < 64 { shifted & ((1 << length) - 1) } else { shifted };
        (result, logic_flags::<T>(result, false) & !flags::SF | flags::AF)
    };
    /// BLSI.
    IsolateLowest<T> |rm, _other, _status| {
        let result = rm & rm.wrapping_neg();
        (result, logic_flags::<T>(result, rm != 0))
    };
    /// BLSMSK.
    MaskToLowest<T> |rm, _other, _status| {
        let result = (rm ^ rm.wrapping_sub(1)) & T::MASK;
        (result, logic_flags::<T>(result, rm == 0))
    };
    /// BLSR.
    ResetLowest<T> |rm, _other, _status| {
        let result = rm & rm.wrapping_sub(1);
        (result, logic_flags::<T>(result, rm == 0))
    };
    /// BZHI: zeros from the bit on whose number is in bits 7:0 of the other register.
    ZeroHigh<T> |rm, other, _status| {
        let start = u32::from(other as u8);
        let beyond = start >= T::BITS;
        let result = if beyond { rm } else { rm & ((1 << start) - 1) };
        (result, logic_flags::<T>(result, beyond))
    };
    /// PDEP: the r/m operand is the mask.
    Deposit(true)<T> |rm, other, status| {
        let (mut mask, mut result, mut source) = (rm, 0, other);
        while mask != 0 {
            let lowest = mask & mask.wrapping_neg();
            if source & 1 != 0 {
                result |= lowest;
            }
            source >>= 1;
            mask ^= lowest;
        }
        (result, status)
    };
    /// PEXT: the r/m operand is the mask.
    Gather(true)<T> |rm, other, status| {
        let (mut mask, mut result, mut place) = (rm, 0, 0);
        while mask != 0 {
            let lowest = mask & mask.wrapping_neg();
            if other & lowest != 0 {
                result |= 1 << place;
            }
            place += 1;
            mask ^= lowest;
        }
        (result, status)
    };
    /// SHLX.
    ShiftLeft<T> |rm, other, status| {
        (rm << (other as u32 & (T::BITS - 1)), status)
    };
    /// SHRX.
    ShiftRight<T> |rm, other, status| {
        (rm >> (other as u32 & (T::BITS - 1)), status)
    };
    /// SARX.
    ShiftSigned<T> |rm, other, status| {
        ((sign_extend::<T>(rm) as i64 >> (other as u32 & (T::BITS - 1))) as u64, status)
    };
    /// RORX: the count is an immediate.
    Rotate<T> |rm, other, status| {
        let count = other as u32 & (T::BITS - 1);
        let wrapped = if count == 0 { 0 } else { rm << (T::BITS - count) };
        (rm >> count | wrapped, status)
    };
}

#[inline(always)]
fn apply<O: Operation, T: Word>(cpu: &mut Cpu, destination: u8, rm: u64, other: u64) -> Outcome {
    let (result, status) = O::compute::<T>(rm, other, cpu.flags.status());
    cpu.gpr.write::<T>(destination, result);
    cpu.flags.set_status(status);
    Ok(())
}

fn registers<M: Access, O: Operation, T: Word>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    available::vex_integer(cpu)?;
    let (rm, other) = if O::OTHER_FIRST {
        (op.r3(), op.r2)
    } else {
        (op.r2, op.r3())
    };
    let (rm, other) = (cpu.gpr.read::<T>(rm), cpu.gpr.read::<T>(other));
    apply::<O, T>(cpu, op.r1, rm, other)
}

/// With a memory operand the other register is the second one, wherever it is listed.
fn memory<M: Access, O: Operation, T: Word, A: Addressing>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    available::vex_integer(cpu)?;
    let at = A::linear(cpu, op, T::SIZE as u64, Use::Read)?;
    let rm = m.load::<T>(cpu, at)?.zero_extend();
    let other = cpu.gpr.read::<T>(op.r2);
    apply::<O, T>(cpu, op.r1, rm, other)
}

fn rotate_register<M: Access, T: Word>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    available::vex_integer(cpu)?;
    let rm = cpu.gpr.read::<T>(op.r2);
    apply::<Rotate, T>(cpu, op.r1, rm, u64::from(op.imm8()))
}

fn rotate_memory<M: Access, T: Word, A: Addressing>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    available::vex_integer(cpu)?;
    let at = A::linear(cpu, op, T::SIZE as u64, Use::Read)?;
    let rm = m.load::<T>(cpu, at)?.zero_extend();
    apply::<Rotate, T>(cpu, op.r1, rm, u64::from(op.imm8()))
}

/// MULX: of one destination the upper half remains.
#[inline(always)]
fn multiply<T: Word>(cpu: &mut Cpu, high: u8, low: u8, rm: u64) -> Outcome {
    let product = u128::from(cpu.gpr.read::<T>(gpr::RDX)) * u128::from(rm);
    cpu.gpr.write::<T>(low, product as u64 & T::MASK);
    cpu.gpr.write::<T>(high, (product >> T::BITS) as u64);
    Ok(())
}

fn multiply_register<M: Access, T: Word>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    available::vex_integer(cpu)?;
    let rm = cpu.gpr.read::<T>(op.r3());
    multiply::<T>(cpu, op.r1, op.r2, rm)
}

fn multiply_memory<M: Access, T: Word, A: Addressing>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    available::vex_integer(cpu)?;
    let at = A::linear(cpu, op, T::SIZE as u64, Use::Read)?;
    let rm = m.load::<T>(cpu, at)?.zero_extend();
    multiply::<T>(cpu, op.r1, op.r2, rm)
}

/// The forms of 32 and 64 bits.
fn rows<M: Access, O: Operation>(table: &mut Table<M>, codes: [Code; 2]) {
    fn width<M: Access, O: Operation, T: Word>(table: &mut Table<M>, code: Code) {
        table.rm_flat(
            code,
            registers::<M, O, T>,
            memory::<M, O, T, General>,
            memory::<M, O, T, Flat>,
        );
    }
    width::<M, O, u32>(table, codes[0]);
    width::<M, O, u64>(table, codes[1]);
}

fn others<M: Access, T: Word>(table: &mut Table<M>, rorx: Code, mulx: Code) {
    table.rm_flat(
        rorx,
        rotate_register::<M, T>,
        rotate_memory::<M, T, General>,
        rotate_memory::<M, T, Flat>,
    );
    table.rm_flat(
        mulx,
        multiply_register::<M, T>,
        multiply_memory::<M, T, General>,
        multiply_memory::<M, T, Flat>,
    );
}

/// Adds the rows of this family.
pub(super) fn fill<M: Access>(table: &mut Table<M>) {
    use Code::*;
    rows::<M, AndNot>(table, [VEX_Andn_r32_r32_rm32, VEX_Andn_r64_r64_rm64]);
    rows::<M, Extract>(table, [VEX_Bextr_r32_rm32_r32, VEX_Bextr_r64_rm64_r64]);
    rows::<M, IsolateLowest>(table, [VEX_Blsi_r32_rm32, VEX_Blsi_r64_rm64]);
    rows::<M, MaskToLowest>(table, [VEX_Blsmsk_r32_rm32, VEX_Blsmsk_r64_rm64]);
    rows::<M, ResetLowest>(table, [VEX_Blsr_r32_rm32, VEX_Blsr_r64_rm64]);
    rows::<M, ZeroHigh>(table, [VEX_Bzhi_r32_rm32_r32, VEX_Bzhi_r64_rm64_r64]);
    rows::<M, Deposit>(table, [VEX_Pdep_r32_r32_rm32, VEX_Pdep_r64_r64_rm64]);
    rows::<M, Gather>(table, [VEX_Pext_r32_r32_rm32, VEX_Pext_r64_r64_rm64]);
    rows::<M, ShiftLeft>(table, [VEX_Shlx_r32_rm32_r32, VEX_Shlx_r64_rm64_r64]);
    rows::<M, ShiftRight>(table, [VEX_Shrx_r32_rm32_r32, VEX_Shrx_r64_rm64_r64]);
    rows::<M, ShiftSigned>(table, [VEX_Sarx_r32_rm32_r32, VEX_Sarx_r64_rm64_r64]);
    others::<M, u32>(table, VEX_Rorx_r32_rm32_imm8, VEX_Mulx_r32_r32_rm32);
    others::<M, u64>(table, VEX_Rorx_r64_rm64_imm8, VEX_Mulx_r64_r64_rm64);
}

//! Multiplication and division: MUL IMUL DIV IDIV.
//!
//! The flags that the SDM leaves undefined are as the processor at hand (AMD family 25) leaves them: a multiplication
//! changes CF and OF alone; a division clears SF, ZF and PF, sets AF, and keeps CF and OF.

use iced_x86::Code;

use crate::access::{Access, Outcome, Stop};
use crate::cpu::{Cpu, gpr};
use crate::event::{self, Exception};
use crate::op::Op;
use crate::operand::{Addressing, Flat, General, Use};
use crate::table::Table;
use crate::word::{Word, sign_extend};

/// An operation on the accumulator pair and one operand.
trait Wide: 'static {
    /// # Errors
    /// #DE.
    fn apply<T: Word>(cpu: &mut Cpu, operand: u64) -> Outcome;
}

/// MUL.
struct Mul;
/// IMUL with one operand.
struct Imul;
/// DIV.
struct Div;
/// IDIV.
struct Idiv;

/// The double-width accumulator: AX, DX:AX, EDX:EAX or RDX:RAX.
#[inline(always)]
fn pair<T: Word>(cpu: &Cpu) -> u128 {
    if T::SIZE == 1 {
        return u128::from(cpu.gpr.read::<u16>(gpr::RAX));
    }
    u128::from(cpu.gpr.read::<T>(gpr::RDX)) << T::BITS | u128::from(cpu.gpr.read::<T>(gpr::RAX))
}

/// Sets AH:AL, or the halves of width `T` in rDX and rAX.
#[inline(always)]
fn set_pair<T: Word>(cpu: &mut Cpu, high: u64, low: u64) {
    cpu.gpr.write::<T>(gpr::RAX, low);
    let register = if T::SIZE == 1 { gpr::RAX | gpr::HIGH } else { gpr::RDX };
    cpu.gpr.write::<T>(register, high);
}

impl Wide for Mul {
    #[inline(always)]
    fn apply<T: Word>(cpu: &mut Cpu, operand: u64) -> Outcome {
        let product = u128::from(cpu.gpr.read::<T>(gpr::RAX)) * u128::from(operand);
        let high = (product >> T::BITS) as u64;
        set_pair::<T>(cpu, high, product as u64);
        cpu.flags.set_carry_overflow(high != 0, high != 0);
        Ok(())
    }
}

/// The signed product, and whether it needs more than `T`'s width.
#[inline(always)]
fn signed_product<T: Word>(a: u64, b: u64) -> (i128, bool) {
    let product = i128::from(sign_extend::<T>(a) as i64) * i128::from(sign_extend::<T>(b) as i64);
    let kept = i128::from(sign_extend::<T>(product as u64) as i64);
    (product, kept != product)
}

impl Wide for Imul {
    #[inline(always)]
    fn apply<T: Word>(cpu: &mut Cpu, operand: u64) -> Outcome {
        let (product, lost) = signed_product::<T>(cpu.gpr.read::<T>(gpr::RAX), operand);
        set_pair::<T>(cpu, (product >> T::BITS) as u64, product as u64);
        cpu.flags.set_carry_overflow(lost, lost);
        Ok(())
    }
}

#[cold]
fn divide_error() -> Stop {
    Exception::plain(event::DE).into()
}

#[inline(always)]
fn set_division_flags(cpu: &mut Cpu) {
    let (carry, overflow) = (cpu.flags.carry(), cpu.flags.overflow());
    // The result 1 stands for: not zero, not negative, odd parity.
    cpu.flags.set_shift::<u8>(1, carry, overflow, true);
}

impl Wide for Div {
    #[inline(always)]
    fn apply<T: Word>(cpu: &mut Cpu, divisor: u64) -> Outcome {
        if divisor == 0 {
            return Err(divide_error());
        }
        let dividend = pair::<T>(cpu);
        // The quotient fits exactly if the upper half is below the divisor.
        let (quotient, remainder) = match u64::try_from(dividend) {
            Ok(dividend) => (dividend / divisor, dividend % divisor),
            Err(_) if (dividend >> T::BITS) as u64 >= divisor => return Err(divide_error()),
            Err(_) => (
                (dividend / u128::from(divisor)) as u64,
                (dividend % u128::from(divisor)) as u64,
            ),
        };
        if quotient > T::MASK {
            return Err(divide_error());
        }
        set_pair::<T>(cpu, remainder, quotient);
        set_division_flags(cpu);
        Ok(())
    }
}

impl Wide for Idiv {
    #[inline(always)]
    fn apply<T: Word>(cpu: &mut Cpu, divisor: u64) -> Outcome {
        let divisor = i128::from(sign_extend::<T>(divisor) as i64);
        let unused = 128 - 2 * T::BITS;
        let dividend = (pair::<T>(cpu) << unused) as i128 >> unused;
        // The one quotient that overflows 128 bits, -2^127 / -1, is no quotient of 64 bits either.
        let (Some(quotient), Some(remainder)) = (dividend.checked_div(divisor), dividend.checked_rem(divisor)) else {
            return Err(divide_error());
        };
        if i128::from(sign_extend::<T>(quotient as u64) as i64) != quotient {
            return Err(divide_error());
        }
        set_pair::<T>(cpu, remainder as u64, quotient as u64);
        set_division_flags(cpu);
        Ok(())
    }
}

fn wide_register<M: Access, O: Wide, T: Word>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    let operand = cpu.gpr.read::<T>(op.r1);
    O::apply::<T>(cpu, operand)
}

fn wide_memory<M: Access, O: Wide, T: Word, A: Addressing>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    let at = A::linear(cpu, op, T::SIZE as u64, Use::Read)?;
    let operand = m.load::<T>(cpu, at)?;
    O::apply::<T>(cpu, operand.zero_extend())
}

#[inline(always)]
fn imul<T: Word>(cpu: &mut Cpu, destination: u8, a: u64, b: u64) -> Outcome {
    let (product, lost) = signed_product::<T>(a, b);
    cpu.gpr.write::<T>(destination, product as u64);
    cpu.flags.set_carry_overflow(lost, lost);
    Ok(())
}

fn imul_registers<M: Access, T: Word>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    let (a, b) = (cpu.gpr.read::<T>(op.r1), cpu.gpr.read::<T>(op.r2));
    imul::<T>(cpu, op.r1, a, b)
}

fn imul_memory<M: Access, T: Word, A: Addressing>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    let at = A::linear(cpu, op, T::SIZE as u64, Use::Read)?;
    let b = m.load::<T>(cpu, at)?.zero_extend();
    let a = cpu.gpr.read::<T>(op.r1);
    imul::<T>(cpu, op.r1, a, b)
}

fn imul_immediate_register<M: Access, T: Word>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    let a = cpu.gpr.read::<T>(op.r2);
    imul::<T>(cpu, op.r1, a, op.imm)
}

fn imul_immediate_memory<M: Access, T: Word, A: Addressing>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    let at = A::linear(cpu, op, T::SIZE as u64, Use::Read)?;
    let a = m.load::<T>(cpu, at)?.zero_extend();
    imul::<T>(cpu, op.r1, a, op.imm)
}

fn wide<M: Access, O: Wide>(table: &mut Table<M>, [byte, word, dword, qword]: [Code; 4]) {
    fn width<M: Access, O: Wide, T: Word>(table: &mut Table<M>, code: Code) {
        table.rm_flat(
            code,
            wide_register::<M, O, T>,
            wide_memory::<M, O, T, General>,
            wide_memory::<M, O, T, Flat>,
        );
    }
    width::<M, O, u8>(table, byte);
    width::<M, O, u16>(table, word);
    width::<M, O, u32>(table, dword);
    width::<M, O, u64>(table, qword);
}

/// IMUL with two operands, and with three (a wide and a byte immediate).
fn imul_rows<M: Access, T: Word>(table: &mut Table<M>, two: Code, three: [Code; 2]) {
    table.rm_flat(
        two,
        imul_registers::<M, T>,
        imul_memory::<M, T, General>,
        imul_memory::<M, T, Flat>,
    );
    for code in three {
        table.rm_flat(
            code,
            imul_immediate_register::<M, T>,
            imul_immediate_memory::<M, T, General>,
            imul_immediate_memory::<M, T, Flat>,
        );
    }
}

/// Adds the rows of this family.
#[rustfmt::skip]
pub(super) fn fill<M: Access>(table: &mut Table<M>) {
    use Code::*;
    wide::<M, Mul>(table, [Mul_rm8, Mul_rm16, Mul_rm32, Mul_rm64]);
    wide::<M, Imul>(table, [Imul_rm8, Imul_rm16, Imul_rm32, Imul_rm64]);
    wide::<M, Div>(table, [Div_rm8, Div_rm16, Div_rm32, Div_rm64]);
    wide::<M, Idiv>(table, [Idiv_rm8, Idiv_rm16, Idiv_rm32, Idiv_rm64]);
    imul_rows::<M, u16>(table, Imul_r16_rm16, [Imul_r16_rm16_imm16, Imul_r16_rm16_imm8]);
    imul_rows::<M, u32>(table, Imul_r32_rm32, [Imul_r32_rm32_imm32, Imul_r32_rm32_imm8]);
    imul_rows::<M, u64>(table, Imul_r64_rm64, [Imul_r64_rm64_imm32, Imul_r64_rm64_imm8]);
}

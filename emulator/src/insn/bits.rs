//! Single bits and counts of bits: BT BTS BTR BTC, BSF BSR, POPCNT TZCNT LZCNT.
//!
//! The flags that the SDM leaves undefined are as the processor at hand (AMD family 25) leaves them: BT and its kin change
//! CF alone, BSF and BSR ZF alone, TZCNT and LZCNT clear SF, AF and PF and keep OF.

use iced_x86::Code;

use crate::access::{Access, Outcome};
use crate::cpu::{Cpu, flags};
use crate::op::{Attr, Op};
use crate::operand::{Addressing, Flat, General, Use};
use crate::table::Table;
use crate::word::{Word, sign_extend};

/// What happens to the bit that is tested.
trait Change: 'static {
    const WRITES: bool;
    fn change(value: u64, mask: u64) -> u64;
}

/// BT.
struct Keep;
/// BTS.
struct Set;
/// BTR.
struct Reset;
/// BTC.
struct Complement;

impl Change for Keep {
    const WRITES: bool = false;

    #[inline(always)]
    fn change(value: u64, _: u64) -> u64 {
        value
    }
}

impl Change for Set {
    const WRITES: bool = true;

    #[inline(always)]
    fn change(value: u64, mask: u64) -> u64 {
        value | mask
    }
}

impl Change for Reset {
    const WRITES: bool = true;

    #[inline(always)]
    fn change(value: u64, mask: u64) -> u64 {
        value & !mask
    }
}

impl Change for Complement {
    const WRITES: bool = true;

    #[inline(always)]
    fn change(value: u64, mask: u64) -> u64 {
        value ^ mask
    }
}

/// The bit at this offset within the operand, as a mask.
#[inline(always)]
fn mask<T: Word>(offset: u64) -> u64 {
    1 << (offset & u64::from(T::BITS - 1))
}

#[inline(always)]
fn change_register<C: Change, T: Word>(cpu: &mut Cpu, register: u8, offset: u64) -> Outcome {
    let (value, mask) = (cpu.gpr.read::<T>(register), mask::<T>(offset));
    if C::WRITES {
        cpu.gpr.write::<T>(register, C::change(value, mask));
    }
    cpu.flags.set_carry(value & mask != 0);
    Ok(())
}

fn registers<M: Access, C: Change, T: Word>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    let offset = cpu.gpr.read::<T>(op.r2);
    change_register::<C, T>(cpu, op.r1, offset)
}

fn register_immediate<M: Access, C: Change, T: Word>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    change_register::<C, T>(cpu, op.r1, op.imm)
}

#[inline(always)]
fn change_memory<M: Access, C: Change, T: Word, A: Addressing>(
    cpu: &mut Cpu,
    m: &mut M,
    op: &Op<M>,
    mask: u64,
) -> Outcome {
    let old = if !C::WRITES {
        let at = A::linear(cpu, op, T::SIZE as u64, Use::Read)?;
        m.load::<T>(cpu, at)?
    } else {
        let at = A::linear(cpu, op, T::SIZE as u64, Use::Write)?;
        let change = |old: T| T::truncate(C::change(old.zero_extend(), mask));
        if op.attr.any(Attr::LOCK) {
            m.atomic::<T, _>(cpu, at, |old| (Some(change(old)), old))?
        } else {
            m.update::<T, _>(cpu, at, |old| (change(old), old))?
        }
    };
    cpu.flags.set_carry(old.zero_extend() & mask != 0);
    Ok(())
}

/// The offset in a register is signed and reaches beyond the operand: whole operands of it move the address.
fn memory_register<M: Access, C: Change, T: Word, A: Addressing>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    let offset = sign_extend::<T>(cpu.gpr.read::<T>(op.r1));
    let operands = (offset as i64 >> T::BITS.trailing_zeros()) as u64;
    let mut moved = *op;
    moved.disp = op.disp.wrapping_add(operands.wrapping_mul(T::SIZE as u64));
    change_memory::<M, C, T, A>(cpu, m, &moved, mask::<T>(offset))
}

fn memory_immediate<M: Access, C: Change, T: Word, A: Addressing>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    change_memory::<M, C, T, A>(cpu, m, op, mask::<T>(op.imm))
}

/// An operation that makes a count or a bit's number of its source.
trait Scan: 'static {
    /// The result (none: the destination stays as it is) and the status flags.
    fn scan<T: Word>(source: u64, status: u64) -> (Option<u64>, u64);
}

/// BSF.
struct Forward;
/// BSR.
struct Reverse;
/// POPCNT.
struct Population;
/// TZCNT.
struct TrailingZeros;
/// LZCNT.
struct LeadingZeros;

#[inline(always)]
fn first_bit(source: u64, status: u64, number: u32) -> (Option<u64>, u64) {
    if source == 0 {
        (None, status | flags::ZF)
    } else {
        (Some(u64::from(number)), status & !flags::ZF)
    }
}

#[inline(always)]
fn zero_count(source: u64, status: u64, count: u32) -> (Option<u64>, u64) {
    let carry = if source == 0 { flags::CF } else { 0 };
    let zero = if count == 0 { flags::ZF } else { 0 };
    (Some(u64::from(count)), status & flags::OF | carry | zero)
}

impl Scan for Forward {
    #[inline(always)]
    fn scan<T: Word>(source: u64, status: u64) -> (Option<u64>, u64) {
        first_bit(source, status, source.trailing_zeros())
    }
}

impl Scan for Reverse {
    #[inline(always)]
    fn scan<T: Word>(source: u64, status: u64) -> (Option<u64>, u64) {
        first_bit(source, status, 63 ^ source.leading_zeros())
    }
}

impl Scan for Population {
    #[inline(always)]
    fn scan<T: Word>(source: u64, _: u64) -> (Option<u64>, u64) {
        let zero = if source == 0 { flags::ZF } else { 0 };
        (Some(u64::from(source.count_ones())), zero)
    }
}

impl Scan for TrailingZeros {
    #[inline(always)]
    fn scan<T: Word>(source: u64, status: u64) -> (Option<u64>, u64) {
        zero_count(source, status, source.trailing_zeros().min(T::BITS))
    }
}

impl Scan for LeadingZeros {
    #[inline(always)]
    fn scan<T: Word>(source: u64, status: u64) -> (Option<u64>, u64) {
        zero_count(source, status, source.leading_zeros() - (64 - T::BITS))
    }
}

#[inline(always)]
fn scan<S: Scan, T: Word>(cpu: &mut Cpu, destination: u8, source: u64) -> Outcome {
    let (result, status) = S::scan::<T>(source, cpu.flags.status());
    if let Some(result) = result {
        cpu.gpr.write::<T>(destination, result);
    }
    cpu.flags.set_status(status);
    Ok(())
}

fn scan_register<M: Access, S: Scan, T: Word>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    let source = cpu.gpr.read::<T>(op.r2);
    scan::<S, T>(cpu, op.r1, source)
}

fn scan_memory<M: Access, S: Scan, T: Word, A: Addressing>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    let at = A::linear(cpu, op, T::SIZE as u64, Use::Read)?;
    let source = m.load::<T>(cpu, at)?;
    scan::<S, T>(cpu, op.r1, source.zero_extend())
}

/// The forms of 16, 32 and 64 bits with the offset in a register, and those with an immediate one.
fn test_rows<M: Access, C: Change>(table: &mut Table<M>, by_register: [Code; 3], by_immediate: [Code; 3]) {
    fn width<M: Access, C: Change, T: Word>(table: &mut Table<M>, by_register: Code, by_immediate: Code) {
        table.rm_flat(
            by_register,
            registers::<M, C, T>,
            memory_register::<M, C, T, General>,
            memory_register::<M, C, T, Flat>,
        );
        table.rm_flat(
            by_immediate,
            register_immediate::<M, C, T>,
            memory_immediate::<M, C, T, General>,
            memory_immediate::<M, C, T, Flat>,
        );
    }
    width::<M, C, u16>(table, by_register[0], by_immediate[0]);
    width::<M, C, u32>(table, by_register[1], by_immediate[1]);
    width::<M, C, u64>(table, by_register[2], by_immediate[2]);
}

fn scan_rows<M: Access, S: Scan>(table: &mut Table<M>, codes: [Code; 3]) {
    fn width<M: Access, S: Scan, T: Word>(table: &mut Table<M>, code: Code) {
        table.rm_flat(
            code,
            scan_register::<M, S, T>,
            scan_memory::<M, S, T, General>,
            scan_memory::<M, S, T, Flat>,
        );
    }
    width::<M, S, u16>(table, codes[0]);
    width::<M, S, u32>(table, codes[1]);
    width::<M, S, u64>(table, codes[2]);
}

/// Adds the rows of this family.
#[rustfmt::skip]
pub(super) fn fill<M: Access>(table: &mut Table<M>) {
    use Code::*;
    test_rows::<M, Keep>(table, [Bt_rm16_r16, Bt_rm32_r32, Bt_rm64_r64], [Bt_rm16_imm8, Bt_rm32_imm8, Bt_rm64_imm8]);
    test_rows::<M, Set>(table, [Bts_rm16_r16, Bts_rm32_r32, Bts_rm64_r64], [Bts_rm16_imm8, Bts_rm32_imm8, Bts_rm64_imm8]);
    test_rows::<M, Reset>(table, [Btr_rm16_r16, Btr_rm32_r32, Btr_rm64_r64], [Btr_rm16_imm8, Btr_rm32_imm8, Btr_rm64_imm8]);
    test_rows::<M, Complement>(table, [Btc_rm16_r16, Btc_rm32_r32, Btc_rm64_r64], [Btc_rm16_imm8, Btc_rm32_imm8, Btc_rm64_imm8]);
    scan_rows::<M, Forward>(table, [Bsf_r16_rm16, Bsf_r32_rm32, Bsf_r64_rm64]);
    scan_rows::<M, Reverse>(table, [Bsr_r16_rm16, Bsr_r32_rm32, Bsr_r64_rm64]);
    scan_rows::<M, Population>(table, [Popcnt_r16_rm16, Popcnt_r32_rm32, Popcnt_r64_rm64]);
    scan_rows::<M, TrailingZeros>(table, [Tzcnt_r16_rm16, Tzcnt_r32_rm32, Tzcnt_r64_rm64]);
    scan_rows::<M, LeadingZeros>(table, [Lzcnt_r16_rm16, Lzcnt_r32_rm32, Lzcnt_r64_rm64]);
}

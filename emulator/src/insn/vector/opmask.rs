//! Instructions on opmask registers. What is above their width becomes zero.

use iced_x86::Code::{self, *};

use crate::access::{Access, Outcome};
use crate::cpu::{Cpu, flags};
use crate::insn::available;
use crate::op::Op;
use crate::operand::{Addressing, General, Use};
use crate::table::Table;
use crate::word::Word;

/// An operation of two opmasks.
type Operation = fn(u64, u64) -> u64;

pub(super) fn fill<M: Access>(table: &mut Table<M>) {
    macro_rules! widths {
        ($row:ident: $($t:ty, $($code:ident)*;)*) => { $($($row::<M, $t>(table, $code);)*)* };
    }
    widths! { moves_in:
        u8, VEX_Kmovb_kr_km8; u16, VEX_Kmovw_kr_km16; u32, VEX_Kmovd_kr_km32; u64, VEX_Kmovq_kr_km64;
    }
    widths! { moves_out:
        u8, VEX_Kmovb_m8_kr; u16, VEX_Kmovw_m16_kr; u32, VEX_Kmovd_m32_kr; u64, VEX_Kmovq_m64_kr;
    }
    widths! { from_general:
        u8, VEX_Kmovb_kr_r32; u16, VEX_Kmovw_kr_r32; u32, VEX_Kmovd_kr_r32; u64, VEX_Kmovq_kr_r64;
    }
    widths! { to_general:
        u8, VEX_Kmovb_r32_kr; u16, VEX_Kmovw_r32_kr; u32, VEX_Kmovd_r32_kr; u64, VEX_Kmovq_r64_kr;
    }
    widths! { negations:
        u8, VEX_Knotb_kr_kr; u16, VEX_Knotw_kr_kr; u32, VEX_Knotd_kr_kr; u64, VEX_Knotq_kr_kr;
    }
    macro_rules! binary {
        ($($t:ty, $($code:ident $f:expr),*;)*) => {$($(
            table.plain($code, |cpu, _, op| {
                available::avx512(cpu)?;
                let f: Operation = $f;
                let value = f(get(cpu, op.r2), get(cpu, op.r3()));
                set::<$t>(cpu, op.r1, value);
                Ok(())
            });
        )*)*};
    }
    binary! {
        u8, VEX_Kandb_kr_kr_kr |a, b| a & b, VEX_Kandnb_kr_kr_kr |a, b| !a & b, VEX_Korb_kr_kr_kr |a, b| a | b,
            VEX_Kxorb_kr_kr_kr |a, b| a ^ b, VEX_Kxnorb_kr_kr_kr |a, b| !(a ^ b), VEX_Kaddb_kr_kr_kr u64::wrapping_add;
        u16, VEX_Kandw_kr_kr_kr |a, b| a & b, VEX_Kandnw_kr_kr_kr |a, b| !a & b, VEX_Korw_kr_kr_kr |a, b| a | b,
            VEX_Kxorw_kr_kr_kr |a, b| a ^ b, VEX_Kxnorw_kr_kr_kr |a, b| !(a ^ b), VEX_Kaddw_kr_kr_kr u64::wrapping_add,
            VEX_Kunpckbw_kr_kr_kr |a, b| a << 8 | b & 0xff;
        u32, VEX_Kandd_kr_kr_kr |a, b| a & b, VEX_Kandnd_kr_kr_kr |a, b| !a & b, VEX_Kord_kr_kr_kr |a, b| a | b,
            VEX_Kxord_kr_kr_kr |a, b| a ^ b, VEX_Kxnord_kr_kr_kr |a, b| !(a ^ b), VEX_Kaddd_kr_kr_kr u64::wrapping_add,
            VEX_Kunpckwd_kr_kr_kr |a, b| a << 16 | b & 0xffff;
        u64, VEX_Kandq_kr_kr_kr |a, b| a & b, VEX_Kandnq_kr_kr_kr |a, b| !a & b, VEX_Korq_kr_kr_kr |a, b| a | b,
            VEX_Kxorq_kr_kr_kr |a, b| a ^ b, VEX_Kxnorq_kr_kr_kr |a, b| !(a ^ b), VEX_Kaddq_kr_kr_kr u64::wrapping_add,
            VEX_Kunpckdq_kr_kr_kr |a, b| a << 32 | b & 0xffff_ffff;
    }
    macro_rules! shifts {
        ($($t:ty, $left:ident $right:ident;)*) => {$(
            table.plain($left, |cpu, _, op| shift::<M, $t>(cpu, op, |value, count| value << count));
            table.plain($right, |cpu, _, op| shift::<M, $t>(cpu, op, |value, count| value >> count));
        )*};
    }
    shifts! {
        u8, VEX_Kshiftlb_kr_kr_imm8 VEX_Kshiftrb_kr_kr_imm8;
        u16, VEX_Kshiftlw_kr_kr_imm8 VEX_Kshiftrw_kr_kr_imm8;
        u32, VEX_Kshiftld_kr_kr_imm8 VEX_Kshiftrd_kr_kr_imm8;
        u64, VEX_Kshiftlq_kr_kr_imm8 VEX_Kshiftrq_kr_kr_imm8;
    }
    macro_rules! tests {
        ($($t:ty, $or:ident $and:ident;)*) => {$(
            // ZF: nothing is set in either. CF: everything is set in one or the other.
            table.plain($or, |cpu, _, op| test::<M, $t>(cpu, op, |a, b| (a | b, !(a | b))));
            // ZF: nothing is set in both. CF: nothing is set in the second that is not in the first.
            table.plain($and, |cpu, _, op| test::<M, $t>(cpu, op, |a, b| (a & b, !a & b)));
        )*};
    }
    tests! {
        u8, VEX_Kortestb_kr_kr VEX_Ktestb_kr_kr;
        u16, VEX_Kortestw_kr_kr VEX_Ktestw_kr_kr;
        u32, VEX_Kortestd_kr_kr VEX_Ktestd_kr_kr;
        u64, VEX_Kortestq_kr_kr VEX_Ktestq_kr_kr;
    }
}

#[inline(always)]
fn get(cpu: &Cpu, register: u8) -> u64 {
    cpu.fpu.k[usize::from(register & 7)]
}

#[inline(always)]
fn set<T: Word>(cpu: &mut Cpu, register: u8, value: u64) {
    cpu.fpu.k[usize::from(register & 7)] = value & T::MASK;
}

fn moves_in<M: Access, T: Word>(table: &mut Table<M>, code: Code) {
    table.rm(
        code,
        |cpu, _, op| {
            available::avx512(cpu)?;
            let value = get(cpu, op.r2);
            set::<T>(cpu, op.r1, value);
            Ok(())
        },
        |cpu, m, op| {
            available::avx512(cpu)?;
            let at = General::linear(cpu, op, T::SIZE as u64, Use::Read)?;
            let value = m.load::<T>(cpu, at)?.zero_extend();
            set::<T>(cpu, op.r1, value);
            Ok(())
        },
    );
}

fn moves_out<M: Access, T: Word>(table: &mut Table<M>, code: Code) {
    table.plain(code, |cpu, m, op| {
        available::avx512(cpu)?;
        let at = General::linear(cpu, op, T::SIZE as u64, Use::Write)?;
        m.store(cpu, at, T::truncate(get(cpu, op.r1)))
    });
}

fn from_general<M: Access, T: Word>(table: &mut Table<M>, code: Code) {
    table.plain(code, |cpu, _, op| {
        available::avx512(cpu)?;
        let value = cpu.gpr.get(op.r2);
        set::<T>(cpu, op.r1, value);
        Ok(())
    });
}

fn to_general<M: Access, T: Word>(table: &mut Table<M>, code: Code) {
    table.plain(code, |cpu, _, op| {
        available::avx512(cpu)?;
        cpu.gpr.set(op.r1, get(cpu, op.r2) & T::MASK);
        Ok(())
    });
}

fn negations<M: Access, T: Word>(table: &mut Table<M>, code: Code) {
    table.plain(code, |cpu, _, op| {
        available::avx512(cpu)?;
        let value = !get(cpu, op.r2);
        set::<T>(cpu, op.r1, value);
        Ok(())
    });
}

fn shift<M: Access, T: Word>(cpu: &mut Cpu, op: &Op<M>, f: fn(u64, u32) -> u64) -> Outcome {
    available::avx512(cpu)?;
    let count = u32::from(op.imm8());
    let value = if count < T::BITS {
        f(get(cpu, op.r2) & T::MASK, count)
    } else {
        0
    };
    set::<T>(cpu, op.r1, value);
    Ok(())
}

/// Sets ZF and CF if the first and the second result are zero.
fn test<M: Access, T: Word>(cpu: &mut Cpu, op: &Op<M>, f: fn(u64, u64) -> (u64, u64)) -> Outcome {
    available::avx512(cpu)?;
    let (zero, carry) = f(get(cpu, op.r1), get(cpu, op.r2));
    let zero = if zero & T::MASK == 0 { flags::ZF } else { 0 };
    let carry = if carry & T::MASK == 0 { flags::CF } else { 0 };
    cpu.flags.set_status(zero | carry);
    Ok(())
}

//! Floating point in XMM registers: SSE, SSE2, and what SSE3 and SSE4.1 added.
//!
//! Each operation runs on the host under the guest's rounding, DAZ and FTZ with everything masked (see
//! [`native`](crate::native)); which exception the guest gets follows from the flags raised. An operation that
//! raises #XM leaves its destination, but MXCSR says why (SDM Vol. 1, SIMD Floating-Point Exceptions).

pub(super) mod classify;
pub(super) mod compare;
pub(super) mod convert;
pub(super) mod dot;
pub(super) mod exceptions;
pub(super) mod exponent;
pub(super) mod format;
pub(super) mod function;
pub(super) mod horizontal;
pub(super) mod range;
pub(super) mod reciprocal;
pub(super) mod round;

use iced_x86::Code::*;

use super::vector::{Kernel, chunk};
use super::{available, sse_int};
use crate::access::{Access, Outcome, Stop};
use crate::cpu::{Cpu, flags};
use crate::native::sse::{self, Compare, FromInteger, Operation, ToInteger};
use crate::op::Op;
use crate::operand::{Addressing, General, Use};
use crate::table::Table;
use crate::word::Word;

/// The comparison whose predicate is the immediate; of a legacy encoding only its low three bits count.
macro_rules! predicated {
    ($op:ident, $cpu:expr, $instruction:expr, $source:expr) => {
        match $instruction.imm & 7 {
            0 => update::<sse::$op<0>>($cpu, $instruction.r1, $source),
            1 => update::<sse::$op<1>>($cpu, $instruction.r1, $source),
            2 => update::<sse::$op<2>>($cpu, $instruction.r1, $source),
            3 => update::<sse::$op<3>>($cpu, $instruction.r1, $source),
            4 => update::<sse::$op<4>>($cpu, $instruction.r1, $source),
            5 => update::<sse::$op<5>>($cpu, $instruction.r1, $source),
            6 => update::<sse::$op<6>>($cpu, $instruction.r1, $source),
            _ => update::<sse::$op<7>>($cpu, $instruction.r1, $source),
        }
    };
}
pub(super) fn fill<M: Access>(table: &mut Table<M>) {
    macro_rules! rows {
        ($size:literal: $($op:ident $code:ident,)*) => {
            $(table.rm($code, registers::<M, sse::$op>, memory::<M, sse::$op, $size>);)*
        };
    }
    rows! { 16:
        Addps Addps_xmm_xmmm128, Addpd Addpd_xmm_xmmm128, Subps Subps_xmm_xmmm128, Subpd Subpd_xmm_xmmm128,
        Mulps Mulps_xmm_xmmm128, Mulpd Mulpd_xmm_xmmm128, Divps Divps_xmm_xmmm128, Divpd Divpd_xmm_xmmm128,
        Minps Minps_xmm_xmmm128, Minpd Minpd_xmm_xmmm128, Maxps Maxps_xmm_xmmm128, Maxpd Maxpd_xmm_xmmm128,
        Sqrtps Sqrtps_xmm_xmmm128, Sqrtpd Sqrtpd_xmm_xmmm128,
        Rcpps Rcpps_xmm_xmmm128, Rsqrtps Rsqrtps_xmm_xmmm128,
        Cvtpd2ps Cvtpd2ps_xmm_xmmm128, Cvtdq2ps Cvtdq2ps_xmm_xmmm128,
        Cvtps2dq Cvtps2dq_xmm_xmmm128, Cvttps2dq Cvttps2dq_xmm_xmmm128,
        Cvtpd2dq Cvtpd2dq_xmm_xmmm128, Cvttpd2dq Cvttpd2dq_xmm_xmmm128,
    }
    rows! { 8:
        Addsd Addsd_xmm_xmmm64, Subsd Subsd_xmm_xmmm64, Mulsd Mulsd_xmm_xmmm64, Divsd Divsd_xmm_xmmm64,
        Minsd Minsd_xmm_xmmm64, Maxsd Maxsd_xmm_xmmm64, Sqrtsd Sqrtsd_xmm_xmmm64,
        Cvtps2pd Cvtps2pd_xmm_xmmm64, Cvtsd2ss Cvtsd2ss_xmm_xmmm64, Cvtdq2pd Cvtdq2pd_xmm_xmmm64,
    }
    rows! { 4:
        Addss Addss_xmm_xmmm32, Subss Subss_xmm_xmmm32, Mulss Mulss_xmm_xmmm32, Divss Divss_xmm_xmmm32,
        Minss Minss_xmm_xmmm32, Maxss Maxss_xmm_xmmm32, Sqrtss Sqrtss_xmm_xmmm32,
        Rcpss Rcpss_xmm_xmmm32, Rsqrtss Rsqrtss_xmm_xmmm32, Cvtss2sd Cvtss2sd_xmm_xmmm32,
    }
    macro_rules! comparisons {
        ($($op:ident $code:ident $size:literal,)*) => {$(
            table.rm(
                $code,
                |cpu, _, op| {
                    available::sse(cpu)?;
                    let source = cpu.fpu.xmm(op.r2);
                    predicated!($op, cpu, op, source)
                },
                |cpu, m, op| {
                    available::sse(cpu)?;
                    let source = operand::<M, $size>(cpu, m, op)?;
                    predicated!($op, cpu, op, source)
                },
            );
        )*};
    }
    comparisons! {
        Cmpps Cmpps_xmm_xmmm128_imm8 16, Cmppd Cmppd_xmm_xmmm128_imm8 16,
        Cmpss Cmpss_xmm_xmmm32_imm8 4, Cmpsd Cmpsd_xmm_xmmm64_imm8 8,
    }
    macro_rules! compares {
        ($($op:ident $code:ident,)*) => {
            $(table.rm($code, compare::<M, sse::$op>, compare_memory::<M, sse::$op>);)*
        };
    }
    compares! {
        Comiss Comiss_xmm_xmmm32, Ucomiss Ucomiss_xmm_xmmm32, Comisd Comisd_xmm_xmmm64, Ucomisd Ucomisd_xmm_xmmm64,
    }
    integers(table);
    mmx(table);
    later(table);
}

/// SSE3 and SSE4.1, by the kernels of the VEX forms.
fn later<M: Access>(table: &mut Table<M>) {
    macro_rules! rows {
        ($($kernel:path, $code:ident $size:literal $count:literal,)*) => {$(
            table.rm(
                $code,
                |cpu, _, op| {
                    available::sse(cpu)?;
                    let source = cpu.fpu.xmm(op.r2);
                    compute_by($kernel, $count, cpu, op.r1, source, op.imm as u8)
                },
                |cpu, m, op| {
                    available::sse(cpu)?;
                    let source = operand::<M, $size>(cpu, m, op)?;
                    compute_by($kernel, $count, cpu, op.r1, source, op.imm as u8)
                },
            );
        )*};
    }
    rows! {
        horizontal::addsubps, Addsubps_xmm_xmmm128 16 4, horizontal::addsubpd, Addsubpd_xmm_xmmm128 16 2,
        horizontal::haddps, Haddps_xmm_xmmm128 16 4, horizontal::haddpd, Haddpd_xmm_xmmm128 16 2,
        horizontal::hsubps, Hsubps_xmm_xmmm128 16 4, horizontal::hsubpd, Hsubpd_xmm_xmmm128 16 2,
        dot::dpps, Dpps_xmm_xmmm128_imm8 16 4, dot::dppd, Dppd_xmm_xmmm128_imm8 16 2,
    }
    rows! {
        round::roundps, Roundps_xmm_xmmm128_imm8 16 4, round::roundpd, Roundpd_xmm_xmmm128_imm8 16 2,
        round::roundss, Roundss_xmm_xmmm32_imm8 4 1, round::roundsd, Roundsd_xmm_xmmm64_imm8 8 1,
    }
}

/// Computes the first `count` elements by a kernel.
fn compute_by(kernel: Kernel, count: u32, cpu: &mut Cpu, register: u8, source: [u8; 16], imm: u8) -> Outcome {
    let mut lanes = function::legacy(cpu.fpu.xmm(register), source, imm, (1 << count) - 1, cpu.fpu.mxcsr);
    kernel(&mut lanes);
    exceptions::raise(cpu, lanes.raised)?;
    cpu.fpu.set_xmm(register, chunk(&lanes.a, 0));
    Ok(())
}

/// Conversions between XMM and general-purpose registers.
fn integers<M: Access>(table: &mut Table<M>) {
    macro_rules! to {
        ($($op:ident $code:ident,)*) => {
            $(table.rm($code, to_integer::<M, sse::$op>, to_integer_memory::<M, sse::$op>);)*
        };
    }
    to! {
        Cvtss2si32 Cvtss2si_r32_xmmm32, Cvtss2si64 Cvtss2si_r64_xmmm32,
        Cvttss2si32 Cvttss2si_r32_xmmm32, Cvttss2si64 Cvttss2si_r64_xmmm32,
        Cvtsd2si32 Cvtsd2si_r32_xmmm64, Cvtsd2si64 Cvtsd2si_r64_xmmm64,
        Cvttsd2si32 Cvttsd2si_r32_xmmm64, Cvttsd2si64 Cvttsd2si_r64_xmmm64,
    }
    macro_rules! from {
        ($($op:ident $code:ident $width:ty,)*) => {
            $(table.rm($code, from_integer::<M, sse::$op, $width>, from_integer_memory::<M, sse::$op, $width>);)*
        };
    }
    from! {
        Cvtsi2ss32 Cvtsi2ss_xmm_rm32 u32, Cvtsi2ss64 Cvtsi2ss_xmm_rm64 u64,
        Cvtsi2sd32 Cvtsi2sd_xmm_rm32 u32, Cvtsi2sd64 Cvtsi2sd_xmm_rm64 u64,
    }
}

/// Conversions between XMM and MMX registers. They compute as those between XMM registers do, and leave the x87 state in
/// MMX use if an MMX register is involved (the processor at hand; SDM Vol. 2 has CVTPI2PS do so with memory, too).
fn mmx<M: Access>(table: &mut Table<M>) {
    macro_rules! to {
        ($($op:ident $code:ident $size:literal,)*) => {
            $(table.rm($code, to_mmx::<M, sse::$op, $size>, to_mmx_memory::<M, sse::$op, $size>);)*
        };
    }
    to! {
        Cvtps2dq Cvtps2pi_mm_xmmm64 8, Cvttps2dq Cvttps2pi_mm_xmmm64 8,
        Cvtpd2dq Cvtpd2pi_mm_xmmm128 16, Cvttpd2dq Cvttpd2pi_mm_xmmm128 16,
    }
    table.rm(
        Cvtpi2pd_xmm_mmm64,
        |cpu, _, op| {
            available::sse_mmx(cpu)?;
            let source = low(cpu.fpu.mm(op.r2));
            cpu.fpu.enter_mmx();
            update::<sse::Cvtdq2pd>(cpu, op.r1, source)
        },
        memory::<M, sse::Cvtdq2pd, 8>,
    );
    table.rm(
        Cvtpi2ps_xmm_mmm64,
        |cpu, _, op| {
            available::sse_mmx(cpu)?;
            let source = low(cpu.fpu.mm(op.r2));
            cpu.fpu.enter_mmx();
            packed_to_low_singles(cpu, op.r1, source)
        },
        |cpu, m, op| {
            available::sse(cpu)?;
            let source = operand::<M, 8>(cpu, m, op)?;
            packed_to_low_singles(cpu, op.r1, source)
        },
    );
}

/// CVTPI2PS: two integers become the low two singles; the others stay.
fn packed_to_low_singles(cpu: &mut Cpu, register: u8, source: [u8; 16]) -> Outcome {
    let (singles, raised) = sse::Cvtdq2ps::run(source, source, cpu.fpu.mxcsr);
    exceptions::raise(cpu, raised)?;
    cpu.fpu.set_xmm_low(register, u128::from_le_bytes(singles) as u64);
    Ok(())
}

/// 8 bytes as the low half of 16.
fn low(value: u64) -> [u8; 16] {
    u128::from(value).to_le_bytes()
}

/// A memory operand of 4, 8 or 16 bytes; the last must be aligned.
#[inline(always)]
fn operand<M: Access, const SIZE: u64>(cpu: &Cpu, m: &mut M, op: &Op<M>) -> Result<[u8; 16], Stop> {
    if SIZE == 16 {
        return sse_int::operand::<M, General>(cpu, m, op);
    }
    let at = General::linear(cpu, op, SIZE, Use::Read)?;
    Ok(low(match SIZE {
        4 => u64::from(m.load::<u32>(cpu, at)?),
        _ => m.load::<u64>(cpu, at)?,
    }))
}

/// A memory operand of 4 or 8 bytes.
fn scalar<M: Access>(cpu: &Cpu, m: &mut M, op: &Op<M>, size: u64) -> Result<[u8; 16], Stop> {
    match size {
        4 => operand::<M, 4>(cpu, m, op),
        _ => operand::<M, 8>(cpu, m, op),
    }
}

/// Computes, raises exceptions, and writes the destination.
#[inline(always)]
fn update<O: Operation>(cpu: &mut Cpu, register: u8, source: [u8; 16]) -> Outcome {
    let destination = cpu.fpu.xmm(register);
    let value = exceptions::compute::<O>(cpu, destination, source)?;
    cpu.fpu.set_xmm(register, value);
    Ok(())
}

fn registers<M: Access, O: Operation>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    available::sse(cpu)?;
    let source = cpu.fpu.xmm(op.r2);
    update::<O>(cpu, op.r1, source)
}

fn memory<M: Access, O: Operation, const SIZE: u64>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    available::sse(cpu)?;
    let source = operand::<M, SIZE>(cpu, m, op)?;
    update::<O>(cpu, op.r1, source)
}

fn compare<M: Access, O: Compare>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    available::sse(cpu)?;
    let source = cpu.fpu.xmm(op.r2);
    set_flags::<O>(cpu, op.r1, source)
}

fn compare_memory<M: Access, O: Compare>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    available::sse(cpu)?;
    let source = scalar(cpu, m, op, O::SIZE)?;
    set_flags::<O>(cpu, op.r1, source)
}

/// COMISS and its kin: ZF, PF and CF from the comparison, OF, SF and AF clear.
fn set_flags<O: Compare>(cpu: &mut Cpu, register: u8, source: [u8; 16]) -> Outcome {
    let (outcome, raised) = O::run(cpu.fpu.xmm(register), source, cpu.fpu.mxcsr);
    exceptions::raise(cpu, raised)?;
    cpu.flags.set_status(outcome & (flags::ZF | flags::PF | flags::CF));
    Ok(())
}

fn to_integer<M: Access, O: ToInteger>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    available::sse(cpu)?;
    set_integer::<O>(cpu, op.r1, cpu.fpu.xmm(op.r2))
}

fn to_integer_memory<M: Access, O: ToInteger>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    available::sse(cpu)?;
    let source = scalar(cpu, m, op, O::SIZE)?;
    set_integer::<O>(cpu, op.r1, source)
}

fn set_integer<O: ToInteger>(cpu: &mut Cpu, register: u8, source: [u8; 16]) -> Outcome {
    let (integer, raised) = O::run(source, cpu.fpu.mxcsr);
    exceptions::raise(cpu, raised)?;
    cpu.gpr.set(register, integer);
    Ok(())
}

fn from_integer<M: Access, O: FromInteger, T: Word>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    available::sse(cpu)?;
    let integer = cpu.gpr.read::<T>(op.r2);
    set_from_integer::<O>(cpu, op.r1, integer)
}

fn from_integer_memory<M: Access, O: FromInteger, T: Word>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    available::sse(cpu)?;
    let at = General::linear(cpu, op, T::SIZE as u64, Use::Read)?;
    let integer = m.load::<T>(cpu, at)?.zero_extend();
    set_from_integer::<O>(cpu, op.r1, integer)
}

fn set_from_integer<O: FromInteger>(cpu: &mut Cpu, register: u8, integer: u64) -> Outcome {
    let (value, raised) = O::run(cpu.fpu.xmm(register), integer, cpu.fpu.mxcsr);
    exceptions::raise(cpu, raised)?;
    cpu.fpu.set_xmm(register, value);
    Ok(())
}

fn to_mmx<M: Access, O: Operation, const SIZE: u64>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    available::sse_mmx(cpu)?;
    // Of singles only the low two are converted; the others must not raise anything.
    let source = match SIZE {
        8 => low(cpu.fpu.xmm_low(op.r2)),
        _ => cpu.fpu.xmm(op.r2),
    };
    set_mmx::<O>(cpu, op.r1, source)
}

fn to_mmx_memory<M: Access, O: Operation, const SIZE: u64>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    available::sse_mmx(cpu)?;
    let source = operand::<M, SIZE>(cpu, m, op)?;
    set_mmx::<O>(cpu, op.r1, source)
}

fn set_mmx<O: Operation>(cpu: &mut Cpu, register: u8, source: [u8; 16]) -> Outcome {
    // The processor at hand goes over to MMX use even if the conversion then raises #XM.
    cpu.fpu.enter_mmx();
    let value = exceptions::compute::<O>(cpu, source, source)?;
    cpu.fpu.set_mm(register, u128::from_le_bytes(value) as u64);
    Ok(())
}

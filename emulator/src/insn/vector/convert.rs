//! Conversions between floating-point formats and integers.

use iced_x86::Mnemonic::*;

use super::form::Row;
use super::lanes::Lanes;
use crate::insn::shuffle::Lane;
use crate::insn::sse_float::convert::{Integer, elements, from_integer, half_to_single, single_to_half, to_integer};
use crate::insn::sse_float::exceptions::evaluate;
use crate::insn::sse_float::format::{Format, Rounding};
use crate::insn::sse_float::function::{Chunk, Function, scalar};
use crate::native::sse;

pub(super) fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    formats(&mut rows);
    packed_integers(&mut rows);
    scalar_integers(&mut rows);
    rows
}

fn formats(rows: &mut Vec<Row>) {
    rows.extend([
        Row::new(Vcvtps2pd, 8, |lanes| {
            evaluate(&const { Function::host::<sse::Cvtps2pd>(4, 8) }, lanes);
        })
        .from(4),
        Row::new(Vcvtpd2ps, 4, |lanes| {
            evaluate(&const { Function::host::<sse::Cvtpd2ps>(8, 4) }, lanes);
        })
        .from(8),
        Row::new(Vcvtss2sd, 8, |lanes| {
            scalar(&const { Function::host::<sse::Cvtps2pd>(4, 8) }, lanes);
        })
        .from(4)
        .scalar(),
        Row::new(Vcvtsd2ss, 4, |lanes| {
            scalar(&const { Function::host::<sse::Cvtpd2ps>(8, 4) }, lanes);
        })
        .from(8)
        .scalar(),
        Row::new(Vcvtph2ps, 4, |lanes| {
            evaluate(&Function::own(2, 4, half_to_single), lanes);
        })
        .from(2),
        Row::new(Vcvtps2ph, 2, |lanes| {
            evaluate(&Function::own(4, 2, single_to_half), lanes);
        })
        .from(4),
    ]);
}

fn packed_integers(rows: &mut Vec<Row>) {
    macro_rules! host {
        ($($mnemonic:ident $op:ident $source:literal $result:literal,)*) => {
            rows.extend([$(
                Row::new($mnemonic, $result, |lanes| {
                    evaluate(&const { Function::host::<sse::$op>($source, $result) }, lanes);
                })
                .from($source),
            )*]);
        };
    }
    host! {
        Vcvtdq2ps Cvtdq2ps 4 4, Vcvtps2dq Cvtps2dq 4 4, Vcvttps2dq Cvttps2dq 4 4,
        Vcvtdq2pd Cvtdq2pd 4 8, Vcvtpd2dq Cvtpd2dq 8 4, Vcvttpd2dq Cvttpd2dq 8 4,
    }
    macro_rules! steps {
        ($($mnemonic:ident $source:literal $result:literal $step:expr;)*) => {
            rows.extend([$(
                Row::new($mnemonic, $result, |lanes| evaluate(&const { Function::own($source, $result, $step) }, lanes))
                    .from($source),
            )*]);
        };
    }
    steps! {
        Vcvtps2udq 4 4 |chunk| rounded(chunk, 4, Integer::U32);
        Vcvttps2udq 4 4 |chunk| truncated(chunk, 4, Integer::U32);
        Vcvtpd2udq 8 4 |chunk| rounded(chunk, 8, Integer::U32);
        Vcvttpd2udq 8 4 |chunk| truncated(chunk, 8, Integer::U32);
        Vcvtps2qq 4 8 |chunk| rounded(chunk, 4, Integer::I64);
        Vcvttps2qq 4 8 |chunk| truncated(chunk, 4, Integer::I64);
        Vcvtps2uqq 4 8 |chunk| rounded(chunk, 4, Integer::U64);
        Vcvttps2uqq 4 8 |chunk| truncated(chunk, 4, Integer::U64);
        Vcvtpd2qq 8 8 |chunk| rounded(chunk, 8, Integer::I64);
        Vcvttpd2qq 8 8 |chunk| truncated(chunk, 8, Integer::I64);
        Vcvtpd2uqq 8 8 |chunk| rounded(chunk, 8, Integer::U64);
        Vcvttpd2uqq 8 8 |chunk| truncated(chunk, 8, Integer::U64);
        Vcvtudq2ps 4 4 |chunk| float(chunk, Integer::U32, 4);
        Vcvtudq2pd 4 8 |chunk| float(chunk, Integer::U32, 8);
        Vcvtqq2ps 8 4 |chunk| float(chunk, Integer::I64, 4);
        Vcvtqq2pd 8 8 |chunk| float(chunk, Integer::I64, 8);
        Vcvtuqq2ps 8 4 |chunk| float(chunk, Integer::U64, 4);
        Vcvtuqq2pd 8 8 |chunk| float(chunk, Integer::U64, 8);
    }
}

fn rounded(chunk: &Chunk, size: usize, integer: Integer) -> ([u8; 16], u32) {
    integers(chunk, size, integer, Rounding::of(chunk.mxcsr))
}

fn truncated(chunk: &Chunk, size: usize, integer: Integer) -> ([u8; 16], u32) {
    integers(chunk, size, integer, Rounding::Truncate)
}

/// Values of `size` bytes to integers.
fn integers(chunk: &Chunk, size: usize, integer: Integer, rounding: Rounding) -> ([u8; 16], u32) {
    elements(chunk, size, integer.width as usize / 8, |value| {
        to_integer(Format::of_size(size), value, integer, rounding, chunk.mxcsr)
    })
}

/// Integers to values of `size` bytes.
fn float(chunk: &Chunk, integer: Integer, size: usize) -> ([u8; 16], u32) {
    elements(chunk, integer.width as usize / 8, size, |bits| {
        from_integer(Format::of_size(size), bits, integer, chunk.mxcsr)
    })
}

/// Between vector and general-purpose registers, which have 32 or 64 bits.
fn scalar_integers(rows: &mut Vec<Row>) {
    rows.extend([
        Row::new(Vcvtss2si, 4, |lanes| to_general::<4, true>(lanes, false)).scalar(),
        Row::new(Vcvttss2si, 4, |lanes| to_general::<4, true>(lanes, true)).scalar(),
        Row::new(Vcvtsd2si, 8, |lanes| to_general::<8, true>(lanes, false)).scalar(),
        Row::new(Vcvttsd2si, 8, |lanes| to_general::<8, true>(lanes, true)).scalar(),
        Row::new(Vcvtss2usi, 4, |lanes| to_general::<4, false>(lanes, false)).scalar(),
        Row::new(Vcvttss2usi, 4, |lanes| to_general::<4, false>(lanes, true)).scalar(),
        Row::new(Vcvtsd2usi, 8, |lanes| to_general::<8, false>(lanes, false)).scalar(),
        Row::new(Vcvttsd2usi, 8, |lanes| to_general::<8, false>(lanes, true)).scalar(),
        Row::new(Vcvtsi2ss, 4, from_general::<4, true>).scalar(),
        Row::new(Vcvtsi2sd, 8, from_general::<8, true>).scalar(),
        Row::new(Vcvtusi2ss, 4, from_general::<4, false>).scalar(),
        Row::new(Vcvtusi2sd, 8, from_general::<8, false>).scalar(),
    ]);
}

fn general<const SIGNED: bool>(lanes: &Lanes) -> Integer {
    Integer {
        width: 8 * lanes.general as u32,
        is_signed: SIGNED,
    }
}

fn to_general<const SIZE: usize, const SIGNED: bool>(lanes: &mut Lanes, truncates: bool) {
    let value = u64::get(&lanes.c, 0) & u64::MAX >> (64 - 8 * SIZE);
    let rounding = match truncates {
        true => Rounding::Truncate,
        false => Rounding::of(lanes.mxcsr),
    };
    let (integer, flags) = to_integer(
        Format::of_size(SIZE),
        value,
        general::<SIGNED>(lanes),
        rounding,
        lanes.mxcsr,
    );
    lanes.raised |= flags;
    integer.put(&mut lanes.a, 0);
}

/// What is above the first element comes from the first source.
fn from_general<const SIZE: usize, const SIGNED: bool>(lanes: &mut Lanes) {
    let integer = u64::get(&lanes.c, 0);
    let (value, flags) = from_integer(Format::of_size(SIZE), integer, general::<SIGNED>(lanes), lanes.mxcsr);
    lanes.raised |= flags;
    lanes.a = lanes.b;
    lanes.a[..SIZE].copy_from_slice(&value.to_le_bytes()[..SIZE]);
}

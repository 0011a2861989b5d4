//! Conversions between formats and integers for which the host has no instruction.

use super::format::{Format, Number, Rounding};
use super::function::Chunk;
use crate::native::sse::{DAZ, DE, FTZ, IE, PE};

/// An integer's width in bits and whether it has a sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::insn) struct Integer {
    pub width: u32,
    pub is_signed: bool,
}

impl Integer {
    /// Signed, 64 bits.
    pub const I64: Integer = Integer {
        width: 64,
        is_signed: true,
    };
    /// Unsigned, 32 bits.
    pub const U32: Integer = Integer {
        width: 32,
        is_signed: false,
    };
    /// Unsigned, 64 bits.
    pub const U64: Integer = Integer {
        width: 64,
        is_signed: false,
    };

    /// What an invalid conversion gives: the least of signed integers, the largest of unsigned ones.
    const fn indefinite(self) -> u64 {
        if self.is_signed {
            1 << (self.width - 1)
        } else {
            u64::MAX >> (64 - self.width)
        }
    }
}

/// A value as an integer, zero-extended, and the flags. Denormal operands raise nothing but precision.
pub(in crate::insn) fn to_integer(
    format: Format,
    value: u64,
    integer: Integer,
    rounding: Rounding,
    mxcsr: u32,
) -> (u64, u32) {
    if format.is_nan(value) || format.is_infinite(value) {
        return (integer.indefinite(), IE);
    }
    let number = format.number(format.flushed(value, mxcsr));
    if number.significand != 0 && number.magnitude() > 64 {
        return (integer.indefinite(), IE);
    }
    let (magnitude, inexact) = number.to_integer(0, rounding);
    let limit = match (integer.is_signed, number.sign) {
        (true, true) => 1 << (integer.width - 1),
        (true, false) => (1 << (integer.width - 1)) - 1,
        (false, true) => 0,
        (false, false) => (1 << integer.width) - 1,
    };
    if magnitude > limit {
        return (integer.indefinite(), IE);
    }
    let signed = if number.sign {
        (magnitude as u64).wrapping_neg()
    } else {
        magnitude as u64
    };
    (signed & u64::MAX >> (64 - integer.width), if inexact { PE } else { 0 })
}

/// An integer (its upper bits are ignored) as a value, and the flags.
pub(in crate::insn) fn from_integer(format: Format, bits: u64, integer: Integer, mxcsr: u32) -> (u64, u32) {
    let unused = 64 - integer.width;
    let (sign, magnitude) = if integer.is_signed {
        let value = (bits << unused) as i64 >> unused;
        (value < 0, value.unsigned_abs())
    } else {
        (false, bits & u64::MAX >> unused)
    };
    let number = Number {
        sign,
        significand: magnitude.into(),
        exponent: 0,
        sticky: false,
    };
    if magnitude == 0 {
        return (0, 0);
    }
    format.round(number, mxcsr)
}

/// A value in another format, and the flags; a NaN becomes quiet and keeps the top of its payload.
fn resize(from: Format, to: Format, value: u64, mxcsr: u32) -> (u64, u32) {
    let sign = if from.is_negative(value) { to.sign() } else { 0 };
    if from.is_nan(value) {
        let payload = value & (from.quiet() - 1);
        let payload = if to.fraction < from.fraction {
            payload >> (from.fraction - to.fraction)
        } else {
            payload << (to.fraction - from.fraction)
        };
        let flags = if from.is_signalling(value) { IE } else { 0 };
        return (sign | to.infinity() | to.quiet() | payload, flags);
    }
    if from.is_infinite(value) {
        return (sign | to.infinity(), 0);
    }
    to.round(from.number(value), mxcsr)
}

/// VCVTPH2PS: denormal halves are normal singles, and raise nothing, whatever DAZ says.
pub(in crate::insn) fn half_to_single(chunk: &Chunk) -> ([u8; 16], u32) {
    elements(chunk, 2, 4, |value| {
        resize(Format::HALF, Format::SINGLE, value, chunk.mxcsr)
    })
}

/// VCVTPS2PH: rounding as the immediate's low two bits say, or, with bit 2, as MXCSR does; FTZ has no effect.
pub(in crate::insn) fn single_to_half(chunk: &Chunk) -> ([u8; 16], u32) {
    let mut mxcsr = chunk.mxcsr & !FTZ;
    if chunk.imm & 4 == 0 {
        mxcsr = mxcsr & !0x6000 | u32::from(chunk.imm & 3) << 13;
    }
    elements(chunk, 4, 2, |value| {
        let denormal = mxcsr & DAZ == 0 && Format::SINGLE.is_denormal(value);
        let flushed = Format::SINGLE.flushed(value, mxcsr);
        let (half, flags) = resize(Format::SINGLE, Format::HALF, flushed, mxcsr);
        (half, flags | if denormal { DE } else { 0 })
    })
}

/// Applies `f` to the elements of `source` bytes; those of the result have `result` bytes. The flags of all.
pub(in crate::insn) fn elements(
    chunk: &Chunk,
    source: usize,
    result: usize,
    mut f: impl FnMut(u64) -> (u64, u32),
) -> ([u8; 16], u32) {
    let from = u128::from_le_bytes(chunk.c);
    let (mut out, mut flags) = (0, 0);
    for i in 0..16 / source.max(result) {
        let value = (from >> (8 * source * i)) as u64 & u64::MAX >> (64 - 8 * source);
        let (value, raised) = f(value);
        out |= u128::from(value) << (8 * result * i);
        flags |= raised;
    }
    (out.to_le_bytes(), flags)
}

#[cfg(test)]
mod tests {
    use super::super::format::MASKED;
    use super::*;

    const I32: Integer = Integer {
        width: 32,
        is_signed: true,
    };

    fn integer(value: f64, integer: Integer, rounding: Rounding) -> (u64, u32) {
        to_integer(Format::DOUBLE, value.to_bits(), integer, rounding, MASKED)
    }

    #[test]
    fn the_least_and_the_largest_integers_convert() {
        use Rounding::Nearest;
        assert_eq!(integer(-2147483648.0, I32, Nearest), (0x8000_0000, 0));
        assert_eq!(integer(2147483648.0, I32, Nearest), (0x8000_0000, IE));
        assert_eq!(integer(2147483647.5, I32, Nearest), (0x8000_0000, IE));
        assert_eq!(integer(4294967295.0, Integer::U32, Nearest), (0xffff_ffff, 0));
        assert_eq!(integer(4294967296.0, Integer::U32, Nearest), (0xffff_ffff, IE));
        assert_eq!(
            integer(18446744073709549568.0, Integer::U64, Nearest),
            (0xffff_ffff_ffff_f800, 0)
        );
        assert_eq!(integer(18446744073709551616.0, Integer::U64, Nearest), (u64::MAX, IE));
        assert_eq!(integer(-9223372036854775808.0, Integer::I64, Nearest), (1 << 63, 0));
        assert_eq!(integer(1e300, Integer::U64, Nearest), (u64::MAX, IE));
    }

    #[test]
    fn a_negative_value_is_an_unsigned_integer_only_if_it_rounds_to_zero() {
        assert_eq!(integer(-0.5, Integer::U32, Rounding::Nearest), (0, PE));
        assert_eq!(integer(-0.5, Integer::U32, Rounding::Down), (0xffff_ffff, IE));
        assert_eq!(integer(-0.75, Integer::U32, Rounding::Truncate), (0, PE));
        assert_eq!(integer(-0.0, Integer::U32, Rounding::Down), (0, 0));
    }

    #[test]
    fn integers_round_as_mxcsr_says() {
        let single = |bits, mxcsr| from_integer(Format::SINGLE, bits, Integer::U32, mxcsr);
        assert_eq!(single(u64::MAX, MASKED), (0x4f80_0000, PE));
        assert_eq!(single(u64::MAX, MASKED | 1 << 13), (0x4f7f_ffff, PE));
        let signed = from_integer(Format::DOUBLE, u64::MAX, Integer::I64, MASKED);
        assert_eq!(signed, ((-1.0_f64).to_bits(), 0));
    }

    #[test]
    fn halves_convert_both_ways() {
        for (half, single) in [
            (0x3c00, 1.0),
            (1, 5.960_464_5e-8),
            (0x7bff, 65504.0),
            (0xfc00, f32::NEG_INFINITY),
        ] {
            assert_eq!(
                resize(Format::HALF, Format::SINGLE, half, MASKED),
                (f32::to_bits(single).into(), 0)
            );
            assert_eq!(
                resize(Format::SINGLE, Format::HALF, f32::to_bits(single).into(), MASKED),
                (half, 0)
            );
        }
        assert_eq!(resize(Format::HALF, Format::SINGLE, 0x7c01, MASKED), (0x7fc0_2000, IE));
    }
}

//! Approximate reciprocals and reciprocal square roots: VRCP14, VRSQRT14.
//!
//! Their relative error must be below 2^−14; which value comes out, the makers of processors choose each in their own way.
//! Here it is the exact value cut to 17 bits, so that powers of two come out exact, and every host gives the same.
//! They raise nothing, round as no control says, and heed DAZ and FTZ.

use super::exceptions::evaluate;
use super::format::{Format, Number};
use super::function::{Chunk, Function, kernels, pairs, scalar};
use crate::insn::vector::Lanes;
use crate::native::sse::{FTZ, MASKS};

kernels! {
    /// VRCP14PS.
    rcp14ps 4 evaluate reciprocals;
    /// VRCP14PD.
    rcp14pd 8 evaluate reciprocals;
    /// VRCP14SS.
    rcp14ss 4 scalar reciprocals;
    /// VRCP14SD.
    rcp14sd 8 scalar reciprocals;
    /// VRSQRT14PS.
    rsqrt14ps 4 evaluate reciprocal_roots;
    /// VRSQRT14PD.
    rsqrt14pd 8 evaluate reciprocal_roots;
    /// VRSQRT14SS.
    rsqrt14ss 4 scalar reciprocal_roots;
    /// VRSQRT14SD.
    rsqrt14sd 8 scalar reciprocal_roots;
}

fn reciprocals(format: Format, chunk: &Chunk) -> ([u8; 16], u32) {
    pairs(format, chunk, |_, value| (reciprocal(format, value, chunk.mxcsr), 0))
}

fn reciprocal_roots(format: Format, chunk: &Chunk) -> ([u8; 16], u32) {
    pairs(format, chunk, |_, value| {
        (reciprocal_root(format, value, chunk.mxcsr), 0)
    })
}

/// Bits of a result below its highest one.
const PRECISION: i32 = 17;
/// Bits of a significand below its highest one, while computing.
const FRACTION: i32 = 52;

/// A value that is neither zero nor infinite nor NaN: its significand, in units of 2^−52 at least 1.0 and below 2.0, and
/// its exponent.
fn parts(format: Format, value: u64) -> (u128, i32) {
    let number = format.number(value);
    let shift = FRACTION as u32 - number.significand.ilog2();
    (number.significand << shift, number.magnitude())
}

/// A result of few bits, which fit exactly but for FTZ and overflow.
fn exact(format: Format, sign: bool, significand: u128, exponent: i32, mxcsr: u32) -> u64 {
    let number = Number {
        sign,
        significand,
        exponent,
        sticky: false,
    };
    format.round(number, mxcsr & FTZ | MASKS).0
}

fn reciprocal(format: Format, value: u64, mxcsr: u32) -> u64 {
    if format.is_nan(value) {
        return value | format.quiet();
    }
    let value = format.flushed(value, mxcsr);
    let sign = value & format.sign();
    if format.is_zero(value) {
        return sign | format.infinity();
    }
    if format.is_infinite(value) {
        return sign;
    }
    let (significand, exponent) = parts(format, value);
    let quotient = (1 << (FRACTION + PRECISION)) / significand;
    exact(format, sign != 0, quotient, -exponent - PRECISION, mxcsr)
}

fn reciprocal_root(format: Format, value: u64, mxcsr: u32) -> u64 {
    if format.is_nan(value) {
        return value | format.quiet();
    }
    let value = format.flushed(value, mxcsr);
    if format.is_zero(value) {
        return value | format.infinity();
    }
    if format.is_negative(value) {
        return format.indefinite();
    }
    if format.is_infinite(value) {
        return 0;
    }
    let (significand, exponent) = parts(format, value);
    let odd = exponent & 1;
    let square = (1_u128 << (FRACTION + 2 * PRECISION)) / (significand << odd);
    exact(format, false, square.isqrt(), -(exponent - odd) / 2 - PRECISION, mxcsr)
}

#[cfg(test)]
mod tests {
    use super::super::format::MASKED;
    use super::*;
    use crate::native::sse::DAZ;

    fn single(f: fn(Format, u64, u32) -> u64, value: u64, mxcsr: u32) -> u64 {
        f(Format::SINGLE, value, mxcsr | MASKED)
    }

    #[test]
    fn the_relative_error_is_below_two_to_the_minus_fourteen() {
        let mut value = 1.0_f64;
        while value < 1e300 {
            let reciprocal = f64::from_bits(reciprocal(Format::DOUBLE, value.to_bits(), MASKED));
            assert!((reciprocal * value - 1.0).abs() < 1.0 / 16384.0, "{value}");
            let root = f64::from_bits(reciprocal_root(Format::DOUBLE, value.to_bits(), MASKED));
            assert!((root * value.sqrt() - 1.0).abs() < 1.0 / 16384.0, "{value}");
            value *= 1.71;
        }
    }

    #[test]
    fn powers_of_two_are_exact() {
        for exponent in -1022_i32..=1022 {
            let power = |exponent: i32| f64::from_bits(((exponent + 1023) as u64) << 52);
            let of =
                |f: fn(Format, u64, u32) -> u64| f64::from_bits(f(Format::DOUBLE, power(exponent).to_bits(), MASKED));
            assert_eq!(of(reciprocal), power(-exponent));
            if exponent % 2 == 0 {
                assert_eq!(of(reciprocal_root), power(-exponent / 2));
            }
        }
    }

    #[test]
    fn reciprocals_at_the_ends_of_the_range() {
        // 2^-128 overflows, the next greater value does not.
        assert_eq!(single(reciprocal, 0x20_0000, 0), 0x7f80_0000);
        assert_eq!(single(reciprocal, 0x8020_0000, 0), 0xff80_0000);
        assert_eq!(single(reciprocal, 0x20_0001, 0), 0x7f7f_ff80);
        assert_eq!(single(reciprocal, 0x7f00_0000, 0), 0x40_0000);
        assert_eq!(single(reciprocal, 0xff00_0000, FTZ), 0x8000_0000);
        assert_eq!(single(reciprocal, 1, DAZ), 0x7f80_0000);
        assert_eq!(single(reciprocal, 0x8000_0000, 0), 0xff80_0000);
        assert_eq!(single(reciprocal, 0xff80_0000, 0), 0x8000_0000);
        assert_eq!(single(reciprocal, 0xff80_0001, 0), 0xffc0_0001);
    }

    #[test]
    fn only_what_is_not_negative_has_a_root() {
        assert_eq!(single(reciprocal_root, 0xbf80_0000, 0), 0xffc0_0000);
        assert_eq!(single(reciprocal_root, 0xff80_0000, 0), 0xffc0_0000);
        assert_eq!(single(reciprocal_root, 0x8000_0001, 0), 0xffc0_0000);
        assert_eq!(single(reciprocal_root, 0x8000_0001, DAZ), 0xff80_0000);
        assert_eq!(single(reciprocal_root, 0x8000_0000, 0), 0xff80_0000);
        assert_eq!(single(reciprocal_root, 0x7f80_0000, 0), 0);
        assert_eq!(single(reciprocal_root, 0x7f80_0001, 0), 0x7fc0_0001);
        // 2^-148
        assert_eq!(single(reciprocal_root, 2, 0), (127 + 74) << 23);
    }
}

//! Exponents and significands apart: VGETEXP, VGETMANT, VSCALEF (SDM Vol. 2, their tables of special cases).

use super::convert::{Integer, from_integer};
use super::exceptions::evaluate;
use super::format::{Format, Number, Rounding};
use super::function::{Chunk, Function, kernels, pairs, scalar};
use crate::insn::vector::Lanes;
use crate::native::sse::{DE, IE};

kernels! {
    /// VGETEXPPS.
    getexpps 4 evaluate exponents;
    /// VGETEXPPD.
    getexppd 8 evaluate exponents;
    /// VGETEXPSS.
    getexpss 4 scalar exponents;
    /// VGETEXPSD.
    getexpsd 8 scalar exponents;
    /// VGETMANTPS.
    getmantps 4 evaluate significands;
    /// VGETMANTPD.
    getmantpd 8 evaluate significands;
    /// VGETMANTSS.
    getmantss 4 scalar significands;
    /// VGETMANTSD.
    getmantsd 8 scalar significands;
    /// VSCALEFPS.
    scalefps 4 evaluate scaled;
    /// VSCALEFPD.
    scalefpd 8 evaluate scaled;
    /// VSCALEFSS.
    scalefss 4 scalar scaled;
    /// VSCALEFSD.
    scalefsd 8 scalar scaled;
}

fn exponents(format: Format, chunk: &Chunk) -> ([u8; 16], u32) {
    pairs(format, chunk, |_, value| exponent(format, value, chunk.mxcsr))
}

fn significands(format: Format, chunk: &Chunk) -> ([u8; 16], u32) {
    pairs(format, chunk, |_, value| {
        significand(format, value, chunk.imm, chunk.mxcsr)
    })
}

fn scaled(format: Format, chunk: &Chunk) -> ([u8; 16], u32) {
    pairs(format, chunk, |a, b| scale(format, a, b, chunk.mxcsr))
}

/// DE for a denormal that DAZ has left.
fn denormal(format: Format, value: u64) -> u32 {
    if format.is_denormal(value) { DE } else { 0 }
}

/// The exponent, as a value.
fn exponent(format: Format, value: u64, mxcsr: u32) -> (u64, u32) {
    if format.is_nan(value) {
        return format.quieted(value);
    }
    if format.is_infinite(value) {
        return (format.infinity(), 0);
    }
    let value = format.flushed(value, mxcsr);
    if format.is_zero(value) {
        return (format.sign() | format.infinity(), 0);
    }
    let exponent = i64::from(format.number(value).magnitude());
    // Exact in either format.
    let (exponent, _) = from_integer(format, exponent as u64, Integer::I64, mxcsr);
    (exponent, denormal(format, value))
}

/// The significand, in the interval that immediate bits 1:0 choose, with the sign that bits 3:2 choose.
fn significand(format: Format, value: u64, imm: u8, mxcsr: u32) -> (u64, u32) {
    if format.is_nan(value) {
        return format.quieted(value);
    }
    let value = format.flushed(value, mxcsr);
    let sign = if imm & 4 != 0 { 0 } else { value & format.sign() };
    if format.is_zero(value) {
        return (sign | format.one(), 0);
    }
    if imm & 8 != 0 && format.is_negative(value) {
        return (format.indefinite(), IE);
    }
    if format.is_infinite(value) {
        return (sign | format.one(), 0);
    }
    let number = format.number(value);
    let normal = (number.significand as u64) << (format.fraction - number.significand.ilog2());
    let fraction = normal & (format.hidden() - 1);
    let is_halved = match imm & 3 {
        0 => false,
        1 => number.magnitude() & 1 != 0,
        2 => true,
        _ => fraction & format.quiet() != 0,
    };
    let exponent = format.one() - if is_halved { format.hidden() } else { 0 };
    (sign | exponent | fraction, denormal(format, value))
}

/// a × 2^⌊b⌋. A denormal b raises nothing.
fn scale(format: Format, a: u64, b: u64, mxcsr: u32) -> (u64, u32) {
    let is_invalid = format.is_signalling(a) || format.is_signalling(b);
    let invalid = if is_invalid { IE } else { 0 };
    let signed_limit = |sign: u64| {
        let limit = if format.is_negative(b) { 0 } else { format.infinity() };
        sign | limit
    };
    if format.is_nan(a) {
        if format.is_infinite(b) && !is_invalid {
            return (signed_limit(0), 0);
        }
        return (a | format.quiet(), invalid);
    }
    if format.is_nan(b) {
        return (b | format.quiet(), invalid);
    }
    let a = format.flushed(a, mxcsr);
    let b = format.flushed(b, mxcsr);
    if format.is_infinite(b) {
        let has_none = if format.is_negative(b) {
            format.is_infinite(a)
        } else {
            format.is_zero(a)
        };
        if has_none {
            return (format.indefinite(), IE);
        }
        return (signed_limit(a & format.sign()), denormal(format, a));
    }
    if format.is_zero(a) || format.is_infinite(a) {
        return (a, 0);
    }
    let number = format.number(a);
    let scaled = Number {
        exponent: number.exponent + floor(format.number(b)),
        ..number
    };
    let (value, flags) = format.round(scaled, mxcsr);
    (value, flags | denormal(format, a))
}

/// The largest integer that is not above a number; far outside all exponents, any such integer.
fn floor(number: Number) -> i32 {
    const FAR: i32 = 1 << 16;
    let magnitude = match number.significand {
        0 => 0,
        _ if number.magnitude() >= 16 => FAR,
        _ => number.to_integer(0, Rounding::Down).0 as i32,
    };
    if number.sign { -magnitude } else { magnitude }
}

#[cfg(test)]
mod tests {
    use super::super::format::MASKED;
    use super::*;
    use crate::native::sse::{DAZ, OE, PE, UE};

    const NAN: u64 = 0x7fc0_0123;
    const SIGNALLING: u64 = 0x7f80_0123;
    const INFINITY: u64 = 0x7f80_0000;
    const SIGN: u64 = 0x8000_0000;
    const INDEFINITE: u64 = 0xffc0_0000;

    fn bits(value: f32) -> u64 {
        value.to_bits().into()
    }

    #[test]
    fn exponents_are_those_of_normal_numbers_whatever_the_sign() {
        let of = |value| exponent(Format::SINGLE, value, MASKED);
        assert_eq!(of(bits(-10.0)), (bits(3.0), 0));
        assert_eq!(of(bits(1.9)), (0, 0));
        assert_eq!(of(bits(0.25)), (bits(-2.0), 0));
        assert_eq!(of(1), (bits(-149.0), DE));
        assert_eq!(exponent(Format::SINGLE, 1, MASKED | DAZ), (SIGN | INFINITY, 0));
        assert_eq!(of(0), (SIGN | INFINITY, 0));
        assert_eq!(of(SIGN | INFINITY), (INFINITY, 0));
        assert_eq!(of(SIGN | SIGNALLING), (SIGN | NAN, IE));
        assert_eq!(exponent(Format::DOUBLE, 1, MASKED), ((-1074.0_f64).to_bits(), DE));
    }

    #[test]
    fn significands_are_in_the_interval_of_the_immediate() {
        let of = |value, imm| significand(Format::SINGLE, bits(value), imm, MASKED);
        for (imm, expected) in [
            (0, [1.25, 1.75]),
            (1, [0.625, 1.75]),
            (2, [0.625, 0.875]),
            (3, [1.25, 0.875]),
        ] {
            assert_eq!(of(10.0, imm), (bits(expected[0]), 0));
            assert_eq!(of(7.0, imm), (bits(expected[1]), 0));
        }
        assert_eq!(of(-10.0, 0), (bits(-1.25), 0));
        assert_eq!(of(-10.0, 4), (bits(1.25), 0));
        assert_eq!(of(-10.0, 8), (INDEFINITE, IE));
        assert_eq!(of(-10.0, 12), (INDEFINITE, IE));
    }

    #[test]
    fn significands_of_what_has_none() {
        let of = |value, imm| significand(Format::SINGLE, value, imm, MASKED);
        assert_eq!(of(SIGN, 8), (bits(-1.0), 0));
        assert_eq!(of(SIGN, 4), (bits(1.0), 0));
        assert_eq!(of(SIGN | INFINITY, 2), (bits(-1.0), 0));
        assert_eq!(of(SIGN | INFINITY, 8), (INDEFINITE, IE));
        assert_eq!(of(INFINITY, 8), (bits(1.0), 0));
        assert_eq!(of(SIGN | SIGNALLING, 8), (SIGN | NAN, IE));
        assert_eq!(of(SIGN | NAN, 8), (SIGN | NAN, 0));
    }

    #[test]
    fn denormals_have_significands_like_others() {
        let of = |value, imm| significand(Format::SINGLE, value, imm, MASKED);
        // 3 × 2^-149: 1.5 × 2^-148.
        assert_eq!(of(3, 0), (bits(1.5), DE));
        assert_eq!(of(3, 1), (bits(1.5), DE));
        assert_eq!(of(6, 1), (bits(0.75), DE));
        assert_eq!(of(SIGN | 3, 8), (INDEFINITE, IE));
        assert_eq!(significand(Format::SINGLE, SIGN | 3, 8, MASKED | DAZ), (bits(-1.0), 0));
    }

    #[test]
    fn a_scale_is_rounded_down() {
        let of = |a, b| scale(Format::SINGLE, bits(a), bits(b), MASKED);
        assert_eq!(of(3.0, 2.9), (bits(12.0), 0));
        assert_eq!(of(-3.0, -0.5), (bits(-1.5), 0));
        assert_eq!(of(3.0, -1e-45), (bits(1.5), 0));
        assert_eq!(scale(Format::SINGLE, bits(3.0), SIGN | 1, MASKED | DAZ), (bits(3.0), 0));
        assert_eq!(of(1.0, 1e30), (INFINITY, OE | PE));
        assert_eq!(of(-1.0, -1e30), (SIGN, UE | PE));
        assert_eq!(of(1.5, -149.0), (2, UE | PE));
        assert_eq!(scale(Format::SINGLE, 1, bits(149.0), MASKED), (bits(1.0), DE));
    }

    #[test]
    fn infinite_scales_make_zeros_and_infinities() {
        let of = |a, b| scale(Format::SINGLE, a, b, MASKED);
        assert_eq!(of(bits(-2.0), INFINITY), (SIGN | INFINITY, 0));
        assert_eq!(of(bits(-2.0), SIGN | INFINITY), (SIGN, 0));
        assert_eq!(of(NAN, INFINITY), (INFINITY, 0));
        assert_eq!(of(NAN, SIGN | INFINITY), (0, 0));
        assert_eq!(of(SIGNALLING, INFINITY), (NAN, IE));
        assert_eq!(of(SIGN, INFINITY), (INDEFINITE, IE));
        assert_eq!(of(INFINITY, SIGN | INFINITY), (INDEFINITE, IE));
        assert_eq!(of(SIGN | INFINITY, INFINITY), (SIGN | INFINITY, 0));
        assert_eq!(of(INFINITY, bits(-7.0)), (INFINITY, 0));
        assert_eq!(of(SIGN, bits(7.0)), (SIGN, 0));
        assert_eq!(of(INFINITY, SIGNALLING), (NAN, IE));
        assert_eq!(of(NAN, SIGNALLING | 0x80), (NAN, IE));
    }
}

//! Rounding to integers and to fixed-point fractions: ROUNDPS and its kin.

use super::exceptions::evaluate;
use super::format::{Format, Number, Rounding};
use super::function::{Chunk, Function, kernels, pairs, scalar};
use crate::insn::vector::Lanes;
use crate::native::sse::{MASKS, PE};

kernels! {
    /// ROUNDPS.
    roundps 4 evaluate to_integer;
    /// ROUNDPD.
    roundpd 8 evaluate to_integer;
    /// ROUNDSS.
    roundss 4 scalar to_integer;
    /// ROUNDSD.
    roundsd 8 scalar to_integer;
    /// VRNDSCALEPS.
    rndscaleps 4 evaluate to_fraction;
    /// VRNDSCALEPD.
    rndscalepd 8 evaluate to_fraction;
    /// VRNDSCALESS.
    rndscaless 4 scalar to_fraction;
    /// VRNDSCALESD.
    rndscalesd 8 scalar to_fraction;
    /// VREDUCEPS.
    reduceps 4 evaluate reductions;
    /// VREDUCEPD.
    reducepd 8 evaluate reductions;
    /// VREDUCESS.
    reducess 4 scalar reductions;
    /// VREDUCESD.
    reducesd 8 scalar reductions;
}

/// Immediate bits 7:4 are reserved.
fn to_integer(format: Format, chunk: &Chunk) -> ([u8; 16], u32) {
    pairs(format, chunk, |_, value| {
        round(format, value, 0, chunk.imm, chunk.mxcsr)
    })
}

/// Immediate bits 7:4 say how many bits of the fraction are kept.
fn to_fraction(format: Format, chunk: &Chunk) -> ([u8; 16], u32) {
    let scale = i32::from(chunk.imm >> 4);
    pairs(format, chunk, |_, value| {
        round(format, value, scale, chunk.imm, chunk.mxcsr)
    })
}

fn reductions(format: Format, chunk: &Chunk) -> ([u8; 16], u32) {
    pairs(format, chunk, |_, value| reduce(format, value, chunk.imm, chunk.mxcsr))
}

/// Rounds a value to a multiple of 2^−`scale` as the low four bits of `imm` say: 1:0 rounding, or, with bit 2, MXCSR's;
/// with bit 3 silently. Denormal operands raise nothing.
pub(super) fn round(format: Format, value: u64, scale: i32, imm: u8, mxcsr: u32) -> (u64, u32) {
    if format.is_nan(value) {
        return format.quieted(value);
    }
    let value = format.flushed(value, mxcsr);
    if format.is_infinite(value) || format.is_zero(value) {
        return (value, 0);
    }
    let rounding = rounding(imm, mxcsr);
    let number = format.number(value);
    if number.exponent >= -scale {
        return (value, 0);
    }
    let (integer, inexact) = number.to_integer(-scale, rounding);
    let flags = if inexact && imm & 8 == 0 { PE } else { 0 };
    let sign = value & format.sign();
    if integer == 0 {
        return (sign, flags);
    }
    // No more bits than the value had, or a power of two: exact.
    let top = integer.ilog2();
    let biased = (top as i32 - scale + format.bias()) as u64;
    let significand = (integer as u64) << (format.fraction - top);
    (sign | (((biased - 1) << format.fraction) + significand), flags)
}

/// What rounding takes from a value, rounded in the same way; the immediate is that of VRNDSCALE.
fn reduce(format: Format, value: u64, imm: u8, mxcsr: u32) -> (u64, u32) {
    if format.is_nan(value) {
        return format.quieted(value);
    }
    if format.is_infinite(value) {
        return (0, 0);
    }
    let value = format.flushed(value, mxcsr);
    let rounding = rounding(imm, mxcsr);
    let zero = if rounding == Rounding::Down { format.sign() } else { 0 };
    let number = format.number(value);
    let unit = -i32::from(imm >> 4);
    if format.is_zero(value) || number.exponent >= unit {
        return (zero, 0);
    }
    let (integer, inexact) = number.to_integer(unit, rounding);
    let flags = if inexact && imm & 8 == 0 { PE } else { 0 };
    let shift = unit.abs_diff(number.exponent);
    let difference = match integer {
        0 => return (value, flags),
        // So small beside the 1 that it became that only the rounding feels it.
        1 if shift > 124 => Number {
            sign: !number.sign,
            significand: (1 << 70) - 1,
            exponent: unit - 70,
            sticky: true,
        },
        _ => {
            let rounded = integer << shift;
            Number {
                sign: number.sign != (rounded > number.significand),
                significand: rounded.abs_diff(number.significand),
                ..number
            }
        }
    };
    if difference.significand == 0 {
        return (zero, flags);
    }
    let control = MASKS | (rounding as u32) << 13;
    (format.round(difference, control).0, flags)
}

/// The rounding that an immediate chooses in its low three bits.
fn rounding(imm: u8, mxcsr: u32) -> Rounding {
    match imm & 4 {
        0 => Rounding::from_number(imm.into()),
        _ => Rounding::of(mxcsr),
    }
}

#[cfg(test)]
mod tests {
    use super::super::format::MASKED;
    use super::*;
    use crate::native::sse::{DAZ, FTZ, IE};

    fn double(value: f64, imm: u8) -> (f64, u32) {
        let (bits, flags) = round(Format::DOUBLE, value.to_bits(), 0, imm, MASKED);
        (f64::from_bits(bits), flags)
    }

    #[test]
    fn the_immediate_chooses_the_rounding() {
        for (imm, expected) in [
            (0, [2.0, 2.0, -2.0]),
            (1, [1.0, 2.0, -3.0]),
            (2, [2.0, 3.0, -2.0]),
            (3, [1.0, 2.0, -2.0]),
        ] {
            for (value, expected) in [1.5, 2.5, -2.5].into_iter().zip(expected) {
                assert_eq!(double(value, imm), (expected, PE), "{value} by {imm}");
            }
        }
        assert_eq!(double(1.5, 8), (2.0, 0));
        assert_eq!(double(0.5, 0), (0.0, PE));
        assert_eq!(double(4.5e15 + 0.5, 3), (4.5e15, PE));
    }

    #[test]
    fn a_negative_value_that_becomes_zero_stays_negative() {
        assert_eq!(double(-0.25, 0).0.to_bits(), (-0.0_f64).to_bits());
        assert_eq!(double(-f64::from_bits(1), 2).0.to_bits(), (-0.0_f64).to_bits());
    }

    #[test]
    fn large_values_and_infinities_are_integers() {
        assert_eq!(double(1e300, 1), (1e300, 0));
        assert_eq!(double(f64::NEG_INFINITY, 1), (f64::NEG_INFINITY, 0));
    }

    #[test]
    fn a_signalling_nan_is_invalid_and_becomes_quiet() {
        assert_eq!(round(Format::SINGLE, 0x7f80_0001, 0, 8, MASKED), (0x7fc0_0001, IE));
        assert_eq!(round(Format::SINGLE, 0xffc0_0001, 0, 0, MASKED), (0xffc0_0001, 0));
    }

    fn reduced(value: f64, imm: u8) -> (f64, u32) {
        let (bits, flags) = reduce(Format::DOUBLE, value.to_bits(), imm, MASKED);
        (f64::from_bits(bits), flags)
    }

    #[test]
    fn a_reduction_is_what_rounding_took() {
        assert_eq!(reduced(2.75, 0), (-0.25, PE));
        assert_eq!(reduced(2.75, 8), (-0.25, 0));
        assert_eq!(reduced(2.75, 1), (0.75, PE));
        assert_eq!(reduced(-2.75, 2), (-0.75, PE));
        assert_eq!(reduced(-2.75, 3), (-0.75, PE));
        assert_eq!(reduced(2.75, 0x10), (-0.25, PE));
        assert_eq!(reduced(2.8125, 0x20), (0.0625, PE));
        assert_eq!(reduced(0.25, 0), (0.25, PE));
        // With MXCSR's rounding.
        assert_eq!(reduced(2.75, 4), (-0.25, PE));
    }

    #[test]
    fn a_reduction_that_leaves_nothing_is_zero_negative_only_when_rounding_down() {
        for value in [0.0, -0.0, 3.0, -3.0, 1e300] {
            for (imm, bits) in [(0, 0), (1, 1 << 63), (2, 0), (3, 0)] {
                assert_eq!(
                    (reduced(value, imm).0.to_bits(), reduced(value, imm).1),
                    (bits, 0),
                    "{value} {imm}"
                );
            }
        }
    }

    #[test]
    fn a_reduction_of_an_infinity_is_a_positive_zero_whatever_the_rounding() {
        for value in [f64::INFINITY, f64::NEG_INFINITY] {
            for imm in 0..4 {
                assert_eq!(
                    reduce(Format::DOUBLE, value.to_bits(), imm, MASKED),
                    (0, 0),
                    "{value} {imm}"
                );
            }
        }
    }

    #[test]
    fn a_reduction_of_a_tiny_value_is_rounded_too() {
        let below_one = 1.0 - f64::EPSILON / 2.0;
        assert_eq!(reduced(1e-300, 2), (-below_one, PE));
        assert_eq!(reduced(-1e-300, 1), (below_one, PE));
        assert_eq!(reduced(1e-300, 1), (1e-300, PE));
        let small = f64::from_bits(0x3cb8_17ed_c77f_f000);
        assert_eq!(reduced(small, 0x32), (-f64::from_bits(0x3fbf_ffff_ffff_ffe7), PE));
        let tiny = |mxcsr| reduce(Format::DOUBLE, 1, 0, mxcsr | MASKED);
        assert_eq!(tiny(FTZ), (1, PE));
        assert_eq!(tiny(DAZ), (0, 0));
        assert_eq!(reduce(Format::SINGLE, 0x7f80_0001, 8, MASKED), (0x7fc0_0001, IE));
    }
}

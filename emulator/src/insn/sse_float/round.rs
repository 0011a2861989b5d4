//! Rounding to integers and to fixed-point fractions: ROUNDPS and its kin.

use super::exceptions::evaluate;
use super::format::{Format, Rounding};
use super::function::{Chunk, Function, scalar};
use crate::insn::vector::Lanes;
use crate::native::sse::{IE, PE};

macro_rules! kernels {
    ($($(#[$doc:meta])* $name:ident $size:literal $run:ident $step:ident;)*) => {$(
        $(#[$doc])*
        pub(in crate::insn) fn $name(lanes: &mut Lanes) {
            $run(&const { Function::own($size, $size, |chunk| $step(Format::of_size($size), chunk)) }, lanes);
        }
    )*};
}

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
}

/// Immediate bits 7:4 are reserved.
fn to_integer(format: Format, chunk: &Chunk) -> ([u8; 16], u32) {
    each(format, chunk.c, |value| round(format, value, 0, chunk.imm, chunk.mxcsr))
}

/// Immediate bits 7:4 say how many bits of the fraction are kept.
fn to_fraction(format: Format, chunk: &Chunk) -> ([u8; 16], u32) {
    let scale = i32::from(chunk.imm >> 4);
    each(format, chunk.c, |value| {
        round(format, value, scale, chunk.imm, chunk.mxcsr)
    })
}

/// Rounds a value to a multiple of 2^−`scale` as the low four bits of `imm` say: 1:0 rounding, or, with bit 2, MXCSR's;
/// with bit 3 silently. Denormal operands raise nothing.
pub(super) fn round(format: Format, value: u64, scale: i32, imm: u8, mxcsr: u32) -> (u64, u32) {
    if format.is_nan(value) {
        let flags = if format.is_signalling(value) { IE } else { 0 };
        return (value | format.quiet(), flags);
    }
    let value = format.flushed(value, mxcsr);
    if format.is_infinite(value) || format.is_zero(value) {
        return (value, 0);
    }
    let rounding = match imm & 4 {
        0 => Rounding::from_number(imm.into()),
        _ => Rounding::of(mxcsr),
    };
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

/// Every element of 16 bytes; the flags of all.
pub(super) fn each(format: Format, bytes: [u8; 16], mut f: impl FnMut(u64) -> (u64, u32)) -> ([u8; 16], u32) {
    let mask = u128::from(u64::MAX >> (64 - format.width));
    let value = u128::from_le_bytes(bytes);
    let (mut out, mut flags) = (0, 0);
    for at in (0..128).step_by(format.width as usize) {
        let (element, raised) = f((value >> at & mask) as u64);
        out |= u128::from(element) << at;
        flags |= raised;
    }
    (out.to_le_bytes(), flags)
}

#[cfg(test)]
mod tests {
    use super::super::format::MASKED;
    use super::*;

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
}

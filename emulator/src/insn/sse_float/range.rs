//! VRANGE: the smaller or the greater of two values, or of their magnitudes, with a sign of choice (SDM Vol. 2, VRANGEPD).

use super::exceptions::evaluate;
use super::format::Format;
use super::function::{Chunk, Function, kernels, pairs, scalar};
use crate::insn::vector::Lanes;
use crate::native::sse::{DAZ, DE, IE};

kernels! {
    /// VRANGEPS.
    rangeps 4 evaluate ranges;
    /// VRANGEPD.
    rangepd 8 evaluate ranges;
    /// VRANGESS.
    rangess 4 scalar ranges;
    /// VRANGESD.
    rangesd 8 scalar ranges;
}

fn ranges(format: Format, chunk: &Chunk) -> ([u8; 16], u32) {
    pairs(format, chunk, |a, b| range(format, a, b, chunk.imm, chunk.mxcsr))
}

/// Immediate bit 0: the greater one; bit 1: of the magnitudes; bits 3:2: which sign.
fn range(format: Format, a: u64, b: u64, imm: u8, mxcsr: u32) -> (u64, u32) {
    if let Some(nan) = [a, b].into_iter().find(|value| format.is_signalling(*value)) {
        return (nan | format.quiet(), IE);
    }
    let (nan_a, nan_b) = (format.is_nan(a), format.is_nan(b));
    let is_denormal = format.is_denormal(a) && !nan_b || format.is_denormal(b) && !nan_a;
    let flags = if is_denormal && mxcsr & DAZ == 0 { DE } else { 0 };
    let a = format.flushed(a, mxcsr);
    let b = format.flushed(b, mxcsr);
    let chosen = if nan_b {
        a
    } else if nan_a {
        b
    } else {
        let is_less = if imm & 2 == 0 {
            key(format, a) <= key(format, b)
        } else {
            // Of equal magnitudes, the negative one is the smaller.
            let by_magnitude = format.magnitude(a).cmp(&format.magnitude(b));
            by_magnitude.then(key(format, a).cmp(&key(format, b))).is_le()
        };
        if is_less != (imm & 1 != 0) { a } else { b }
    };
    let sign = match imm >> 2 & 3 {
        0 => a & format.sign(),
        1 => chosen & format.sign(),
        2 => 0,
        _ => format.sign(),
    };
    (sign | format.magnitude(chosen), flags)
}

/// An integer that is in the order of the values, −0 below +0.
fn key(format: Format, value: u64) -> i64 {
    let magnitude = format.magnitude(value) as i64;
    if format.is_negative(value) {
        -magnitude - 1
    } else {
        magnitude
    }
}

#[cfg(test)]
mod tests {
    use super::super::format::MASKED;
    use super::*;

    fn of(a: f64, b: f64, imm: u8) -> f64 {
        let (bits, flags) = range(Format::DOUBLE, a.to_bits(), b.to_bits(), imm, MASKED);
        assert_eq!(flags, 0);
        f64::from_bits(bits)
    }

    #[test]
    fn the_immediate_chooses_the_value_and_its_sign() {
        assert_eq!([4, 5, 6, 7].map(|imm| of(-3.0, 2.0, imm)), [-3.0, 2.0, 2.0, -3.0]);
        assert_eq!([0, 1, 2, 3].map(|imm| of(-3.0, 2.0, imm)), [-3.0, -2.0, -2.0, -3.0]);
        assert_eq!([8, 9, 10, 11].map(|imm| of(-3.0, 2.0, imm)), [3.0, 2.0, 2.0, 3.0]);
        assert_eq!([12, 13, 14, 15].map(|imm| of(-3.0, 2.0, imm)), [-3.0, -2.0, -2.0, -3.0]);
    }

    #[test]
    fn of_zeros_and_equal_magnitudes_the_negative_one_is_the_smaller() {
        for (a, b) in [(0.0, -0.0), (-0.0, 0.0), (5.0, -5.0), (-5.0, 5.0)] {
            for (imm, negative) in [(4, true), (5, false), (6, true), (7, false)] {
                assert_eq!(of(a, b, imm).is_sign_negative(), negative, "{a} {b} {imm}");
            }
        }
    }

    #[test]
    fn a_quiet_nan_gives_way_to_a_number_and_a_signalling_one_to_nothing() {
        let single = |a, b, imm| range(Format::SINGLE, a, b, imm, MASKED);
        assert_eq!(single(0x7fc0_0001, 0x3f80_0000, 4), (0x3f80_0000, 0));
        assert_eq!(single(0x3f80_0000, 0x7fc0_0001, 4), (0x3f80_0000, 0));
        assert_eq!(single(0xffc0_0001, 0x7fc0_0002, 8), (0x7fc0_0001, 0));
        assert_eq!(single(0x3f80_0000, 0xff80_0001, 8), (0xffc0_0001, IE));
        assert_eq!(single(0x7fc0_0002, 0x7f80_0001, 4), (0x7fc0_0001, IE));
    }

    #[test]
    fn denormals_are_told_unless_they_are_zeros_or_beside_a_nan() {
        let single = |a, b, mxcsr| range(Format::SINGLE, a, b, 5, mxcsr);
        assert_eq!(single(1, 0, MASKED), (1, DE));
        assert_eq!(single(1, 0, MASKED | DAZ), (0, 0));
        assert_eq!(single(1, 0x7fc0_0000, MASKED), (1, 0));
        assert_eq!(single(0x7fc0_0000, 1, MASKED), (1, 0));
    }
}

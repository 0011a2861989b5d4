//! Rounding to integers and to fixed-point fractions: ROUNDPS and its kin.

use super::exceptions::raise;
use super::format::{Format, Rounding};
use crate::access::Outcome;
use crate::cpu::Cpu;
use crate::native::sse::{IE, PE};

/// ROUNDPS.
pub(super) fn roundps(cpu: &mut Cpu, register: u8, source: [u8; 16], imm: u8) -> Outcome {
    update(cpu, register, Format::SINGLE, source, imm, 128)
}

/// ROUNDPD.
pub(super) fn roundpd(cpu: &mut Cpu, register: u8, source: [u8; 16], imm: u8) -> Outcome {
    update(cpu, register, Format::DOUBLE, source, imm, 128)
}

/// ROUNDSS.
pub(super) fn roundss(cpu: &mut Cpu, register: u8, source: [u8; 16], imm: u8) -> Outcome {
    update(cpu, register, Format::SINGLE, source, imm, 32)
}

/// ROUNDSD.
pub(super) fn roundsd(cpu: &mut Cpu, register: u8, source: [u8; 16], imm: u8) -> Outcome {
    update(cpu, register, Format::DOUBLE, source, imm, 64)
}

/// Rounds the elements in the low `bits` bits; the others stay.
fn update(cpu: &mut Cpu, register: u8, format: Format, source: [u8; 16], imm: u8, bits: u32) -> Outcome {
    let mxcsr = cpu.fpu.mxcsr;
    let mask = u128::MAX >> (128 - bits);
    let source = u128::from_le_bytes(source) & mask;
    let (value, raised) = each(format, source.to_le_bytes(), |element| {
        round(format, element, 0, imm, mxcsr)
    });
    raise(cpu, raised)?;
    let kept = u128::from_le_bytes(cpu.fpu.xmm(register)) & !mask;
    cpu.fpu
        .set_xmm(register, (kept | u128::from_le_bytes(value)).to_le_bytes());
    Ok(())
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
    (sign | ((biased - 1) << format.fraction) + significand, flags)
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

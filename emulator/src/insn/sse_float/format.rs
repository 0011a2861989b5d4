//! Binary floating-point formats, and rounding into them: for what the host has no instruction.

use crate::native::sse::{DAZ, FTZ, IE, OE, PE, UE};

/// A format of IEEE 754. Values are their bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::insn) struct Format {
    /// Width in bits.
    pub width: u32,
    /// Bits of the fraction.
    pub fraction: u32,
}

/// How a result is rounded, numbered as in MXCSR.RC and in immediates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::insn) enum Rounding {
    /// To the nearest, to the even one of two.
    Nearest,
    /// Towards −∞.
    Down,
    /// Towards +∞.
    Up,
    /// Towards zero.
    Truncate,
}

impl Rounding {
    /// From its number; only the low two bits count.
    pub fn from_number(number: u32) -> Rounding {
        match number & 3 {
            0 => Rounding::Nearest,
            1 => Rounding::Down,
            2 => Rounding::Up,
            _ => Rounding::Truncate,
        }
    }

    /// That of MXCSR.
    pub fn of(mxcsr: u32) -> Rounding {
        Rounding::from_number(mxcsr >> 13)
    }

    /// Whether a magnitude becomes the next greater one, of which `odd` is the lowest bit, when what is cut off
    /// compares to half a unit as `rest` and is not zero.
    fn goes_up(self, sign: bool, odd: bool, rest: core::cmp::Ordering) -> bool {
        match self {
            Rounding::Nearest => rest.is_gt() || rest.is_eq() && odd,
            Rounding::Down => sign,
            Rounding::Up => !sign,
            Rounding::Truncate => false,
        }
    }
}

/// ± `significand` × 2^`exponent`, exactly, or, if `sticky`, a little more than that.
#[derive(Debug, Clone, Copy)]
pub(in crate::insn) struct Number {
    pub sign: bool,
    pub significand: u128,
    pub exponent: i32,
    pub sticky: bool,
}

impl Number {
    /// The magnitude in units of 2^`unit`, rounded to an integer, and whether that changed it.
    pub fn to_integer(self, unit: i32, rounding: Rounding) -> (u128, bool) {
        let shift = unit - self.exponent;
        if shift <= 0 {
            debug_assert!(!self.sticky);
            return (self.significand << shift.unsigned_abs().min(127), false);
        }
        let shift = shift as u32;
        let integer = self.significand.checked_shr(shift).unwrap_or(0);
        let rest = self.significand ^ integer.checked_shl(shift).unwrap_or(0);
        if rest == 0 && !self.sticky {
            return (integer, false);
        }
        let half = 1_u128.checked_shl(shift - 1).unwrap_or(0);
        let ordering = if half == 0 {
            core::cmp::Ordering::Less
        } else {
            rest.cmp(&half).then(self.sticky.cmp(&false))
        };
        let up = rounding.goes_up(self.sign, integer & 1 != 0, ordering);
        (integer + u128::from(up), true)
    }

    /// Exponent of the highest bit; the number is not zero.
    pub fn magnitude(self) -> i32 {
        self.exponent + self.significand.ilog2() as i32
    }
}

impl Format {
    /// Half precision.
    pub const HALF: Format = Format {
        width: 16,
        fraction: 10,
    };
    /// Single precision.
    pub const SINGLE: Format = Format {
        width: 32,
        fraction: 23,
    };
    /// Double precision.
    pub const DOUBLE: Format = Format {
        width: 64,
        fraction: 52,
    };

    /// By the size in bytes: 2, 4, or else 8.
    pub const fn of_size(size: usize) -> Format {
        match size {
            2 => Format::HALF,
            4 => Format::SINGLE,
            _ => Format::DOUBLE,
        }
    }

    /// The sign bit.
    pub const fn sign(self) -> u64 {
        1 << (self.width - 1)
    }

    /// +∞; also the exponent's bits.
    pub const fn infinity(self) -> u64 {
        self.sign() - (1 << self.fraction)
    }

    /// The bit that tells quiet NaNs from signalling ones.
    pub const fn quiet(self) -> u64 {
        1 << (self.fraction - 1)
    }

    /// The exponent's lowest bit; what it adds is the significand's bit that is not stored.
    pub const fn hidden(self) -> u64 {
        1 << self.fraction
    }

    /// The NaN that invalid operations give.
    pub const fn indefinite(self) -> u64 {
        self.sign() | self.infinity() | self.quiet()
    }

    /// What comes of an operation on a NaN alone, and the flags.
    pub const fn quieted(self, nan: u64) -> (u64, u32) {
        let flags = if self.is_signalling(nan) { IE } else { 0 };
        (nan | self.quiet(), flags)
    }

    /// Largest and, with the sign turned, smallest exponent of a normal number, which 1.0 has as 0.
    pub const fn bias(self) -> i32 {
        (1 << (self.width - self.fraction - 2)) - 1
    }

    /// 1.0.
    pub const fn one(self) -> u64 {
        (self.bias() as u64) << self.fraction
    }

    /// Without the sign.
    pub const fn magnitude(self, bits: u64) -> u64 {
        bits & (self.sign() - 1)
    }

    pub const fn is_negative(self, bits: u64) -> bool {
        bits & self.sign() != 0
    }

    pub const fn is_nan(self, bits: u64) -> bool {
        self.magnitude(bits) > self.infinity()
    }

    pub const fn is_signalling(self, bits: u64) -> bool {
        self.is_nan(bits) && bits & self.quiet() == 0
    }

    pub const fn is_infinite(self, bits: u64) -> bool {
        self.magnitude(bits) == self.infinity()
    }

    pub const fn is_zero(self, bits: u64) -> bool {
        self.magnitude(bits) == 0
    }

    pub const fn is_denormal(self, bits: u64) -> bool {
        !self.is_zero(bits) && bits & self.infinity() == 0
    }

    /// What DAZ makes of an operand.
    pub fn flushed(self, bits: u64, mxcsr: u32) -> u64 {
        if mxcsr & DAZ != 0 && self.is_denormal(bits) {
            bits & self.sign()
        } else {
            bits
        }
    }

    /// A finite value.
    pub fn number(self, bits: u64) -> Number {
        let fraction = bits & ((1 << self.fraction) - 1);
        let biased = (bits & self.infinity()) >> self.fraction;
        let hidden = u64::from(biased != 0) << self.fraction;
        Number {
            sign: self.is_negative(bits),
            significand: u128::from(fraction | hidden),
            exponent: (biased as i32).max(1) - self.bias() - self.fraction as i32,
            sticky: false,
        }
    }

    /// Rounds a number into this format as MXCSR says, and gives the exceptions: with overflow or underflow unmasked, those
    /// of a result that is scaled into range.
    pub fn round(self, number: Number, mxcsr: u32) -> (u64, u32) {
        let sign = if number.sign { self.sign() } else { 0 };
        if number.significand == 0 && !number.sticky {
            return (sign, 0);
        }
        let rounding = Rounding::of(mxcsr);
        let unmasked = !mxcsr >> 7;
        let fraction = self.fraction as i32;
        let lowest = 1 - self.bias() - fraction;
        // As if exponents had no bounds.
        let unit = number.magnitude() - fraction;
        let (integer, inexact) = number.to_integer(unit, rounding);
        let precision = if inexact { PE } else { 0 };
        let carried = integer >> (fraction + 1) != 0;
        let unit = unit + i32::from(carried);
        if unit < lowest {
            if unmasked & UE != 0 {
                return (sign, UE | precision);
            }
            if mxcsr & FTZ != 0 {
                return (sign, UE | PE);
            }
            let (integer, inexact) = number.to_integer(lowest, rounding);
            return (sign | integer as u64, if inexact { UE | PE } else { 0 });
        }
        let biased = unit - lowest + 1;
        if biased as u64 >= self.infinity() >> self.fraction {
            let flags = if unmasked & OE != 0 { OE | precision } else { OE | PE };
            let finite = !rounding.goes_up(number.sign, true, core::cmp::Ordering::Greater);
            return (sign | (self.infinity() - u64::from(finite)), flags);
        }
        // A carry leaves a power of two, whose fraction is zero either way.
        let integer = integer as u64 >> u32::from(carried);
        (sign | (((biased as u64 - 1) << self.fraction) + integer), precision)
    }
}

/// All exceptions masked, as most tests want it.
#[cfg(test)]
pub(super) const MASKED: u32 = crate::native::sse::MASKS;

#[cfg(test)]
mod tests {
    use super::*;

    fn single(significand: u128, exponent: i32, mxcsr: u32) -> (u64, u32) {
        let number = Number {
            sign: false,
            significand,
            exponent,
            sticky: false,
        };
        Format::SINGLE.round(number, mxcsr)
    }

    #[test]
    fn every_single_is_itself() {
        for bits in [0, 1, 0x7f_ffff, 0x80_0000, 0x3f80_0001, 0x7f7f_ffff_u64] {
            let number = Format::SINGLE.number(bits);
            assert_eq!(Format::SINGLE.round(number, MASKED), (bits, 0));
        }
    }

    #[test]
    fn ties_go_to_the_even_one() {
        assert_eq!(single(0x200_0001, 0, MASKED), (0x4c00_0000, PE));
        assert_eq!(single(0x200_0002, 0, MASKED), (0x4c00_0000, PE));
        assert_eq!(single(0x200_0006, 0, MASKED), (0x4c00_0002, PE));
        assert_eq!(single(0x1ff_ffff, 0, MASKED), (0x4c00_0000, PE));
    }

    #[test]
    fn tininess_is_detected_after_rounding() {
        // A quarter of a unit below the smallest normal number: with 24 bits, not below it.
        assert_eq!(single(0x3ff_ffff, -126 - 26, MASKED), (0x80_0000, PE));
        assert_eq!(single(0xff_ffff, -126 - 24, MASKED), (0x80_0000, PE | UE));
    }

    #[test]
    fn an_exact_tiny_result_underflows_only_if_that_is_unmasked() {
        assert_eq!(single(1, -149, MASKED), (1, 0));
        assert_eq!(single(1, -149, MASKED & !(UE << 7)).1, UE);
        assert_eq!(single(1, -149, MASKED | FTZ), (0, UE | PE));
    }

    #[test]
    fn overflow_gives_the_largest_finite_number_where_rounding_says_so() {
        assert_eq!(single(1, 128, MASKED), (0x7f80_0000, OE | PE));
        assert_eq!(single(1, 128, MASKED | 1 << 13), (0x7f7f_ffff, OE | PE));
        assert_eq!(single(1, 128, MASKED & !(OE << 7)).1, OE);
    }
}

//! Comparisons with one of 32 predicates (SDM Vol. 2, CMPPD).

use core::cmp::Ordering;

use super::format::Format;
use crate::insn::shuffle::Lane;
use crate::insn::vector::Lanes;
use crate::native::sse::{DAZ, DE, IE};

/// Bit of each outcome in the rows below.
const LESS: u8 = 1;
const EQUAL: u8 = 2;
const GREATER: u8 = 4;
const UNORDERED: u8 = 8;

/// The outcomes for which the predicates 0 to 15 hold. With 16 more the same hold, and what is said of quiet NaNs is
/// reversed.
const HOLDS: [u8; 16] = [
    EQUAL,
    LESS,
    LESS | EQUAL,
    UNORDERED,
    LESS | GREATER | UNORDERED,
    EQUAL | GREATER | UNORDERED,
    GREATER | UNORDERED,
    LESS | EQUAL | GREATER,
    EQUAL | UNORDERED,
    LESS | UNORDERED,
    LESS | EQUAL | UNORDERED,
    0,
    LESS | GREATER,
    EQUAL | GREATER,
    GREATER,
    LESS | EQUAL | GREATER | UNORDERED,
];

/// Whether quiet NaNs are invalid, too.
fn is_signalling(predicate: u8) -> bool {
    matches!(predicate & 3, 1 | 2) != (predicate & 16 != 0)
}

/// Whether a predicate holds, and the flags.
fn compare(format: Format, predicate: u8, x: u64, y: u64, mxcsr: u32) -> (bool, u32) {
    let holds = |outcome: u8| HOLDS[usize::from(predicate & 15)] & outcome != 0;
    if format.is_nan(x) || format.is_nan(y) {
        let invalid = is_signalling(predicate) || format.is_signalling(x) || format.is_signalling(y);
        return (holds(UNORDERED), if invalid { IE } else { 0 });
    }
    let denormal = mxcsr & DAZ == 0 && (format.is_denormal(x) || format.is_denormal(y));
    let flags = if denormal { DE } else { 0 };
    let order = |bits: u64| {
        let bits = format.flushed(bits, mxcsr);
        let magnitude = format.magnitude(bits) as i64;
        if format.is_negative(bits) {
            -magnitude
        } else {
            magnitude
        }
    };
    let outcome = match order(x).cmp(&order(y)) {
        Ordering::Less => LESS,
        Ordering::Equal => EQUAL,
        Ordering::Greater => GREATER,
    };
    (holds(outcome), flags)
}

/// VCMPPS and VCMPPD: all ones in a vector, or a bit in an opmask; the kernel does both.
pub(in crate::insn) fn packed<T: Lane + Into<u64>, const SIZE: usize>(lanes: &mut Lanes) {
    for i in 0..lanes.count::<T>() {
        let holds = element::<T>(lanes, i);
        lanes.out |= u64::from(holds) << i;
        lanes.a[i * SIZE..(i + 1) * SIZE].fill(if holds { 0xff } else { 0 });
    }
}

/// VCMPSS and VCMPSD.
pub(in crate::insn) fn scalar<T: Lane + Into<u64>, const SIZE: usize>(lanes: &mut Lanes) {
    let holds = element::<T>(lanes, 0);
    lanes.out = u64::from(holds);
    lanes.a = lanes.b;
    lanes.a[..SIZE].fill(if holds { 0xff } else { 0 });
}

fn element<T: Lane + Into<u64>>(lanes: &mut Lanes, i: usize) -> bool {
    if lanes.active >> i & 1 == 0 {
        return false;
    }
    let (x, y) = (T::get(&lanes.b, i).into(), T::get(&lanes.c, i).into());
    let (holds, flags) = compare(Format::of_size(size_of::<T>()), lanes.imm & 31, x, y, lanes.mxcsr);
    lanes.raised |= flags;
    holds
}

#[cfg(test)]
mod tests {
    use super::super::format::MASKED;
    use super::*;

    fn outcome(predicate: u8, x: f64, y: f64) -> (bool, u32) {
        compare(Format::DOUBLE, predicate, x.to_bits(), y.to_bits(), MASKED)
    }

    #[test]
    fn zeros_are_equal_and_infinities_are_ordered() {
        assert_eq!(outcome(0, 0.0, -0.0), (true, 0));
        assert_eq!(outcome(1, f64::NEG_INFINITY, f64::MIN), (true, 0));
        assert_eq!(outcome(14, f64::INFINITY, f64::MAX), (true, 0));
    }

    #[test]
    fn a_predicate_and_its_negation_never_agree() {
        for (x, y) in [(1.0, 2.0), (2.0, 1.0), (1.0, 1.0), (f64::NAN, 1.0)] {
            for (predicate, negation) in [(0, 4), (1, 5), (2, 6), (3, 7), (8, 12), (9, 13), (10, 14), (11, 15)] {
                assert_ne!(
                    outcome(predicate, x, y).0,
                    outcome(negation, x, y).0,
                    "{predicate} of {x}, {y}"
                );
            }
        }
    }

    #[test]
    fn quiet_nans_are_invalid_as_the_predicate_says() {
        let invalid: Vec<u8> = (0..32).filter(|p| outcome(*p, f64::NAN, 0.0).1 == IE).collect();
        assert_eq!(invalid, [1, 2, 5, 6, 9, 10, 13, 14, 16, 19, 20, 23, 24, 27, 28, 31]);
    }

    #[test]
    fn denormals_are_told_unless_they_are_zeros_or_beside_a_nan() {
        let tiny = f64::from_bits(1);
        assert_eq!(outcome(0, tiny, 0.0), (false, DE));
        assert_eq!(compare(Format::DOUBLE, 0, 1, 0, MASKED | DAZ), (true, 0));
        assert_eq!(outcome(0, tiny, f64::NAN), (false, 0));
    }
}

//! SSSE3: the operations, which are the same on MMX and on XMM registers.

use super::lanes::{map, neighbours, operations, zip};

operations! {
    /// PSHUFB: bytes of the destination by number; a number with its top bit set gives zero.
    Pshufb: |a, b, _| map::<u8, N>(b, |i| if i & 0x80 == 0 { a[usize::from(i) & (N - 1)] } else { 0 });
    Phaddw: |a, b, _| neighbours::<i16, N>(a, b, i16::wrapping_add);
    Phaddd: |a, b, _| neighbours::<i32, N>(a, b, i32::wrapping_add);
    Phaddsw: |a, b, _| neighbours::<i16, N>(a, b, i16::saturating_add);
    Phsubw: |a, b, _| neighbours::<i16, N>(a, b, i16::wrapping_sub);
    Phsubd: |a, b, _| neighbours::<i32, N>(a, b, i32::wrapping_sub);
    Phsubsw: |a, b, _| neighbours::<i16, N>(a, b, i16::saturating_sub);
    /// PSIGNB: negated, zero or unchanged, as the source is negative, zero or positive.
    Psignb: |a, b, _| zip::<i8, N>(a, b, |x, y| x.wrapping_mul(y.signum()));
    Psignw: |a, b, _| zip::<i16, N>(a, b, |x, y| x.wrapping_mul(y.signum()));
    Psignd: |a, b, _| zip::<i32, N>(a, b, |x, y| x.wrapping_mul(y.signum()));
    Pabsb: |_, b, _| map::<i8, N>(b, i8::wrapping_abs);
    Pabsw: |_, b, _| map::<i16, N>(b, i16::wrapping_abs);
    Pabsd: |_, b, _| map::<i32, N>(b, i32::wrapping_abs);
    /// PMULHRSW: the product of two fractions of 15 bits, rounded.
    Pmulhrsw: |a, b, _| zip::<i16, N>(a, b, |x, y| ((i32::from(x) * i32::from(y) + 0x4000) >> 15) as i16);
    /// PMADDUBSW: unsigned bytes of the destination times signed ones of the source, neighbours added.
    Pmaddubsw: |a, b, _| zip::<u16, N>(a, b, multiply_add);
    /// PALIGNR: the source with the destination above it, shifted down by bytes.
    Palignr: |a, b, imm| {
        let byte = |i: usize| b.iter().chain(&a).nth(i).copied().unwrap_or(0);
        super::lanes::build::<u8, N>(|i| byte(i + usize::from(imm)))
    };
}

fn multiply_add(x: u16, y: u16) -> u16 {
    let ([x0, x1], [y0, y1]) = (x.to_le_bytes(), y.to_le_bytes());
    let product = |x: u8, y: u8| i32::from(x) * i32::from(y as i8);
    (product(x0, y0) + product(x1, y1)).clamp(i16::MIN.into(), i16::MAX.into()) as u16
}

#[cfg(test)]
mod tests {
    use super::super::shuffle::PackedImmediate;
    use super::*;

    fn words(words: [i16; 4]) -> [u8; 8] {
        super::super::lanes::build(|i| words[i])
    }

    #[test]
    fn pshufb_takes_as_many_bits_of_a_number_as_the_register_has_bytes() {
        let a = [10, 11, 12, 13, 14, 15, 16, 17];
        let b = [0, 7, 8, 15, 0x78, 0x80, 0x87, 0xff];
        assert_eq!(Pshufb::apply(a, b, 0), [10, 17, 10, 17, 10, 0, 0, 0]);
    }

    #[test]
    fn horizontal_sums_have_those_of_the_destination_first() {
        let (a, b) = (words([1, 2, 0x7fff, 1]), words([3, 4, -0x8000, -1]));
        assert_eq!(Phaddw::apply(a, b, 0), words([3, -0x8000, 7, 0x7fff]));
        assert_eq!(Phaddsw::apply(a, b, 0), words([3, 0x7fff, 7, -0x8000]));
        assert_eq!(Phsubsw::apply(a, b, 0), words([-1, 0x7ffe, -1, -0x7fff]));
    }

    #[test]
    fn the_least_integer_has_no_absolute_value_and_no_negative() {
        let (a, minus) = (words([-0x8000, -1, 0, 5]), words([-1; 4]));
        assert_eq!(Pabsw::apply(minus, a, 0), words([-0x8000, 1, 0, 5]));
        assert_eq!(Psignw::apply(a, minus, 0), words([-0x8000, 1, 0, -5]));
    }

    #[test]
    fn pmulhrsw_of_minus_one_squared_is_minus_one() {
        let minus_one = words([-0x8000; 4]);
        assert_eq!(Pmulhrsw::apply(minus_one, minus_one, 0), minus_one);
    }

    #[test]
    fn pmaddubsw_takes_the_destination_as_unsigned_and_saturates() {
        assert_eq!(Pmaddubsw::apply([0xff; 8], [0x7f; 8], 0), words([0x7fff; 4]));
        assert_eq!(Pmaddubsw::apply([0xff; 8], [0x80; 8], 0), words([-0x8000; 4]));
    }

    #[test]
    fn palignr_shifts_in_zeros_beyond_both_operands() {
        let (a, b) = ([1, 2, 3, 4, 5, 6, 7, 8], [11, 12, 13, 14, 15, 16, 17, 18]);
        assert_eq!(Palignr::apply(a, b, 0), b);
        assert_eq!(Palignr::apply(a, b, 3), [14, 15, 16, 17, 18, 1, 2, 3]);
        assert_eq!(Palignr::apply(a, b, 13), [6, 7, 8, 0, 0, 0, 0, 0]);
        assert_eq!(Palignr::apply(a, b, 255), [0; 8]);
    }
}

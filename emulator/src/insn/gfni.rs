//! GFNI: the field GF(2⁸) with polynomial x⁸ + x⁴ + x³ + x + 1, and affine maps of its bits.

use super::lanes::{build, operations, zip};
use super::shuffle::Lane;

operations! {
    Gf2p8mulb: |a, b, _| zip::<u8, N>(a, b, multiply);
    /// GF2P8AFFINEQB: each byte of the destination times the bit matrix of its quadword in the source, plus the immediate.
    Gf2p8affineqb: |a, b, imm| build::<u8, N>(|i| affine(u64::get(&b, i / 8), a[i]) ^ imm);
    /// GF2P8AFFINEINVQB: the same with the bytes' inverses.
    Gf2p8affineinvqb: |a, b, imm| build::<u8, N>(|i| affine(u64::get(&b, i / 8), inverse(a[i])) ^ imm);
}

/// The product of two elements.
pub(super) const fn multiply(x: u8, y: u8) -> u8 {
    let (mut product, mut x, mut i) = (0, x, 0);
    while i < 8 {
        if y >> i & 1 != 0 {
            product ^= x;
        }
        x = (x << 1) ^ if x & 0x80 != 0 { 0x1b } else { 0 };
        i += 1;
    }
    product
}

/// The inverse of an element, its 254th power; of zero, zero.
pub(super) const fn inverse(x: u8) -> u8 {
    let (mut power, mut result, mut i) = (x, 1, 1);
    while i < 8 {
        power = multiply(power, power);
        result = multiply(result, power);
        i += 1;
    }
    result
}

/// Bit i of the product is the parity of `x` under row 7 − i of the matrix.
fn affine(matrix: u64, x: u8) -> u8 {
    let rows = matrix.to_be_bytes();
    (0..8).fold(0, |out, i| {
        let parity = (rows[i] & x).count_ones() as u8 & 1;
        out | parity << i
    })
}

#[cfg(test)]
mod tests {
    use super::super::shuffle::PackedImmediate;
    use super::*;

    #[test]
    fn every_element_but_zero_has_an_inverse() {
        for x in 1..=255 {
            assert_eq!(multiply(x, inverse(x)), 1);
        }
        assert_eq!(inverse(0), 0);
    }

    #[test]
    fn the_identity_matrix_has_its_first_row_in_the_last_byte() {
        let matrix = 0x0102_0408_1020_4080_u64.to_le_bytes();
        let bytes = [0, 1, 2, 0x53, 0x80, 0xca, 0xfe, 0xff];
        assert_eq!(Gf2p8affineqb::apply(bytes, matrix, 0), bytes);
        assert_eq!(Gf2p8affineinvqb::apply([0x53; 8], matrix, 0x0f), [0xca ^ 0x0f; 8]);
    }

    #[test]
    fn rijndaels_s_box_is_an_affine_map_of_the_inverse() {
        let matrix = 0xf1e3_c78f_1f3e_7cf8_u64.to_le_bytes();
        let bytes = [0, 1, 2, 0x53, 0x80, 0xca, 0xfe, 0xff];
        let expected = [0x63, 0x7c, 0x77, 0xed, 0xcd, 0x74, 0xbb, 0x16];
        assert_eq!(Gf2p8affineinvqb::apply(bytes, matrix, 0x63), expected);
    }
}

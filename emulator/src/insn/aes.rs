//! AES: rounds of the cipher and of its inverse, and steps of the key schedule (FIPS 197).
//!
//! Byte `i` of an operand is row `i % 4`, column `i / 4` of the state.

use super::gfni::{inverse, multiply};
use super::lanes::{build, map, operations};
use super::shuffle::Lane;

operations! {
    Aesenc: |a, b, _| add(mix(substitute(rotate(a, 1), &S_BOX), [2, 3, 1, 1]), b);
    Aesenclast: |a, b, _| add(substitute(rotate(a, 1), &S_BOX), b);
    Aesdec: |a, b, _| add(mix(substitute(rotate(a, 3), &INVERSE_S_BOX), [14, 11, 13, 9]), b);
    Aesdeclast: |a, b, _| add(substitute(rotate(a, 3), &INVERSE_S_BOX), b);
    Aesimc: |_, b, _| mix(b, [14, 11, 13, 9]);
    /// AESKEYGENASSIST: of doublewords 1 and 3 each, the substituted one, and it rotated with the round constant added.
    Aeskeygenassist: |_, b, imm| {
        let substituted = substitute(b, &S_BOX);
        build::<u32, N>(|i| {
            let word = u32::get(&substituted, i | 1);
            if i & 1 == 0 { word } else { word.rotate_right(8) ^ u32::from(imm) }
        })
    };
}

const S_BOX: [u8; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let x = inverse(i as u8);
        table[i] = x ^ x.rotate_left(1) ^ x.rotate_left(2) ^ x.rotate_left(3) ^ x.rotate_left(4) ^ 0x63;
        i += 1;
    }
    table
};

const INVERSE_S_BOX: [u8; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        table[S_BOX[i] as usize] = i as u8;
        i += 1;
    }
    table
};

fn add<const N: usize>(a: [u8; N], b: [u8; N]) -> [u8; N] {
    build::<u8, N>(|i| a[i] ^ b[i])
}

fn substitute<const N: usize>(a: [u8; N], table: &[u8; 256]) -> [u8; N] {
    map::<u8, N>(a, |byte| table[usize::from(byte)])
}

/// Row `r` comes from `r × columns` columns further right: ShiftRows, or, with three, its inverse.
fn rotate<const N: usize>(a: [u8; N], columns: usize) -> [u8; N] {
    build::<u8, N>(|i| a[(i + 4 * columns * (i % 4)) % N])
}

/// Each column times the circulant matrix with this first row: MixColumns or its inverse.
fn mix<const N: usize>(a: [u8; N], row: [u8; 4]) -> [u8; N] {
    build::<u8, N>(|i| {
        let column = i & !3;
        (0..4).fold(0, |sum, k| sum ^ multiply(a[column + (i + k) % 4], row[k]))
    })
}

#[cfg(test)]
mod tests {
    use super::super::shuffle::PackedImmediate;
    use super::*;

    fn block(hex: u128) -> [u8; 16] {
        hex.to_be_bytes()
    }

    #[test]
    fn the_first_round_of_the_standards_example() {
        // FIPS 197, Appendix B, rounds 1 and 10.
        let state = block(0x193d_e3be_a0f4_e22b_9ac6_8d2a_e9f8_4808);
        let key = block(0xa0fa_fe17_8854_2cb1_23a3_3939_2a6c_7605);
        let next = block(0xa49c_7ff2_689f_352b_6b5b_ea43_026a_5049);
        assert_eq!(Aesenc::apply(state, key, 0), next);
        let state = block(0xeb40_f21e_592e_3884_8ba1_13e7_1bc3_42d2);
        let key = block(0xd014_f9a8_c9ee_2589_e13f_0cc8_b663_0ca6);
        let next = block(0x3925_841d_02dc_09fb_dc11_8597_196a_0b32);
        assert_eq!(Aesenclast::apply(state, key, 0), next);
    }

    #[test]
    fn decryption_undoes_encryption() {
        let state = block(0x193d_e3be_a0f4_e22b_9ac6_8d2a_e9f8_4808);
        let zero = [0; 16];
        assert_eq!(Aesdeclast::apply(Aesenclast::apply(state, zero, 0), zero, 0), state);
        let mixed = Aesimc::apply(zero, Aesenc::apply(state, zero, 0), 0);
        assert_eq!(Aesdeclast::apply(mixed, zero, 0), state);
    }

    #[test]
    fn the_first_step_of_the_standards_key_expansion() {
        // FIPS 197, A.1: the last word of the key, rotated, substituted and with the round constant: 8b84eb01.
        let key = block(0x2b7e_1516_28ae_d2a6_abf7_1588_09cf_4f3c);
        let assist = Aeskeygenassist::apply([0; 16], key, 1);
        assert_eq!(assist[12..], [0x8b, 0x84, 0xeb, 0x01]);
    }
}

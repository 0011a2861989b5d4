//! SHA-1 and SHA-256: rounds and message schedules (FIPS 180-4).
//!
//! The first of four words is the operand's highest, except where the schedule of SHA-256 counts from the lowest.

use super::lanes::{Ternary, build, operations};
use super::shuffle::Lane;

operations! {
    Sha1nexte: |a, b, _| build::<u32, N>(|i| {
        let carried = if i == 3 { u32::get(&a, 3).rotate_left(30) } else { 0 };
        u32::get(&b, i).wrapping_add(carried)
    });
    Sha1msg1: |a, b, _| {
        let w = [u32::get(&b, 2), u32::get(&b, 3), u32::get(&a, 0), u32::get(&a, 1), u32::get(&a, 2), u32::get(&a, 3)];
        build::<u32, N>(|i| w[i] ^ w[i + 2])
    };
    Sha1msg2: |a, b, _| {
        let w16 = (u32::get(&a, 3) ^ u32::get(&b, 2)).rotate_left(1);
        let w17 = (u32::get(&a, 2) ^ u32::get(&b, 1)).rotate_left(1);
        let w18 = (u32::get(&a, 1) ^ u32::get(&b, 0)).rotate_left(1);
        let w19 = (u32::get(&a, 0) ^ w16).rotate_left(1);
        build::<u32, N>(|i| [w19, w18, w17, w16][i])
    };
    /// SHA1RNDS4: E of the first round is among the source's first word already.
    Sha1rnds4: |a, b, imm| {
        let [mut s_a, mut s_b, mut s_c, mut s_d] = [3, 2, 1, 0].map(|i| u32::get(&a, i));
        let mut e = 0_u32;
        for i in [3, 2, 1, 0] {
            let (f, k) = match imm & 3 {
                0 => (choose(s_b, s_c, s_d), 0x5a82_7999),
                1 => (s_b ^ s_c ^ s_d, 0x6ed9_eba1),
                2 => (majority(s_b, s_c, s_d), 0x8f1b_bcdc),
                _ => (s_b ^ s_c ^ s_d, 0xca62_c1d6),
            };
            let next = [s_a.rotate_left(5), u32::get(&b, i), e, k].into_iter().fold(f, u32::wrapping_add);
            (s_a, s_b, s_c, s_d, e) = (next, s_a, s_b.rotate_left(30), s_c, s_d);
        }
        build::<u32, N>(|i| [s_d, s_c, s_b, s_a][i])
    };
    Sha256msg1: |a, b, _| build::<u32, N>(|i| {
        let next = if i == 3 { u32::get(&b, 0) } else { u32::get(&a, i + 1) };
        let sigma = next.rotate_right(7) ^ next.rotate_right(18) ^ next >> 3;
        u32::get(&a, i).wrapping_add(sigma)
    });
    Sha256msg2: |a, b, _| {
        let sigma = |w: u32| w.rotate_right(17) ^ w.rotate_right(19) ^ w >> 10;
        let w16 = u32::get(&a, 0).wrapping_add(sigma(u32::get(&b, 2)));
        let w17 = u32::get(&a, 1).wrapping_add(sigma(u32::get(&b, 3)));
        let w18 = u32::get(&a, 2).wrapping_add(sigma(w16));
        let w19 = u32::get(&a, 3).wrapping_add(sigma(w17));
        build::<u32, N>(|i| [w16, w17, w18, w19][i])
    };
}

fn choose(x: u32, y: u32, z: u32) -> u32 {
    x & y ^ !x & z
}

fn majority(x: u32, y: u32, z: u32) -> u32 {
    x & y ^ x & z ^ y & z
}

/// SHA256RNDS2: the destination holds C, D, G, H and becomes A, B, E, F; the third operand's low words are message and
/// constant added.
pub(super) struct Sha256rnds2;

impl Ternary for Sha256rnds2 {
    fn apply(cdgh: [u8; 16], abef: [u8; 16], wk: [u8; 16]) -> [u8; 16] {
        let [mut a, mut b, mut e, mut f] = [3, 2, 1, 0].map(|i| u32::get(&abef, i));
        let [mut c, mut d, mut g, mut h] = [3, 2, 1, 0].map(|i| u32::get(&cdgh, i));
        for i in 0..2 {
            let sigma1 = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
            let sigma0 = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
            let t1 = [choose(e, f, g), sigma1, u32::get(&wk, i)]
                .into_iter()
                .fold(h, u32::wrapping_add);
            let t2 = sigma0.wrapping_add(majority(a, b, c));
            (h, g, f, e) = (g, f, e, d.wrapping_add(t1));
            (d, c, b, a) = (c, b, a, t1.wrapping_add(t2));
        }
        build::<u32, 16>(|i| [f, e, b, a][i])
    }
}

#[cfg(test)]
mod tests {
    use super::super::shuffle::PackedImmediate;
    use super::*;

    fn words(words: [u32; 4]) -> [u8; 16] {
        build::<u32, 16>(|i| words[i])
    }

    #[test]
    fn the_first_rounds_of_sha_256_of_abc() {
        // FIPS 180-4 examples: the working variables after t = 1.
        let abef = words([0x9b05_688c, 0x510e_527f, 0xbb67_ae85, 0x6a09_e667]);
        let cdgh = words([0x5be0_cd19, 0x1f83_d9ab, 0xa54f_f53a, 0x3c6e_f372]);
        let wk = words([0x6162_6380_u32.wrapping_add(0x428a_2f98), 0x7137_4491, 0, 0]);
        let expected = words([0xfa2a_4622, 0x78ce_7989, 0x5d6a_ebcd, 0x5a6a_d9ad]);
        assert_eq!(Sha256rnds2::apply(cdgh, abef, wk), expected);
    }

    #[test]
    fn the_first_rounds_of_sha_1_of_abc() {
        // The working variables after t = 3.
        let abcd = words([0x1032_5476, 0x98ba_dcfe, 0xefcd_ab89, 0x6745_2301]);
        let message = words([0, 0, 0, 0x6162_6380_u32.wrapping_add(0xc3d2_e1f0)]);
        let expected = words([0xc045_bf0c, 0x6264_14db, 0xa139_0f08, 0xcdd8_e11b]);
        assert_eq!(Sha1rnds4::apply(abcd, message, 0), expected);
    }
}

//! SSE4.1 and PCMPGTQ: the integer operations and the blends.

use super::lanes::{Ternary, build, count, operations, select, zip};
use super::shuffle::Lane;

operations! {
    Pcmpeqq: |a, b, _| zip::<u64, N>(a, b, |x, y| ones(x == y));
    Pcmpgtq: |a, b, _| zip::<u64, N>(a, b, |x, y| ones(x as i64 > y as i64));
    Pminsb: |a, b, _| zip::<i8, N>(a, b, Ord::min);
    Pminsd: |a, b, _| zip::<i32, N>(a, b, Ord::min);
    Pminuw: |a, b, _| zip::<u16, N>(a, b, Ord::min);
    Pminud: |a, b, _| zip::<u32, N>(a, b, Ord::min);
    Pmaxsb: |a, b, _| zip::<i8, N>(a, b, Ord::max);
    Pmaxsd: |a, b, _| zip::<i32, N>(a, b, Ord::max);
    Pmaxuw: |a, b, _| zip::<u16, N>(a, b, Ord::max);
    Pmaxud: |a, b, _| zip::<u32, N>(a, b, Ord::max);
    Pmulld: |a, b, _| zip::<u32, N>(a, b, u32::wrapping_mul);
    /// PMULDQ: the signed product of the low doublewords.
    Pmuldq: |a, b, _| zip::<i64, N>(a, b, |x, y| i64::from(x as i32) * i64::from(y as i32));
    /// PACKUSDW: signed doublewords of both operands as unsigned words, saturated.
    Packusdw: |a, b, _| build::<u16, N>(|i| {
        let half = count::<i32, N>();
        let lane = if i < half { i32::get(&a, i) } else { i32::get(&b, i - half) };
        lane.clamp(0, 0xffff) as u16
    });
    Pmovsxbw: |_, b, _| build::<i16, N>(|i| i8::get(&b, i).into());
    Pmovsxbd: |_, b, _| build::<i32, N>(|i| i8::get(&b, i).into());
    Pmovsxbq: |_, b, _| build::<i64, N>(|i| i8::get(&b, i).into());
    Pmovsxwd: |_, b, _| build::<i32, N>(|i| i16::get(&b, i).into());
    Pmovsxwq: |_, b, _| build::<i64, N>(|i| i16::get(&b, i).into());
    Pmovsxdq: |_, b, _| build::<i64, N>(|i| i32::get(&b, i).into());
    Pmovzxbw: |_, b, _| build::<u16, N>(|i| u8::get(&b, i).into());
    Pmovzxbd: |_, b, _| build::<u32, N>(|i| u8::get(&b, i).into());
    Pmovzxbq: |_, b, _| build::<u64, N>(|i| u8::get(&b, i).into());
    Pmovzxwd: |_, b, _| build::<u32, N>(|i| u16::get(&b, i).into());
    Pmovzxwq: |_, b, _| build::<u64, N>(|i| u16::get(&b, i).into());
    Pmovzxdq: |_, b, _| build::<u64, N>(|i| u32::get(&b, i).into());
    /// PBLENDW: each bit of the immediate chooses a word; 16 bytes have eight.
    Pblendw: |a, b, imm| select::<u16, N>(a, b, |i| imm >> (i & 7) & 1 != 0);
    /// BLENDPS.
    Blendps: |a, b, imm| select::<u32, N>(a, b, |i| imm >> i & 1 != 0);
    /// BLENDPD.
    Blendpd: |a, b, imm| select::<u64, N>(a, b, |i| imm >> i & 1 != 0);
    /// INSERTPS from a register: immediate bits 7:6 choose the single, 5:4 its place, and 3:0 what becomes zero.
    Insertps: |a, b, imm| insert_single(a, u32::get(&b, usize::from(imm >> 6)), imm);
    /// INSERTPS from memory: there is but one single.
    InsertpsMemory: |a, b, imm| insert_single(a, u32::get(&b, 0), imm);
    /// MPSADBW: sums of the differences of four bytes of the source to those from each of eight positions of the
    /// destination on.
    Mpsadbw: |a, b, imm| {
        let (from, to) = (usize::from(imm >> 2 & 1) * 4, usize::from(imm & 3) * 4);
        build::<u16, N>(|i| (0..4).map(|k| u16::from(a[from + i + k].abs_diff(b[to + k]))).sum())
    };
    /// PHMINPOSUW: the least word, and the number of the first that is it.
    Phminposuw: |_, b, _| {
        let mut least = (u16::MAX, 0);
        for i in (0..count::<u16, N>()).rev() {
            let word = u16::get(&b, i);
            if word <= least.0 {
                least = (word, i as u16);
            }
        }
        build::<u16, N>(|i| [least.0, least.1].get(i).copied().unwrap_or(0))
    };
    /// MOVSLDUP: the even singles, each twice.
    Movsldup: |_, b, _| build::<u32, N>(|i| u32::get(&b, i & !1));
    /// MOVSHDUP: the odd singles, each twice.
    Movshdup: |_, b, _| build::<u32, N>(|i| u32::get(&b, i | 1));
    /// MOVDDUP: the low double, twice.
    Movddup: |_, b, _| build::<u64, N>(|i| u64::get(&b, i & !1));
}

fn ones(holds: bool) -> u64 {
    if holds { u64::MAX } else { 0 }
}

fn insert_single<const N: usize>(a: [u8; N], single: u32, imm: u8) -> [u8; N] {
    build(|i| match () {
        () if imm >> i & 1 != 0 => 0,
        () if i == usize::from(imm >> 4 & 3) => single,
        () => u32::get(&a, i),
    })
}

macro_rules! variable_blends {
    ($($(#[$doc:meta])* $name:ident $lane:ty;)*) => {$(
        $(#[$doc])*
        pub(super) struct $name;

        impl Ternary for $name {
            fn apply(a: [u8; 16], b: [u8; 16], mask: [u8; 16]) -> [u8; 16] {
                select::<$lane, 16>(a, b, |i| <$lane>::get(&mask, i) < 0)
            }
        }
    )*};
}

// The lanes whose mask's top bit is set come from the source.
variable_blends! {
    Pblendvb i8;
    Blendvps i32;
    Blendvpd i64;
}

#[cfg(test)]
mod tests {
    use super::super::shuffle::PackedImmediate;
    use super::*;

    #[test]
    fn packusdw_makes_negative_numbers_zero_and_large_ones_the_largest() {
        let a = build::<i32, 16>(|i| [-1, 0, 0xffff, 0x1_0000][i]);
        let b = build::<i32, 16>(|i| [i32::MIN, i32::MAX, 5, 0x7fff][i]);
        let expected = build::<u16, 16>(|i| [0, 0, 0xffff, 0xffff, 0, 0xffff, 5, 0x7fff][i]);
        assert_eq!(Packusdw::apply(a, b, 0), expected);
    }

    #[test]
    fn phminposuw_gives_the_first_of_equals() {
        let b = build::<u16, 16>(|i| [9, 3, 7, 3, 9, 9, 3, 9][i]);
        assert_eq!(u128::from_le_bytes(Phminposuw::apply(b, b, 0)), 0x0001_0003);
        assert_eq!(u128::from_le_bytes(Phminposuw::apply(b, [0xff; 16], 0)), 0x0000_ffff);
    }

    #[test]
    fn mpsadbw_reaches_the_last_byte_of_both_operands() {
        let a = build::<u8, 16>(|i| i as u8);
        let b = build::<u8, 16>(|i| if i >= 12 { 0xff } else { 0 });
        // Bytes 11 to 14 of the destination from 0xff.
        let last = u16::get(&Mpsadbw::apply(a, b, 7), 7);
        assert_eq!(last, 4 * 255 - (11 + 12 + 13 + 14));
    }

    #[test]
    fn insertps_zeroes_after_it_inserts() {
        let (a, b) = (build::<u32, 16>(|i| i as u32 + 1), build::<u32, 16>(|i| i as u32 + 11));
        let expected = |lanes: [u32; 4]| build::<u32, 16>(|i| lanes[i]);
        assert_eq!(Insertps::apply(a, b, 0b1001_0000), expected([1, 13, 3, 4]));
        assert_eq!(Insertps::apply(a, b, 0b1001_0011), expected([0, 0, 3, 4]));
        assert_eq!(InsertpsMemory::apply(a, b, 0b1001_0000), expected([1, 11, 3, 4]));
    }

    #[test]
    fn variable_blends_look_at_the_top_bit_of_a_lane_only() {
        let (a, b) = ([0; 16], [0xff; 16]);
        let mask = build::<u32, 16>(|i| [0x7fff_ffff, 0x8000_0000, 0x0080_8080, u32::MAX][i]);
        let expected = build::<u32, 16>(|i| [0, u32::MAX, 0, u32::MAX][i]);
        assert_eq!(Blendvps::apply(a, b, mask), expected);
    }
}

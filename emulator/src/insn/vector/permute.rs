//! Shuffles, permutations, blends, broadcasts, and parts of vectors: elements go elsewhere, and stay what they are.

use iced_x86::Mnemonic::*;

use super::form::Row;
use super::kernel::{immediate, immediate_bits, packed};
use super::lanes::Lanes;
use crate::insn::shuffle::{Lane, Pshufd, Pshufhw, Pshuflw, Shufpd, Shufps};
use crate::native::packed as op;

pub(super) fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    shuffles(&mut rows);
    permutations(&mut rows);
    blends(&mut rows);
    broadcasts(&mut rows);
    parts(&mut rows);
    rows
}

macro_rules! whole {
    ($rows:ident: $($mnemonic:ident $element:literal $kernel:expr,)*) => {
        $rows.extend([$(Row::new($mnemonic, $element, $kernel).whole(),)*]);
    };
}

/// Within 16 bytes.
fn shuffles(rows: &mut Vec<Row>) {
    whole! { rows:
        Vpunpcklbw 1 packed::<op::Punpcklbw>, Vpunpckhbw 1 packed::<op::Punpckhbw>,
        Vpunpcklwd 2 packed::<op::Punpcklwd>, Vpunpckhwd 2 packed::<op::Punpckhwd>,
        Vpunpckldq 4 packed::<op::Punpckldq>, Vpunpckhdq 4 packed::<op::Punpckhdq>,
        Vpunpcklqdq 8 packed::<op::Punpcklqdq>, Vpunpckhqdq 8 packed::<op::Punpckhqdq>,
        Vunpcklps 4 packed::<op::Punpckldq>, Vunpckhps 4 packed::<op::Punpckhdq>,
        Vunpcklpd 8 packed::<op::Punpcklqdq>, Vunpckhpd 8 packed::<op::Punpckhqdq>,
        Vpacksswb 1 packed::<op::Packsswb>, Vpackssdw 2 packed::<op::Packssdw>, Vpackuswb 1 packed::<op::Packuswb>,
        Vpshufd 4 immediate::<Pshufd>, Vpshufhw 2 immediate::<Pshufhw>, Vpshuflw 2 immediate::<Pshuflw>,
        Vshufps 4 immediate::<Shufps>, Vshufpd 8 immediate_bits::<Shufpd, 2>,
        Vmovsldup 4 |lanes| choose::<u32>(lanes, |i| i & !1),
        Vmovshdup 4 |lanes| choose::<u32>(lanes, |i| i | 1),
        Vmovddup 8 |lanes| choose::<u64>(lanes, |i| i & !1),
    }
    rows.extend([
        Row::new(Vpermilps, 4, |lanes| {
            let imm = usize::from(lanes.imm);
            choose::<u32>(lanes, |i| i & !3 | imm >> (2 * (i & 3)) & 3);
        })
        .whole()
        .by_immediate(),
        Row::new(Vpermilpd, 8, |lanes| {
            let imm = usize::from(lanes.imm);
            choose::<u64>(lanes, |i| i & !1 | imm >> i & 1);
        })
        .whole()
        .by_immediate(),
        Row::new(Vpermilps, 4, |lanes| {
            choose_first::<u32>(lanes, |i, control| i & !3 | control & 3);
        })
        .whole()
        .by_source(),
        Row::new(Vpermilpd, 8, |lanes| {
            choose_first::<u64>(lanes, |i, control| i & !1 | control >> 1 & 1);
        })
        .whole()
        .by_source(),
    ]);
}

/// Each element is that of the only source that `from` says.
fn choose<T: Lane>(lanes: &mut Lanes, from: impl Fn(usize) -> usize) {
    for i in 0..lanes.count::<T>() {
        T::get(&lanes.c, from(i)).put(&mut lanes.a, i);
    }
}

/// An element as a number.
fn index<T: Lane + TryInto<u64>>(bytes: &[u8], i: usize) -> usize {
    // An element of an unsigned type always fits.
    T::get(bytes, i).try_into().unwrap_or(0) as usize
}

/// Each element is that of the first source that `from` says, given the second source's.
fn choose_first<T: Lane + TryInto<u64>>(lanes: &mut Lanes, from: impl Fn(usize, usize) -> usize) {
    for i in 0..lanes.count::<T>() {
        T::get(&lanes.b, from(i, index::<T>(&lanes.c, i))).put(&mut lanes.a, i);
    }
}

/// Over the whole vector.
fn permutations(rows: &mut Vec<Row>) {
    /// The first source has numbers of elements of the last.
    fn by_first<T: Lane + TryInto<u64>>(lanes: &mut Lanes) {
        let count = lanes.count::<T>();
        for i in 0..count {
            T::get(&lanes.c, index::<T>(&lanes.b, i) % count).put(&mut lanes.a, i);
        }
    }
    /// Two bits of the immediate for each of four quadwords.
    fn by_immediate(lanes: &mut Lanes) {
        let imm = usize::from(lanes.imm);
        choose::<u64>(lanes, |i| i & !3 | imm >> (2 * (i & 3)) & 3);
    }
    /// The destination has numbers of elements of both sources side by side.
    fn by_destination<T: Lane + TryInto<u64>>(lanes: &mut Lanes) {
        let indices = lanes.a;
        of_two::<T>(lanes, |lanes, i| (index::<T>(&indices, i), lanes.b));
    }
    /// The first source has numbers of elements of the destination and the last source side by side.
    fn of_destination<T: Lane + TryInto<u64>>(lanes: &mut Lanes) {
        let table = lanes.a;
        of_two::<T>(lanes, |lanes, i| (index::<T>(&lanes.b, i), table));
    }
    fn of_two<T: Lane>(lanes: &mut Lanes, from: impl Fn(&Lanes, usize) -> (usize, [u8; 64])) {
        let count = lanes.count::<T>();
        for i in 0..count {
            let (index, low) = from(lanes, i);
            let table = if index & count == 0 { &low } else { &lanes.c };
            T::get(table, index % count).put(&mut lanes.a, i);
        }
    }
    rows.extend([
        Row::new(Vpermq, 8, by_immediate).whole().by_immediate(),
        Row::new(Vpermpd, 8, by_immediate).whole().by_immediate(),
        Row::new(Vpermq, 8, by_first::<u64>).whole().by_source(),
        Row::new(Vpermpd, 8, by_first::<u64>).whole().by_source(),
    ]);
    whole! { rows:
        Vpermd 4 by_first::<u32>, Vpermps 4 by_first::<u32>, Vpermw 2 by_first::<u16>,
        Vpermi2w 2 by_destination::<u16>,
        Vpermi2d 4 by_destination::<u32>, Vpermi2ps 4 by_destination::<u32>,
        Vpermi2q 8 by_destination::<u64>, Vpermi2pd 8 by_destination::<u64>,
        Vpermt2w 2 of_destination::<u16>,
        Vpermt2d 4 of_destination::<u32>, Vpermt2ps 4 of_destination::<u32>,
        Vpermt2q 8 of_destination::<u64>, Vpermt2pd 8 of_destination::<u64>,
        Vperm2f128 16 halves, Vperm2i128 16 halves,
        Vshuff32x4 4 quarters, Vshufi32x4 4 quarters, Vshuff64x2 8 quarters, Vshufi64x2 8 quarters,
        Valignd 4 align::<u32>, Valignq 8 align::<u64>,
    }
}

/// VPERM2F128 and VPERM2I128: each half is one of the four halves of the sources, or zero.
fn halves(lanes: &mut Lanes) {
    for i in 0..2 {
        let select = usize::from(lanes.imm) >> (4 * i);
        let from = if select & 2 == 0 { &lanes.b } else { &lanes.c };
        let half = if select & 8 == 0 {
            u128::get(from, select & 1)
        } else {
            0
        };
        half.put(&mut lanes.a, i);
    }
}

/// VSHUFF32X4 and its like: the first half of the 16-byte parts from the first source, the others from the second.
fn quarters(lanes: &mut Lanes) {
    let count = lanes.count::<u128>();
    let bits = count.trailing_zeros() as usize;
    for i in 0..count {
        let select = usize::from(lanes.imm) >> (bits * i) & (count - 1);
        let from = if i < count / 2 { &lanes.b } else { &lanes.c };
        u128::get(from, select).put(&mut lanes.a, i);
    }
}

/// VALIGND and VALIGNQ: both sources side by side, the first above, shifted down by elements.
fn align<T: Lane>(lanes: &mut Lanes) {
    let count = lanes.count::<T>();
    let shift = usize::from(lanes.imm) % count;
    for i in 0..count {
        let at = i + shift;
        let from = if at < count { &lanes.c } else { &lanes.b };
        T::get(from, at % count).put(&mut lanes.a, i);
    }
}

/// Elements of the last source where a bit is set, else of the first.
fn blends(rows: &mut Vec<Row>) {
    fn by_immediate<T: Lane>(lanes: &mut Lanes) {
        let imm = lanes.imm;
        blend::<T>(lanes, |_, i| imm >> (i % 8) & 1 != 0);
    }
    fn by_sign<T: Lane, const ELEMENT: usize>(lanes: &mut Lanes) {
        blend::<T>(lanes, |lanes, i| lanes.d[(i + 1) * ELEMENT - 1] & 0x80 != 0);
    }
    fn blend<T: Lane>(lanes: &mut Lanes, second: impl Fn(&Lanes, usize) -> bool) {
        for i in 0..lanes.count::<T>() {
            let from = if second(lanes, i) { &lanes.c } else { &lanes.b };
            T::get(from, i).put(&mut lanes.a, i);
        }
    }
    rows.extend([
        Row::new(Vblendps, 4, by_immediate::<u32>),
        Row::new(Vpblendd, 4, by_immediate::<u32>),
        Row::new(Vblendpd, 8, by_immediate::<u64>),
        Row::new(Vpblendw, 2, by_immediate::<u16>),
        Row::new(Vblendvps, 4, by_sign::<u32, 4>),
        Row::new(Vblendvpd, 8, by_sign::<u64, 8>),
        Row::new(Vpblendvb, 1, by_sign::<u8, 1>),
    ]);
    for (mnemonic, element) in [
        (Vpblendmb, 1),
        (Vpblendmw, 2),
        (Vpblendmd, 4),
        (Vpblendmq, 8),
        (Vblendmps, 4),
        (Vblendmpd, 8),
    ] {
        rows.push(Row::new(mnemonic, element, |lanes| lanes.a = lanes.c).blends());
    }
}

/// The low bytes of the only source, over and over.
fn broadcasts(rows: &mut Vec<Row>) {
    fn repeat<const SIZE: usize>(lanes: &mut Lanes) {
        for i in 0..lanes.bytes / SIZE {
            lanes.a[i * SIZE..(i + 1) * SIZE].copy_from_slice(&lanes.c[..SIZE]);
        }
    }
    rows.extend([
        Row::new(Vpbroadcastb, 1, repeat::<1>),
        Row::new(Vpbroadcastw, 2, repeat::<2>),
        Row::new(Vpbroadcastd, 4, repeat::<4>),
        Row::new(Vpbroadcastq, 8, repeat::<8>),
        Row::new(Vbroadcastss, 4, repeat::<4>),
        Row::new(Vbroadcastsd, 8, repeat::<8>),
        Row::new(Vbroadcastf128, 16, repeat::<16>),
        Row::new(Vbroadcasti128, 16, repeat::<16>),
        Row::new(Vbroadcastf32x2, 4, repeat::<8>),
        Row::new(Vbroadcasti32x2, 4, repeat::<8>),
        Row::new(Vbroadcastf32x4, 4, repeat::<16>),
        Row::new(Vbroadcasti32x4, 4, repeat::<16>),
        Row::new(Vbroadcastf32x8, 4, repeat::<32>),
        Row::new(Vbroadcasti32x8, 4, repeat::<32>),
        Row::new(Vbroadcastf64x2, 8, repeat::<16>),
        Row::new(Vbroadcasti64x2, 8, repeat::<16>),
        Row::new(Vbroadcastf64x4, 8, repeat::<32>),
        Row::new(Vbroadcasti64x4, 8, repeat::<32>),
        Row::new(Vpbroadcastmb2q, 8, |lanes| {
            let mask = u64::get(&lanes.c, 0) & 0xff;
            lanes.unary(|_| mask);
        }),
        Row::new(Vpbroadcastmw2d, 4, |lanes| {
            let mask = u64::get(&lanes.c, 0) as u32 & 0xffff;
            lanes.unary(|_| mask);
        }),
    ]);
}

/// Parts of a vector that are taken out or put in.
fn parts(rows: &mut Vec<Row>) {
    /// The part that the immediate names, to the start of a vector, a general-purpose register or memory.
    fn extract<const SIZE: usize>(lanes: &mut Lanes) {
        let at = usize::from(lanes.imm) % (lanes.bytes / SIZE) * SIZE;
        lanes.a.fill(0);
        lanes.a[..SIZE].copy_from_slice(&lanes.c[at..at + SIZE]);
    }
    /// The first source, with the start of the second where the immediate says.
    fn insert<const SIZE: usize>(lanes: &mut Lanes) {
        let at = usize::from(lanes.imm) % (lanes.bytes / SIZE) * SIZE;
        lanes.a = lanes.b;
        lanes.a[at..at + SIZE].copy_from_slice(&lanes.c[..SIZE]);
    }
    rows.extend([
        Row::new(Vpextrb, 1, extract::<1>),
        Row::new(Vpextrw, 2, extract::<2>),
        Row::new(Vpextrd, 4, extract::<4>),
        Row::new(Vpextrq, 8, extract::<8>),
        Row::new(Vextractps, 4, extract::<4>),
        Row::new(Vextractf128, 16, extract::<16>),
        Row::new(Vextracti128, 16, extract::<16>),
        Row::new(Vpinsrb, 1, insert::<1>),
        Row::new(Vpinsrw, 2, insert::<2>),
        Row::new(Vpinsrd, 4, insert::<4>),
        Row::new(Vpinsrq, 8, insert::<8>),
    ]);
    macro_rules! parts {
        ($($extract:ident $extract_float:ident $insert:ident $insert_float:ident $element:literal $size:literal;)*) => {
            rows.extend([$(
                Row::new($extract, $element, extract::<$size>).part($size).whole(),
                Row::new($extract_float, $element, extract::<$size>).part($size).whole(),
                Row::new($insert, $element, insert::<$size>).whole(),
                Row::new($insert_float, $element, insert::<$size>).whole(),
            )*]);
        };
    }
    parts! {
        Vextracti32x4 Vextractf32x4 Vinserti32x4 Vinsertf32x4 4 16;
        Vextracti32x8 Vextractf32x8 Vinserti32x8 Vinsertf32x8 4 32;
        Vextracti64x2 Vextractf64x2 Vinserti64x2 Vinsertf64x2 8 16;
        Vextracti64x4 Vextractf64x4 Vinserti64x4 Vinsertf64x4 8 32;
    }
    rows.extend([
        Row::new(Vinserti128, 16, insert::<16>),
        Row::new(Vinsertf128, 16, insert::<16>),
    ]);
}

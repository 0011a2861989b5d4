//! Packed integer operations on 8 bytes (MMX registers) or 16 (XMM registers), as functions of values.
//!
//! Each is written over lanes in plain arrays; the compiler makes vector instructions of it.

/// A packed operation of two operands. Comments on the types say `a` for the destination, `b` for the source.
pub(super) trait Packed: 'static {
    /// The new destination.
    fn apply<const N: usize>(a: [u8; N], b: [u8; N]) -> [u8; N];
}

/// A packed operation of two operands and an immediate byte.
pub(super) trait PackedImmediate: 'static {
    /// The new destination.
    fn apply<const N: usize>(a: [u8; N], b: [u8; N], imm: u8) -> [u8; N];
}

/// An element of a packed operand.
pub(super) trait Lane: Copy + Default {
    /// Size in bytes.
    const SIZE: usize;

    /// The `i`-th element.
    fn get(bytes: &[u8], i: usize) -> Self;

    /// Sets the `i`-th element.
    fn put(self, bytes: &mut [u8], i: usize);
}

macro_rules! lane {
    ($($t:ty)*) => {$(
        impl Lane for $t {
            const SIZE: usize = size_of::<$t>();

            #[inline(always)]
            fn get(bytes: &[u8], i: usize) -> $t {
                let mut lane = [0; size_of::<$t>()];
                lane.copy_from_slice(&bytes[i * size_of::<$t>()..(i + 1) * size_of::<$t>()]);
                <$t>::from_le_bytes(lane)
            }

            #[inline(always)]
            fn put(self, bytes: &mut [u8], i: usize) {
                bytes[i * size_of::<$t>()..(i + 1) * size_of::<$t>()].copy_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}

lane!(u8 i8 u16 i16 u32 i32 u64);

/// Lane by lane.
#[inline(always)]
fn zip<T: Lane, const N: usize>(a: [u8; N], b: [u8; N], f: impl Fn(T, T) -> T) -> [u8; N] {
    let mut out = [0; N];
    for i in 0..N / T::SIZE {
        f(T::get(&a, i), T::get(&b, i)).put(&mut out, i);
    }
    out
}

/// Narrows the lanes of `a` into the lower half and those of `b` into the upper.
#[inline(always)]
fn pack<T: Lane, U: Lane, const N: usize>(a: [u8; N], b: [u8; N], f: impl Fn(T) -> U) -> [u8; N] {
    let mut out = [0; N];
    let lanes = N / T::SIZE;
    for i in 0..lanes {
        f(T::get(&a, i)).put(&mut out, i);
        f(T::get(&b, i)).put(&mut out, lanes + i);
    }
    out
}

/// Lanes of `a` and `b` in turn, from lane `first` of each.
#[inline(always)]
fn interleave<T: Lane, const N: usize>(a: [u8; N], b: [u8; N], first: usize) -> [u8; N] {
    let mut out = [0; N];
    for i in 0..N / T::SIZE / 2 {
        T::get(&a, first + i).put(&mut out, 2 * i);
        T::get(&b, first + i).put(&mut out, 2 * i + 1);
    }
    out
}

/// Shifts every lane by the count in the low quadword of `b`, capped at `limit`.
#[inline(always)]
fn shift<T: Lane, const N: usize>(a: [u8; N], b: [u8; N], limit: u64, f: impl Fn(T, u32) -> T) -> [u8; N] {
    let count = u64::get(&b, 0).min(limit) as u32;
    zip(a, a, |lane: T, _| f(lane, count))
}

fn mask<T>(condition: bool, ones: T, zero: T) -> T {
    if condition { ones } else { zero }
}

macro_rules! packed {
    ($($name:ident: $f:expr;)*) => {$(
        pub(super) struct $name;

        impl Packed for $name {
            #[inline(always)]
            fn apply<const N: usize>(a: [u8; N], b: [u8; N]) -> [u8; N] {
                $f(a, b)
            }
        }
    )*};
}

packed! {
    Paddb: |a, b| zip(a, b, u8::wrapping_add);
    Paddw: |a, b| zip(a, b, u16::wrapping_add);
    Paddd: |a, b| zip(a, b, u32::wrapping_add);
    Paddq: |a, b| zip(a, b, u64::wrapping_add);
    Paddsb: |a, b| zip(a, b, i8::saturating_add);
    Paddsw: |a, b| zip(a, b, i16::saturating_add);
    Paddusb: |a, b| zip(a, b, u8::saturating_add);
    Paddusw: |a, b| zip(a, b, u16::saturating_add);
    Psubb: |a, b| zip(a, b, u8::wrapping_sub);
    Psubw: |a, b| zip(a, b, u16::wrapping_sub);
    Psubd: |a, b| zip(a, b, u32::wrapping_sub);
    Psubq: |a, b| zip(a, b, u64::wrapping_sub);
    Psubsb: |a, b| zip(a, b, i8::saturating_sub);
    Psubsw: |a, b| zip(a, b, i16::saturating_sub);
    Psubusb: |a, b| zip(a, b, u8::saturating_sub);
    Psubusw: |a, b| zip(a, b, u16::saturating_sub);
    Pmullw: |a, b| zip(a, b, u16::wrapping_mul);
    Pmulhw: |a, b| zip(a, b, |a: i16, b: i16| ((i32::from(a) * i32::from(b)) >> 16) as i16);
    Pmulhuw: |a, b| zip(a, b, |a: u16, b: u16| ((u32::from(a) * u32::from(b)) >> 16) as u16);
    Pmuludq: |a, b| zip(a, b, |a: u64, b: u64| (a & 0xffff_ffff) * (b & 0xffff_ffff));
    Pmaddwd: multiply_add;
    Psadbw: sum_of_differences;
    Pavgb: |a, b| zip(a, b, |a: u8, b: u8| ((u16::from(a) + u16::from(b) + 1) >> 1) as u8);
    Pavgw: |a, b| zip(a, b, |a: u16, b: u16| ((u32::from(a) + u32::from(b) + 1) >> 1) as u16);
    Pminub: |a, b| zip(a, b, u8::min);
    Pmaxub: |a, b| zip(a, b, u8::max);
    Pminsw: |a, b| zip(a, b, i16::min);
    Pmaxsw: |a, b| zip(a, b, i16::max);
    Pcmpeqb: |a, b| zip(a, b, |a: u8, b: u8| mask(a == b, u8::MAX, 0));
    Pcmpeqw: |a, b| zip(a, b, |a: u16, b: u16| mask(a == b, u16::MAX, 0));
    Pcmpeqd: |a, b| zip(a, b, |a: u32, b: u32| mask(a == b, u32::MAX, 0));
    Pcmpgtb: |a, b| zip(a, b, |a: i8, b: i8| mask(a > b, -1, 0));
    Pcmpgtw: |a, b| zip(a, b, |a: i16, b: i16| mask(a > b, -1, 0));
    Pcmpgtd: |a, b| zip(a, b, |a: i32, b: i32| mask(a > b, -1, 0));
    Pand: |a, b| zip(a, b, |a: u64, b: u64| a & b);
    Pandn: |a, b| zip(a, b, |a: u64, b: u64| !a & b);
    Por: |a, b| zip(a, b, |a: u64, b: u64| a | b);
    Pxor: |a, b| zip(a, b, |a: u64, b: u64| a ^ b);
    Packsswb: |a, b| pack(a, b, |lane: i16| lane.clamp(-0x80, 0x7f) as i8);
    Packssdw: |a, b| pack(a, b, |lane: i32| lane.clamp(-0x8000, 0x7fff) as i16);
    Packuswb: |a, b| pack(a, b, |lane: i16| lane.clamp(0, 0xff) as u8);
    Punpcklbw: |a, b| interleave::<u8, N>(a, b, 0);
    Punpcklwd: |a, b| interleave::<u16, N>(a, b, 0);
    Punpckldq: |a, b| interleave::<u32, N>(a, b, 0);
    Punpcklqdq: |a, b| interleave::<u64, N>(a, b, 0);
    Punpckhbw: |a, b| interleave::<u8, N>(a, b, N / 2);
    Punpckhwd: |a, b| interleave::<u16, N>(a, b, N / 4);
    Punpckhdq: |a, b| interleave::<u32, N>(a, b, N / 8);
    Punpckhqdq: |a, b| interleave::<u64, N>(a, b, N / 16);
    // Counts beyond the width give zero, or copies of the sign.
    Psllw: |a, b| shift(a, b, 16, |lane: u16, count| lane.checked_shl(count).unwrap_or(0));
    Pslld: |a, b| shift(a, b, 32, |lane: u32, count| lane.checked_shl(count).unwrap_or(0));
    Psllq: |a, b| shift(a, b, 64, |lane: u64, count| lane.checked_shl(count).unwrap_or(0));
    Psrlw: |a, b| shift(a, b, 16, |lane: u16, count| lane.checked_shr(count).unwrap_or(0));
    Psrld: |a, b| shift(a, b, 32, |lane: u32, count| lane.checked_shr(count).unwrap_or(0));
    Psrlq: |a, b| shift(a, b, 64, |lane: u64, count| lane.checked_shr(count).unwrap_or(0));
    Psraw: |a, b| shift(a, b, 15, |lane: i16, count| lane >> count);
    Psrad: |a, b| shift(a, b, 31, |lane: i32, count| lane >> count);
    // Byte shifts of the whole operand; the count is in bytes.
    Pslldq: |a: [u8; N], b: [u8; N]| core::array::from_fn(|i| i.checked_sub(usize::from(b[0])).map_or(0, |i| a[i]));
    Psrldq: |a: [u8; N], b: [u8; N]| core::array::from_fn(|i| a.get(i + usize::from(b[0])).copied().unwrap_or(0));
}

/// PMADDWD: products of signed words, added in pairs.
#[inline(always)]
fn multiply_add<const N: usize>(a: [u8; N], b: [u8; N]) -> [u8; N] {
    let mut out = [0; N];
    for i in 0..N / 4 {
        let product = |i| i32::from(i16::get(&a, i)) * i32::from(i16::get(&b, i));
        // Four times -32768 overflows to -2^31 (SDM Vol. 2, PMADDWD).
        product(2 * i).wrapping_add(product(2 * i + 1)).put(&mut out, i);
    }
    out
}

/// PSADBW: sums of absolute differences of eight bytes each.
#[inline(always)]
fn sum_of_differences<const N: usize>(a: [u8; N], b: [u8; N]) -> [u8; N] {
    let mut out = [0; N];
    for i in 0..N / 8 {
        let sum: u64 = (8 * i..8 * i + 8).map(|i| u64::from(a[i].abs_diff(b[i]))).sum();
        sum.put(&mut out, i);
    }
    out
}

/// `from` with four lanes, from lane `first` on, each replaced by the one among those four that two bits of `imm` name.
#[inline(always)]
fn choose<T: Lane, const N: usize>(from: [u8; N], first: usize, imm: u8) -> [u8; N] {
    let mut out = from;
    for i in 0..4 {
        T::get(&from, first + usize::from(imm >> (2 * i) & 3)).put(&mut out, first + i);
    }
    out
}

macro_rules! packed_immediate {
    ($($name:ident: $f:expr;)*) => {$(
        pub(super) struct $name;

        impl PackedImmediate for $name {
            #[inline(always)]
            fn apply<const N: usize>(a: [u8; N], b: [u8; N], imm: u8) -> [u8; N] {
                $f(a, b, imm)
            }
        }
    )*};
}

packed_immediate! {
    Pshufw: |_, b, imm| choose::<u16, N>(b, 0, imm);
    Pshuflw: |_, b, imm| choose::<u16, N>(b, 0, imm);
    Pshufhw: |_, b, imm| choose::<u16, N>(b, 4, imm);
    Pshufd: |_, b, imm| choose::<u32, N>(b, 0, imm);
    Shufps: shuffle_singles;
    Shufpd: shuffle_doubles;
}

/// SHUFPS: two lanes of the destination, then two of the source.
#[inline(always)]
fn shuffle_singles<const N: usize>(a: [u8; N], b: [u8; N], imm: u8) -> [u8; N] {
    let mut out = [0; N];
    for i in 0..4 {
        let from = if i < 2 { &a } else { &b };
        u32::get(from, usize::from(imm >> (2 * i) & 3)).put(&mut out, i);
    }
    out
}

/// SHUFPD: one lane of the destination, then one of the source.
#[inline(always)]
fn shuffle_doubles<const N: usize>(a: [u8; N], b: [u8; N], imm: u8) -> [u8; N] {
    let mut out = [0; N];
    u64::get(&a, usize::from(imm & 1)).put(&mut out, 0);
    u64::get(&b, usize::from(imm >> 1 & 1)).put(&mut out, 1);
    out
}

/// The top bit of each lane, the first lane's lowest: PMOVMSKB, MOVMSKPS, MOVMSKPD.
#[inline(always)]
pub(super) fn sign_mask<const LANE: usize>(bytes: &[u8]) -> u64 {
    let mut bits = 0;
    for (i, lane) in bytes.chunks_exact(LANE).enumerate() {
        bits |= u64::from(lane[LANE - 1] >> 7) << i;
    }
    bits
}

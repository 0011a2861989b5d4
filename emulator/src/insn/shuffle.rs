//! Shuffles and single elements of packed operands, in 8 bytes (MMX registers) or 16 (XMM registers).

/// An element of a packed operand.
pub(super) trait Lane: Copy {
    /// The `i`-th element.
    fn get(bytes: &[u8], i: usize) -> Self;

    /// Sets the `i`-th element.
    fn put(self, bytes: &mut [u8], i: usize);
}

macro_rules! lane {
    ($($t:ty)*) => {$(
        impl Lane for $t {
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

lane!(u8 u16 u32 u64 i8 i16 i32 i64 u128);

/// A packed operation of two operands and an immediate byte.
pub(super) trait PackedImmediate: 'static {
    /// The new destination; `a` is the old one, `b` the source.
    fn apply<const N: usize>(a: [u8; N], b: [u8; N], imm: u8) -> [u8; N];
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
    ($($name:ident: |$a:pat_param, $b:ident, $imm:ident| $value:expr;)*) => {$(
        pub(super) struct $name;

        impl PackedImmediate for $name {
            #[inline(always)]
            fn apply<const N: usize>($a: [u8; N], $b: [u8; N], $imm: u8) -> [u8; N] {
                $value
            }
        }
    )*};
}

packed_immediate! {
    Pshufw: |_, b, imm| choose::<u16, N>(b, 0, imm);
    Pshuflw: |_, b, imm| choose::<u16, N>(b, 0, imm);
    Pshufhw: |_, b, imm| choose::<u16, N>(b, 4, imm);
    Pshufd: |_, b, imm| choose::<u32, N>(b, 0, imm);
    Shufps: |a, b, imm| shuffle_singles(a, b, imm);
    Shufpd: |a, b, imm| shuffle_doubles(a, b, imm);
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

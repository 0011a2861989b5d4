//! Packed integer operations on XMM and MMX registers.
//!
//! SSE2 belongs to every host that the emulator runs on, and these operations depend on nothing but their operands: each is
//! the host's own instruction. An MMX operation is the same one on the low halves, arranged as its [`Shape`] says.
//!
//! This module is unsafe because the compiler counts every vector instruction as such.
#![allow(unsafe_code, reason = "vector instructions are unsafe functions")]

use core::arch::x86_64::*;

/// How the operation on MMX registers follows from that on XMM registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Lane by lane: on the low halves.
    Lanes,
    /// Lanes of both operands become narrower: of the operands put side by side.
    Pack,
    /// Interleaves low halves: the low half of that.
    UnpackLow,
    /// Interleaves high halves: those of MMX registers end where the low halves' interleaving does.
    UnpackHigh,
}

/// A packed operation of two operands.
pub(crate) trait Packed: 'static {
    /// For MMX.
    const SHAPE: Shape = Shape::Lanes;

    /// The new destination; `a` is the old one, `b` the source.
    fn apply(a: __m128i, b: __m128i) -> __m128i;

    /// The same on XMM registers as bytes.
    #[inline(always)]
    fn xmm(a: [u8; 16], b: [u8; 16]) -> [u8; 16] {
        from_vector(Self::apply(
            to_vector(u128::from_le_bytes(a)),
            to_vector(u128::from_le_bytes(b)),
        ))
        .to_le_bytes()
    }

    /// The same on MMX registers.
    #[inline(always)]
    fn mm(a: u64, b: u64) -> u64 {
        let (x, y) = (u128::from(a), u128::from(b));
        let apply = |x, y| from_vector(Self::apply(to_vector(x), to_vector(y)));
        match Self::SHAPE {
            Shape::Lanes | Shape::UnpackLow => apply(x, y) as u64,
            Shape::Pack => apply(y << 64 | x, 0) as u64,
            // Shifted up, the operands have their high halves where XMM registers have theirs.
            Shape::UnpackHigh => (apply(x << 64, y << 64) >> 64) as u64,
        }
    }
}

#[inline(always)]
fn to_vector(value: u128) -> __m128i {
    // SAFETY: SSE2 is part of x86-64.
    unsafe { _mm_set_epi64x((value >> 64) as i64, value as i64) }
}

#[inline(always)]
fn from_vector(vector: __m128i) -> u128 {
    // SAFETY: SSE2 is part of x86-64.
    let (low, high) = unsafe {
        let high = _mm_unpackhi_epi64(vector, vector);
        (_mm_cvtsi128_si64(vector), _mm_cvtsi128_si64(high))
    };
    u128::from(high as u64) << 64 | u128::from(low as u64)
}

macro_rules! packed {
    ($shape:ident: $($name:ident $apply:path,)*) => {$(
        pub(crate) struct $name;

        impl Packed for $name {
            const SHAPE: Shape = Shape::$shape;

            #[inline(always)]
            fn apply(a: __m128i, b: __m128i) -> __m128i {
                // SAFETY: SSE2 is part of x86-64.
                unsafe { $apply(a, b) }
            }
        }
    )*};
}

packed! { Lanes:
    Paddb _mm_add_epi8,
    Paddw _mm_add_epi16,
    Paddd _mm_add_epi32,
    Paddq _mm_add_epi64,
    Paddsb _mm_adds_epi8,
    Paddsw _mm_adds_epi16,
    Paddusb _mm_adds_epu8,
    Paddusw _mm_adds_epu16,
    Psubb _mm_sub_epi8,
    Psubw _mm_sub_epi16,
    Psubd _mm_sub_epi32,
    Psubq _mm_sub_epi64,
    Psubsb _mm_subs_epi8,
    Psubsw _mm_subs_epi16,
    Psubusb _mm_subs_epu8,
    Psubusw _mm_subs_epu16,
    Pmullw _mm_mullo_epi16,
    Pmulhw _mm_mulhi_epi16,
    Pmulhuw _mm_mulhi_epu16,
    Pmuludq _mm_mul_epu32,
    Pmaddwd _mm_madd_epi16,
    Psadbw _mm_sad_epu8,
    Pavgb _mm_avg_epu8,
    Pavgw _mm_avg_epu16,
    Pminub _mm_min_epu8,
    Pmaxub _mm_max_epu8,
    Pminsw _mm_min_epi16,
    Pmaxsw _mm_max_epi16,
    Pcmpeqb _mm_cmpeq_epi8,
    Pcmpeqw _mm_cmpeq_epi16,
    Pcmpeqd _mm_cmpeq_epi32,
    Pcmpgtb _mm_cmpgt_epi8,
    Pcmpgtw _mm_cmpgt_epi16,
    Pcmpgtd _mm_cmpgt_epi32,
    Pand _mm_and_si128,
    Pandn _mm_andnot_si128,
    Por _mm_or_si128,
    Pxor _mm_xor_si128,
    // The count is the low quadword of the source.
    Psllw _mm_sll_epi16,
    Pslld _mm_sll_epi32,
    Psllq _mm_sll_epi64,
    Psrlw _mm_srl_epi16,
    Psrld _mm_srl_epi32,
    Psrlq _mm_srl_epi64,
    Psraw _mm_sra_epi16,
    Psrad _mm_sra_epi32,
}

packed! { Pack:
    Packsswb _mm_packs_epi16,
    Packssdw _mm_packs_epi32,
    Packuswb _mm_packus_epi16,
}

packed! { UnpackLow:
    Punpcklbw _mm_unpacklo_epi8,
    Punpcklwd _mm_unpacklo_epi16,
    Punpckldq _mm_unpacklo_epi32,
    Punpcklqdq _mm_unpacklo_epi64,
}

packed! { UnpackHigh:
    Punpckhbw _mm_unpackhi_epi8,
    Punpckhwd _mm_unpackhi_epi16,
    Punpckhdq _mm_unpackhi_epi32,
    Punpckhqdq _mm_unpackhi_epi64,
}

/// PSLLDQ: by as many bytes as the low byte of the source says; 16 and more leave nothing.
pub(crate) struct Pslldq;

impl Packed for Pslldq {
    #[inline(always)]
    fn apply(a: __m128i, b: __m128i) -> __m128i {
        let count = 8 * (from_vector(b) as u32 & 0xff);
        to_vector(from_vector(a).checked_shl(count).unwrap_or(0))
    }
}

/// PSRLDQ.
pub(crate) struct Psrldq;

impl Packed for Psrldq {
    #[inline(always)]
    fn apply(a: __m128i, b: __m128i) -> __m128i {
        let count = 8 * (from_vector(b) as u32 & 0xff);
        to_vector(from_vector(a).checked_shr(count).unwrap_or(0))
    }
}

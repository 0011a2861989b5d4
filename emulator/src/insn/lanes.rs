//! Operations on the lanes of a packed operand of 8 or 16 bytes: the shapes that most of them have.

use super::shuffle::Lane;

/// Names operations of two operands and an immediate byte; each becomes a [`PackedImmediate`](super::shuffle::PackedImmediate).
macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident: |$a:pat_param, $b:pat_param, $imm:pat_param| $value:expr;)*) => {$(
        $(#[$doc])*
        pub(in crate::insn) struct $name;

        impl $crate::insn::shuffle::PackedImmediate for $name {
            fn apply<const N: usize>($a: [u8; N], $b: [u8; N], $imm: u8) -> [u8; N] {
                $value
            }
        }
    )*};
}

pub(super) use operations;

/// How many lanes there are.
pub(super) const fn count<T, const N: usize>() -> usize {
    N / size_of::<T>()
}

/// The vector whose lane `i` is `f(i)`.
#[inline]
pub(super) fn build<T: Lane, const N: usize>(mut f: impl FnMut(usize) -> T) -> [u8; N] {
    let mut out = [0; N];
    for i in 0..count::<T, N>() {
        f(i).put(&mut out, i);
    }
    out
}

/// Each lane by itself.
#[inline]
pub(super) fn map<T: Lane, const N: usize>(a: [u8; N], mut f: impl FnMut(T) -> T) -> [u8; N] {
    build(|i| f(T::get(&a, i)))
}

/// Each lane of one operand with that of the other.
#[inline]
pub(super) fn zip<T: Lane, const N: usize>(a: [u8; N], b: [u8; N], mut f: impl FnMut(T, T) -> T) -> [u8; N] {
    build(|i| f(T::get(&a, i), T::get(&b, i)))
}

/// Neighbours of the first operand, then neighbours of the second.
#[inline]
pub(super) fn neighbours<T: Lane, const N: usize>(a: [u8; N], b: [u8; N], mut f: impl FnMut(T, T) -> T) -> [u8; N] {
    let half = count::<T, N>() / 2;
    build(|i| {
        let (from, at) = if i < half { (&a, 2 * i) } else { (&b, 2 * (i - half)) };
        f(T::get(from, at), T::get(from, at + 1))
    })
}

/// The lanes of `a`, or of `b` where `choose` says so.
#[inline]
pub(super) fn select<T: Lane, const N: usize>(
    a: [u8; N],
    b: [u8; N],
    mut choose: impl FnMut(usize) -> bool,
) -> [u8; N] {
    build(|i| T::get(if choose(i) { &b } else { &a }, i))
}

/// An operation with a third operand, which the legacy encodings have in XMM0.
pub(super) trait Ternary: 'static {
    /// The new destination; `a` is the old one, `b` the source.
    fn apply(a: [u8; 16], b: [u8; 16], c: [u8; 16]) -> [u8; 16];
}

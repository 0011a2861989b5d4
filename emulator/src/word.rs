//! The operand widths of the integer instructions.

/// An unsigned integer that an instruction moves or computes with: [`u8`], [`u16`], [`u32`], [`u64`].
pub trait Word: Copy + Eq + Default + Send + 'static {
    /// Width in bytes.
    const SIZE: usize;
    /// Width in bits.
    const BITS: u32 = Self::SIZE as u32 * 8;
    /// All bits of this width set.
    const MASK: u64 = u64::MAX >> (64 - Self::BITS);

    /// The low bits of `value`.
    fn truncate(value: u64) -> Self;

    /// Zero-extended to 64 bits.
    fn zero_extend(self) -> u64;

    /// Sign-extended to 64 bits.
    #[inline(always)]
    fn sign_extend(self) -> u64 {
        sign_extend::<Self>(self.zero_extend())
    }
}

/// Takes `value` as an integer of width `T` and sign-extends it to 64 bits.
#[inline(always)]
pub fn sign_extend<T: Word>(value: u64) -> u64 {
    ((value << (64 - T::BITS)) as i64 >> (64 - T::BITS)) as u64
}

macro_rules! word {
    ($($t:ty)*) => {$(
        impl Word for $t {
            const SIZE: usize = size_of::<$t>();

            #[inline(always)]
            fn truncate(value: u64) -> Self {
                value as $t
            }

            #[inline(always)]
            fn zero_extend(self) -> u64 {
                u64::from(self)
            }
        }
    )*};
}

word!(u8 u16 u32 u64);

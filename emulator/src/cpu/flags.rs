//! RFLAGS, with the six status flags kept lazily.
//!
//! An arithmetic instruction leaves its sign-extended result and the carries out of every bit; each flag is then a
//! shift away, without a branch on what the instruction was. Most results are overwritten before anybody looks.

use serde::{Deserialize, Serialize};

use crate::word::{Word, sign_extend};

/// Carry.
pub const CF: u64 = 1 << 0;
/// Reads as one.
pub const RESERVED_ONE: u64 = 1 << 1;
/// Parity of the low byte.
pub const PF: u64 = 1 << 2;
/// Carry out of bit 3.
pub const AF: u64 = 1 << 4;
/// Zero.
pub const ZF: u64 = 1 << 6;
/// Sign.
pub const SF: u64 = 1 << 7;
/// Trap: single step.
pub const TF: u64 = 1 << 8;
/// Interrupts enabled.
pub const IF: u64 = 1 << 9;
/// Direction of string instructions.
pub const DF: u64 = 1 << 10;
/// Overflow.
pub const OF: u64 = 1 << 11;
/// I/O privilege level, two bits.
pub const IOPL: u64 = 3 << 12;
/// Nested task.
pub const NT: u64 = 1 << 14;
/// Resume: one instruction without instruction breakpoints.
pub const RF: u64 = 1 << 16;
/// Virtual-8086 mode.
pub const VM: u64 = 1 << 17;
/// Alignment check, and the override of SMAP.
pub const AC: u64 = 1 << 18;
/// Virtual interrupt flag.
pub const VIF: u64 = 1 << 19;
/// Virtual interrupt pending.
pub const VIP: u64 = 1 << 20;
/// CPUID can be executed.
pub const ID: u64 = 1 << 21;

/// OF, SF, ZF, AF, PF and CF.
pub const STATUS: u64 = OF | SF | ZF | AF | PF | CF;
/// Every flag that can be other than its reserved value.
pub const DEFINED: u64 = STATUS | TF | IF | DF | IOPL | NT | RF | VM | AC | VIF | VIP | ID;

/// Carry out of bit 3, in [`Flags::low`].
const LOW_AF: u32 = 1 << 3;
/// Sign flag differs from the result's sign, in [`Flags::low`].
const LOW_SF_DIFFERS: u32 = 1 << 8;
/// Parity flag differs from the result's parity, in [`Flags::low`].
const LOW_PF_DIFFERS: u32 = 1 << 9;

/// RFLAGS.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(from = "u64", into = "u64")]
pub struct Flags {
    /// The last result, sign-extended: ZF, SF, and PF from its low byte.
    result: u64,
    /// Carries: bit 63 is CF, bits 63 and 62 differ for OF.
    carries: u64,
    /// Carries out of the low bits, for AF; and corrections for combinations that no result has (ZF with SF, say).
    low: u32,
    /// The other flags, as in RFLAGS.
    control: u32,
}

impl Flags {
    /// Records the result and carries-out of an addition or subtraction of width `T`; `carries` has bit i set if bit i
    /// carried (borrowed) out.
    #[inline(always)]
    pub(crate) fn set_arithmetic<T: Word>(&mut self, result: u64, carries: u64) {
        self.result = sign_extend::<T>(result);
        self.carries = carries << (64 - T::BITS);
        self.low = u32::from(carries as u8);
        self.low &= 0xff;
    }

    /// As [`Flags::set_arithmetic`], but CF stays (INC, DEC).
    #[inline(always)]
    pub(crate) fn set_arithmetic_keep_carry<T: Word>(&mut self, result: u64, carries: u64) {
        let carry = self.carries >> 63;
        self.set_arithmetic::<T>(result, carries);
        let overflow = (self.carries ^ (self.carries << 1)) >> 63;
        self.carries = (carry << 63) | ((carry ^ overflow) << 62);
    }

    /// Records a result of width `T` with CF and OF given; AF as given.
    #[inline(always)]
    pub(crate) fn set_shift<T: Word>(&mut self, result: u64, carry: bool, overflow: bool, adjust: bool) {
        self.result = sign_extend::<T>(result);
        self.set_carry_overflow_bits(carry, overflow);
        self.low = if adjust { LOW_AF } else { 0 };
    }

    /// Sets CF and OF, keeps the other flags.
    #[inline(always)]
    pub(crate) fn set_carry_overflow(&mut self, carry: bool, overflow: bool) {
        self.set_carry_overflow_bits(carry, overflow);
    }

    #[inline(always)]
    fn set_carry_overflow_bits(&mut self, carry: bool, overflow: bool) {
        self.carries = u64::from(carry) << 63 | u64::from(carry ^ overflow) << 62;
    }

    /// Sets CF, keeps the other flags.
    #[inline(always)]
    pub(crate) fn set_carry(&mut self, carry: bool) {
        let overflow = self.overflow();
        self.set_carry_overflow_bits(carry, overflow);
    }

    /// CF.
    #[inline(always)]
    pub fn carry(&self) -> bool {
        self.carries >> 63 != 0
    }

    /// ZF.
    #[inline(always)]
    pub fn zero(&self) -> bool {
        self.result == 0
    }

    /// SF.
    #[inline(always)]
    pub fn sign(&self) -> bool {
        (self.result >> 63) as u32 != (self.low & LOW_SF_DIFFERS) >> 8
    }

    /// OF.
    #[inline(always)]
    pub fn overflow(&self) -> bool {
        (self.carries ^ (self.carries << 1)) >> 63 != 0
    }

    /// PF.
    #[inline(always)]
    pub fn parity(&self) -> bool {
        ((self.result as u8).count_ones() & 1 == 0) != (self.low & LOW_PF_DIFFERS != 0)
    }

    /// AF.
    #[inline(always)]
    pub fn adjust(&self) -> bool {
        self.low & LOW_AF != 0
    }

    /// The status flags as bits of RFLAGS.
    #[inline]
    pub fn status(&self) -> u64 {
        let bit = |set: bool, flag: u64| if set { flag } else { 0 };
        bit(self.carry(), CF)
            | bit(self.parity(), PF)
            | bit(self.adjust(), AF)
            | bit(self.zero(), ZF)
            | bit(self.sign(), SF)
            | bit(self.overflow(), OF)
    }

    /// Sets the status flags from bits of RFLAGS; other bits of `bits` are ignored.
    #[inline]
    pub fn set_status(&mut self, bits: u64) {
        // Non-zero results have clear sign and odd-or-even parity as needed; zero has even parity and no sign.
        let zero = bits & ZF != 0;
        self.result = u64::from(!zero);
        let (sign, parity) = (bits & SF != 0, bits & PF != 0);
        let natural_parity = zero; // 0 has even parity, 1 odd.
        self.low = if bits & AF != 0 { LOW_AF } else { 0 }
            | if sign { LOW_SF_DIFFERS } else { 0 }
            | if parity != natural_parity { LOW_PF_DIFFERS } else { 0 };
        self.set_carry_overflow_bits(bits & CF != 0, bits & OF != 0);
    }

    /// RFLAGS.
    #[inline]
    pub fn bits(&self) -> u64 {
        u64::from(self.control) | self.status() | RESERVED_ONE
    }

    /// Replaces RFLAGS; reserved bits take their fixed values.
    #[inline]
    pub fn set_bits(&mut self, bits: u64) {
        self.control = (bits & DEFINED & !STATUS) as u32;
        self.set_status(bits);
    }

    /// Replaces the flags of `mask` with those of `bits`.
    pub(crate) fn replace(&mut self, mask: u64, bits: u64) {
        self.set_bits(self.bits() & !mask | bits & mask);
    }

    /// Any of the control and system flags of `mask` is set; status flags are not looked at.
    #[inline(always)]
    pub fn any(&self, mask: u64) -> bool {
        u64::from(self.control) & mask != 0
    }

    /// Sets or clears control and system flags; status flags cannot be named.
    #[inline(always)]
    pub(crate) fn assign(&mut self, mask: u64, value: bool) {
        debug_assert!(mask & STATUS == 0);
        if value {
            self.control |= mask as u32;
        } else {
            self.control &= !(mask as u32);
        }
    }

    /// IF.
    #[inline(always)]
    pub fn interrupt(&self) -> bool {
        self.any(IF)
    }

    /// DF.
    #[inline(always)]
    pub fn direction(&self) -> bool {
        self.any(DF)
    }

    /// IOPL, 0 to 3.
    #[inline(always)]
    pub fn iopl(&self) -> u8 {
        (self.control >> 12 & 3) as u8
    }
}

impl Default for Flags {
    fn default() -> Flags {
        Flags::from(RESERVED_ONE)
    }
}

impl From<u64> for Flags {
    fn from(bits: u64) -> Flags {
        let mut flags = Flags {
            result: 0,
            carries: 0,
            low: 0,
            control: 0,
        };
        flags.set_bits(bits);
        flags
    }
}

impl From<Flags> for u64 {
    fn from(flags: Flags) -> u64 {
        flags.bits()
    }
}

impl PartialEq for Flags {
    fn eq(&self, other: &Flags) -> bool {
        self.bits() == other.bits()
    }
}

impl Eq for Flags {}

impl core::fmt::Debug for Flags {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        const NAMES: [(u64, &str); 11] = [
            (OF, "OF"),
            (DF, "DF"),
            (IF, "IF"),
            (TF, "TF"),
            (SF, "SF"),
            (ZF, "ZF"),
            (AF, "AF"),
            (PF, "PF"),
            (CF, "CF"),
            (AC, "AC"),
            (NT, "NT"),
        ];
        write!(f, "{:#x}", self.bits())?;
        for (bit, name) in NAMES {
            if self.bits() & bit != 0 {
                write!(f, " {name}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_of_status_flags_survives() {
        for bits in 0..=0xfffu64 {
            let flags = Flags::from(bits);
            assert_eq!(flags.status(), bits & STATUS);
        }
    }

    #[test]
    fn setting_the_carry_keeps_the_overflow() {
        for bits in 0..=0xfffu64 {
            let mut flags = Flags::from(bits);
            flags.set_carry(true);
            assert_eq!(flags.status(), bits & STATUS | CF);
            flags.set_carry(false);
            assert_eq!(flags.status(), bits & STATUS & !CF);
        }
    }
}

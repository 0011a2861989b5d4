//! How fast a time-stamp counter counts: ticks to nanoseconds of the machine's clock, and back.

use reprise_emulator::cpuid::{CpuidEntry, CpuidRegisters};

/// Nanoseconds of a millisecond, which is what kHz count by.
const MILLISECOND: u128 = 1_000_000;

/// The frequencies that a state may tell, in kHz.
const SOUND: std::ops::RangeInclusive<u32> = 1_000..=20_000_000;

/// The frequency of a machine's time-stamp counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TscRate(u32);

impl TscRate {
    /// A tick is a nanosecond.
    pub const GIGAHERTZ: Self = Self(1_000_000);

    /// `khz` kHz; `None` if no processor counts like that.
    pub fn new(khz: u32) -> Option<Self> {
        SOUND.contains(&khz).then_some(Self(khz))
    }

    /// In kHz.
    pub fn khz(self) -> u32 {
        self.0
    }

    /// How many ticks have passed after so many nanoseconds, modulo 2⁶⁴ as the counter.
    #[inline]
    pub fn ticks(self, nanoseconds: u64) -> u64 {
        if self == Self::GIGAHERTZ {
            return nanoseconds;
        }
        (u128::from(nanoseconds) * u128::from(self.0) / MILLISECOND) as u64
    }

    /// The nanoseconds after which at least so many ticks have passed.
    #[inline]
    pub fn nanoseconds(self, ticks: u64) -> u64 {
        if self == Self::GIGAHERTZ {
            return ticks;
        }
        let nanoseconds = (u128::from(ticks) * MILLISECOND).div_ceil(u128::from(self.0));
        u64::try_from(nanoseconds).unwrap_or(u64::MAX)
    }

    /// CPUID leaf 0x15 of a counter at `khz`: the crystal's frequency and the counter's ratio to it. The crystal is the counter,
    /// or a tenth of it where 32 bits of hertz are not enough.
    pub fn crystal(khz: u32) -> CpuidRegisters {
        let (ratio, ecx) = match khz.checked_mul(1000) {
            Some(hertz) => (1, hertz),
            None => (10, khz.saturating_mul(100)),
        };
        CpuidRegisters {
            eax: 1,
            ebx: ratio,
            ecx,
            edx: 0,
        }
    }

    /// Has CPUID answer that the counter counts like this.
    pub fn announce(self, entries: &mut [CpuidEntry]) {
        for entry in entries {
            match entry.leaf {
                0x15 => entry.registers = Self::crystal(self.0),
                0x4000_0010 => entry.registers.eax = self.0,
                _ => {}
            }
        }
    }

    /// `tsc_shift` and `tsc_to_system_mul` of kvmclock: nanoseconds are (ticks << shift) * mul / 2³².
    pub fn kvmclock_scale(self) -> (i8, u32) {
        let ratio = (MILLISECOND << 64) / u128::from(self.0);
        let shift = 64 - ratio.leading_zeros() as i32;
        let multiplier = ratio >> (32 + shift);
        (shift as i8, multiplier as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates() -> impl Iterator<Item = TscRate> {
        [1_000, 999_999, 1_000_000, 1_000_001, 2_449_998, 5_700_000, 20_000_000]
            .into_iter()
            .filter_map(TscRate::new)
    }

    #[test]
    fn a_deadline_in_ticks_has_come_when_its_nanoseconds_have_passed_and_not_much_before() {
        for rate in rates() {
            for ticks in [1, 2, 999, 1_000_003, 1 << 40, 1 << 50] {
                let nanoseconds = rate.nanoseconds(ticks);
                assert!(rate.ticks(nanoseconds) >= ticks, "{rate:?}, {ticks}");
                assert!(rate.ticks(nanoseconds - 1) < ticks, "{rate:?}, {ticks}");
            }
        }
    }

    #[test]
    fn kvmclock_counts_as_the_counter_does() {
        assert_eq!(TscRate::GIGAHERTZ.kvmclock_scale(), (1, 1 << 31));
        for rate in rates() {
            let (shift, multiplier) = rate.kvmclock_scale();
            let ticks = u128::from(rate.ticks(10_000_000_000));
            let shifted = if shift < 0 { ticks >> -shift } else { ticks << shift };
            let nanoseconds = (shifted * u128::from(multiplier)) >> 32;
            assert!(nanoseconds.abs_diff(10_000_000_000) < 100, "{rate:?}: {nanoseconds}");
            assert!(multiplier >> 31 == 1, "{rate:?}");
        }
    }

    #[test]
    fn a_counter_beyond_32_bits_of_hertz_is_a_multiple_of_its_crystal() {
        for khz in [1_000_000, 4_294_967, 4_294_968, 5_700_000] {
            let CpuidRegisters { eax, ebx, ecx, .. } = TscRate::crystal(khz);
            assert_eq!(u64::from(ecx) * u64::from(ebx) / u64::from(eax), u64::from(khz) * 1000);
        }
    }

    #[test]
    fn frequencies_that_there_are_not_are_none() {
        assert_eq!([0, 999, 20_000_001, u32::MAX].map(TscRate::new), [None; 4]);
    }
}

//! kvmclock: the time of day and the machine's time, in structures the guest reads in its own memory.
//!
//! The layout and its protocol are those of Linux' `Documentation/virt/kvm/x86/msr.rst`: the version is odd while a
//! structure is being written. As the time-stamp counter follows the machine's clock and stands still with it, a structure
//! stays right until the guest changes its counter.

use std::sync::atomic::{Ordering, fence};

use reprise_emulator::Ram;
use reprise_emulator::paging::PHYSICAL_BITS;

use super::clock::Clock;
use super::lapic::Now;
use crate::state::PlatformMsrs;
use crate::tsc::TscRate;

/// MSR: where the time of day shall be written.
pub const MSR_WALL_CLOCK: u32 = 0x4b56_4d00;
/// MSR: where this vCPU's time shall be written, bit 0 set.
pub const MSR_SYSTEM_TIME: u32 = 0x4b56_4d01;

/// `flags`: the counters of all vCPUs agree.
const TSC_STABLE: u32 = 1;

/// The kvmclock of one vCPU.
#[derive(Debug, Clone)]
pub struct KvmClock {
    wall_clock: u64,
    system_time: u64,
    version: u32,
    rate: TscRate,
}

impl KvmClock {
    /// A clock before the guest knows of it, beside a time-stamp counter of this rate.
    pub fn new(rate: TscRate) -> Self {
        Self {
            wall_clock: 0,
            system_time: 0,
            version: 0,
            rate,
        }
    }

    /// How fast the time-stamp counter counts.
    pub fn rate(&self) -> TscRate {
        self.rate
    }

    /// The clock whose MSRs are as `state` says. The structures in memory are restored with the memory; they stay right, as
    /// the machine's clock and the counter go on from where they were.
    pub fn from_state(state: &PlatformMsrs, rate: TscRate) -> Self {
        Self {
            wall_clock: state.kvm_wall_clock,
            system_time: state.kvm_system_time,
            version: state.kvm_clock_version & !1,
            rate,
        }
    }

    /// Adds the MSRs to `state`.
    pub fn save(&self, state: &mut PlatformMsrs) {
        state.kvm_wall_clock = self.wall_clock;
        state.kvm_system_time = self.system_time;
        state.kvm_clock_version = self.version;
    }

    /// What the MSR reads; `None` if it is none of this clock's.
    pub fn read_msr(&self, msr: u32) -> Option<u64> {
        match msr {
            MSR_WALL_CLOCK => Some(self.wall_clock),
            MSR_SYSTEM_TIME => Some(self.system_time),
            _ => None,
        }
    }

    /// Writes the MSR and with it the structure; false if it is none of this clock's. An address where there is no
    /// memory gets nothing.
    pub fn write_msr(&mut self, msr: u32, value: u64, ram: &Ram, clock: &Clock, now: Now) -> bool {
        match msr {
            MSR_WALL_CLOCK => {
                self.wall_clock = value;
                let wall = clock.wall_at_zero();
                self.publish(ram, value, &[wall.as_secs() as u32, wall.subsec_nanos()]);
            }
            MSR_SYSTEM_TIME => {
                self.system_time = value;
                self.refresh(ram, now);
            }
            _ => return false,
        }
        true
    }

    /// Writes this vCPU's time again, after its time-stamp counter was changed.
    pub fn refresh(&mut self, ram: &Ram, now: Now) {
        if self.system_time & 1 != 0 {
            let (shift, multiplier) = self.rate.kvmclock_scale();
            let halves = |value: u64| [value as u32, (value >> 32) as u32];
            let ([tsc_low, tsc_high], [time_low, time_high]) = (halves(now.tsc), halves(now.clock));
            let words = [
                0,
                tsc_low,
                tsc_high,
                time_low,
                time_high,
                multiplier,
                u32::from(shift as u8) | TSC_STABLE << 8,
            ];
            self.publish(ram, self.system_time & !1, &words);
        }
    }

    /// Writes `words` behind the version at `address`, which must be a multiple of 4.
    fn publish(&mut self, ram: &Ram, address: u64, words: &[u32]) {
        // Words do not cross a page when they are aligned; the guest's other addresses are its mistake.
        if address & 3 != 0 || address > 1 << PHYSICAL_BITS {
            return;
        }
        let write = |index: usize, word: u32| ram.write(address + 4 * index as u64, 4, u64::from(word));
        write(0, self.version | 1);
        fence(Ordering::SeqCst);
        for (index, word) in words.iter().enumerate() {
            write(index + 1, *word);
        }
        fence(Ordering::SeqCst);
        self.version = self.version.wrapping_add(2) & !1;
        write(0, self.version);
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestAddress;

    use super::*;
    use crate::GuestMemory;

    fn ram() -> Ram {
        Ram::new(GuestMemory::from_ranges(&[(GuestAddress(0), 0x2000)]).unwrap()).unwrap()
    }

    fn words(ram: &Ram, address: u64, count: u64) -> Vec<u64> {
        (0..count)
            .map(|index| ram.read(address + 4 * index, 4).unwrap())
            .collect()
    }

    /// What a guest computes (pvclock protocol) from the structure at `address` and its counter.
    fn guest_time(ram: &Ram, address: u64, tsc: u64) -> u64 {
        let words = words(ram, address, 8);
        assert_eq!(words[0] & 1, 0, "the version is even when the structure is complete");
        let join = |low: u64, high: u64| high << 32 | low;
        let delta = tsc.wrapping_sub(join(words[2], words[3])) << (words[7] & 0xff);
        join(words[4], words[5]) + ((u128::from(delta) * u128::from(words[6])) >> 32) as u64
    }

    #[test]
    fn the_guest_computes_the_machine_time_from_its_counter() {
        let (ram, clock, mut kvmclock) = (ram(), Clock::new(), KvmClock::new(TscRate::GIGAHERTZ));
        let now = Now {
            clock: 5_000_000_123,
            tsc: 77,
        };
        assert!(kvmclock.write_msr(MSR_SYSTEM_TIME, 0x1001, &ram, &clock, now));
        assert_eq!(guest_time(&ram, 0x1000, 77), 5_000_000_123);
        assert_eq!(guest_time(&ram, 0x1000, 77 + 1_000_000_001), 6_000_000_124);
        assert_eq!(words(&ram, 0x101c, 1)[0] >> 8 & 0xff, 1, "stable");
        assert_eq!(kvmclock.read_msr(MSR_SYSTEM_TIME), Some(0x1001));
    }

    #[test]
    fn each_update_raises_the_version_by_two() {
        let (ram, clock, mut kvmclock) = (ram(), Clock::new(), KvmClock::new(TscRate::GIGAHERTZ));
        let now = Now { clock: 1, tsc: 1 };
        for version in [2, 4, 6] {
            kvmclock.write_msr(MSR_SYSTEM_TIME, 0x1001, &ram, &clock, now);
            assert_eq!(words(&ram, 0x1000, 1), [version]);
        }
        kvmclock.refresh(&ram, Now { clock: 9, tsc: 2 });
        assert_eq!((words(&ram, 0x1000, 1), guest_time(&ram, 0x1000, 2)), (vec![8], 9));
    }

    #[test]
    fn the_wall_clock_is_the_time_of_day_at_the_start_of_the_machine() {
        let (ram, clock, mut kvmclock) = (ram(), Clock::new(), KvmClock::new(TscRate::GIGAHERTZ));
        let before = clock.wall_at_zero().as_secs();
        kvmclock.write_msr(MSR_WALL_CLOCK, 0x40, &ram, &clock, Now { clock: 0, tsc: 0 });
        let words = words(&ram, 0x40, 3);
        assert!(words[0] != 0 && words[0] & 1 == 0);
        assert!(words[1].abs_diff(before) <= 1 && words[2] < 1_000_000_000);
    }

    #[test]
    fn addresses_that_are_odd_or_nowhere_get_nothing() {
        let (ram, clock, mut kvmclock) = (ram(), Clock::new(), KvmClock::new(TscRate::GIGAHERTZ));
        let now = Now { clock: 1, tsc: 1 };
        for address in [0x1003, 0xffff_ffff_ffff_fff1, 0x10_0001, 0x1ff1] {
            assert!(kvmclock.write_msr(MSR_SYSTEM_TIME, address, &ram, &clock, now));
        }
        assert_eq!(words(&ram, 0x1000, 8), [0; 8]);
        assert!(!kvmclock.write_msr(0x4b56_4d02, 0, &ram, &clock, now));
        assert_eq!(kvmclock.read_msr(0x4b56_4d02), None);
    }

    #[test]
    fn a_disabled_clock_is_not_written() {
        let (ram, clock, mut kvmclock) = (ram(), Clock::new(), KvmClock::new(TscRate::GIGAHERTZ));
        kvmclock.write_msr(MSR_SYSTEM_TIME, 0x1000, &ram, &clock, Now { clock: 1, tsc: 1 });
        kvmclock.refresh(&ram, Now { clock: 9, tsc: 2 });
        assert_eq!(words(&ram, 0x1000, 8), [0; 8]);
    }
}

//! The model-specific registers that belong to the platform, not to the processor: local APIC, time, and those of KVM's or
//! Hyper-V's interface.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use reprise_emulator::paging::PHYSICAL_BITS;
use reprise_emulator::{Host, Ram};

use super::chipset::Chipset;
use super::hyperv::{self, Partition};
use super::kvmclock::KvmClock;
use super::lapic::{GeneralProtection, Now};
use super::steal::{MSR_STEAL_TIME, RunDelay, StealTime};
use crate::state::PlatformMsrs;
use crate::tsc::TscRate;

const IA32_TIME_STAMP_COUNTER: u32 = 0x10;
const IA32_APIC_BASE: u32 = 0x1b;
const IA32_TSC_ADJUST: u32 = 0x3b;
const IA32_TSC_DEADLINE: u32 = 0x6e0;
const X2APIC_FIRST: u32 = 0x800;
const X2APIC_LAST: u32 = 0x83f;

/// What the CPU needs from its surroundings: its time-stamp counter, and chance.
#[derive(Debug)]
pub struct Surroundings {
    chipset: Arc<Chipset>,
    /// IA32_TSC_ADJUST.
    adjust: AtomicU64,
    /// What the counter is ahead of the machine's clock besides: nothing, unless it began on another backend.
    start: AtomicU64,
}

impl Surroundings {
    /// Those of a CPU whose counter shows the machine's clock.
    pub fn new(chipset: Arc<Chipset>) -> Self {
        Self {
            chipset,
            adjust: AtomicU64::new(0),
            start: AtomicU64::new(0),
        }
    }

    /// This moment, on the machine's clock and on the CPU's counter.
    pub fn now(&self) -> Now {
        let clock = self.chipset.clock.now();
        Now {
            clock,
            tsc: self.unadjusted(clock).wrapping_add(self.adjust.load(Ordering::Relaxed)),
        }
    }

    /// The CPU's counter at this moment of the machine's clock, less IA32_TSC_ADJUST.
    fn unadjusted(&self, clock: u64) -> u64 {
        let ticks = self.chipset.tsc_rate().ticks(clock);
        ticks.wrapping_add(self.start.load(Ordering::Relaxed))
    }
}

impl Host for Surroundings {
    fn tsc(&self) -> u64 {
        self.now().tsc
    }

    fn random(&self) -> u64 {
        getrandom::u64().expect("getrandom(2) does not fail on a host that has booted")
    }
}

/// The platform's MSRs of one vCPU.
#[derive(Debug)]
pub struct Msrs {
    index: usize,
    surroundings: Arc<Surroundings>,
    ram: Arc<Ram>,
    interface: Interface,
}

/// The registers for guests that know they are guests.
#[derive(Debug)]
enum Interface {
    /// KVM's.
    Kvm {
        clock: KvmClock,
        steal: StealTime,
        delay: RunDelay,
    },
    /// Hyper-V's.
    Hyperv {
        partition: Arc<Partition>,
        assist_page: u64,
    },
}

impl Msrs {
    /// Those of vCPU `index`, which must be one of the chipset's: with Hyper-V's interface if there is a `partition`, and KVM's
    /// if there is none.
    pub fn new(
        index: usize,
        surroundings: Arc<Surroundings>,
        ram: Arc<Ram>,
        partition: Option<Arc<Partition>>,
    ) -> Self {
        let interface = match partition {
            Some(partition) => Interface::Hyperv {
                partition,
                assist_page: 0,
            },
            None => Interface::Kvm {
                clock: KvmClock::new(surroundings.chipset.tsc_rate()),
                steal: StealTime::default(),
                delay: RunDelay::default(),
            },
        };
        Self {
            index,
            surroundings,
            ram,
            interface,
        }
    }

    /// What INIT does: KVM's registers are as after power-up, so that nothing is written behind the back of whom it starts.
    pub fn init(&mut self) {
        if let Interface::Kvm { clock, steal, .. } = &mut self.interface {
            *clock = KvmClock::new(clock.rate());
            *steal = StealTime::default();
        }
    }

    /// Brings the steal time up to date, now and then, at `clock` nanoseconds of the machine's clock.
    #[inline]
    pub fn account(&mut self, clock: u64) {
        if let Interface::Kvm { steal, delay, .. } = &mut self.interface {
            steal.add(delay.since(clock), &self.ram);
        }
    }

    /// Tells a guest that wants to know whether this vCPU executes (false) or not (true).
    #[inline]
    pub fn set_preempted(&mut self, preempted: bool) {
        if let Interface::Kvm { steal, .. } = &mut self.interface {
            steal.set_preempted(preempted, &self.ram);
        }
    }

    /// The registers but for those of the local APIC.
    pub fn state(&self) -> PlatformMsrs {
        let mut state = PlatformMsrs {
            tsc_adjust: self.surroundings.adjust.load(Ordering::Relaxed),
            tsc_start: self.surroundings.start.load(Ordering::Relaxed),
            ..PlatformMsrs::default()
        };
        match &self.interface {
            Interface::Kvm { clock, steal, .. } => {
                clock.save(&mut state);
                steal.save(&mut state);
            }
            Interface::Hyperv { assist_page, .. } => state.hv_vp_assist_page = *assist_page,
        }
        state
    }

    /// Replaces the registers but for those of the local APIC.
    pub fn restore(&mut self, state: &PlatformMsrs) {
        self.surroundings.adjust.store(state.tsc_adjust, Ordering::Relaxed);
        self.surroundings.start.store(state.tsc_start, Ordering::Relaxed);
        let rate = self.surroundings.chipset.tsc_rate();
        match &mut self.interface {
            Interface::Kvm { clock, steal, delay } => {
                *clock = KvmClock::from_state(state, rate);
                if rate != TscRate::GIGAHERTZ {
                    clock.refresh(&self.ram, self.surroundings.now());
                }
                *steal = StealTime::from_state(state);
                *delay = RunDelay::default();
            }
            Interface::Hyperv { assist_page, .. } => *assist_page = state.hv_vp_assist_page,
        }
    }

    /// Reads an MSR.
    ///
    /// # Errors
    /// [`GeneralProtection`] if there is no such register, or it cannot be read.
    pub fn read(&mut self, msr: u32) -> Result<u64, GeneralProtection> {
        let now = self.surroundings.now();
        let lapic = || self.surroundings.chipset.seats()[self.index].lapic();
        match msr {
            IA32_TIME_STAMP_COUNTER => Ok(now.tsc),
            IA32_TSC_ADJUST => Ok(self.surroundings.adjust.load(Ordering::Relaxed)),
            IA32_APIC_BASE => Ok(lapic().base()),
            IA32_TSC_DEADLINE => Ok(lapic().tsc_deadline()),
            X2APIC_FIRST..=X2APIC_LAST => lapic().read_msr((msr - X2APIC_FIRST) as u8, now),
            _ => match &mut self.interface {
                Interface::Kvm { steal, .. } if msr == MSR_STEAL_TIME => Ok(steal.msr()),
                Interface::Kvm { clock, .. } => clock.read_msr(msr).ok_or(GeneralProtection),
                Interface::Hyperv { partition, assist_page } => {
                    let (index, lapic) = (self.index, lapic());
                    hyperv::Place {
                        index,
                        partition,
                        assist_page,
                        lapic,
                    }
                    .read(msr, now)
                }
            },
        }
    }

    /// Writes an MSR.
    ///
    /// # Errors
    /// [`GeneralProtection`] if there is no such register, or it does not take this value.
    pub fn write(&mut self, msr: u32, value: u64) -> Result<(), GeneralProtection> {
        let Self {
            index,
            surroundings,
            ram,
            interface,
        } = self;
        let (chipset, now) = (&surroundings.chipset, surroundings.now());
        let lapic = || chipset.seats()[*index].lapic();
        match msr {
            IA32_TIME_STAMP_COUNTER | IA32_TSC_ADJUST => {
                let own = msr == IA32_TSC_ADJUST;
                let adjust = match own {
                    true => value,
                    false => value.wrapping_sub(surroundings.unadjusted(now.clock)),
                };
                surroundings.adjust.store(adjust, Ordering::Relaxed);
                if let Interface::Kvm { clock, .. } = interface {
                    clock.refresh(ram, surroundings.now());
                }
            }
            IA32_APIC_BASE => lapic().set_base(value, PHYSICAL_BITS)?,
            IA32_TSC_DEADLINE => lapic().set_tsc_deadline(value),
            X2APIC_FIRST..=X2APIC_LAST => {
                let effect = lapic().write_msr((msr - X2APIC_FIRST) as u8, value, now)?;
                chipset.perform(effect);
            }
            _ => match interface {
                Interface::Kvm { steal, .. } if msr == MSR_STEAL_TIME => steal.write_msr(value, ram)?,
                Interface::Kvm { clock, .. } => {
                    if !clock.write_msr(msr, value, ram, &chipset.clock, now) {
                        return Err(GeneralProtection);
                    }
                }
                Interface::Hyperv { partition, assist_page } => {
                    let (index, lapic) = (*index, lapic());
                    let place = hyperv::Place {
                        index,
                        partition,
                        assist_page,
                        lapic,
                    };
                    chipset.perform(place.write(msr, value, ram, now)?);
                }
            },
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestAddress;

    use super::super::kvmclock;
    use super::*;
    use crate::GuestMemory;

    fn msrs() -> Msrs {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x2000)]).unwrap();
        let chipset = Arc::new(Chipset::new(1));
        chipset.set_paused(true);
        Msrs::new(
            0,
            Arc::new(Surroundings::new(chipset)),
            Arc::new(Ram::new(memory).unwrap()),
            None,
        )
    }

    #[test]
    fn writing_the_counter_moves_the_adjustment_and_the_other_way_round() {
        let mut msrs = msrs();
        let clock = msrs.surroundings.now().clock;
        assert_eq!(msrs.read(IA32_TIME_STAMP_COUNTER), Ok(clock));
        msrs.write(IA32_TIME_STAMP_COUNTER, clock + 1000).unwrap();
        assert_eq!(msrs.read(IA32_TSC_ADJUST), Ok(1000));
        msrs.write(IA32_TSC_ADJUST, 1u64.wrapping_neg()).unwrap();
        assert_eq!(msrs.read(IA32_TIME_STAMP_COUNTER), Ok(clock.wrapping_sub(1)));
        assert_eq!(msrs.surroundings.tsc(), clock.wrapping_sub(1));
    }

    #[test]
    fn changing_the_counter_brings_kvmclock_up_to_date() {
        let mut msrs = msrs();
        msrs.write(kvmclock::MSR_SYSTEM_TIME, 0x1001).unwrap();
        msrs.write(IA32_TSC_ADJUST, 1 << 40).unwrap();
        let now = msrs.surroundings.now();
        assert_eq!(msrs.ram.read(0x1008, 8), Some(now.tsc));
        assert_eq!(msrs.ram.read(0x1010, 8), Some(now.clock));
    }

    #[test]
    fn after_init_kvm_s_structures_are_written_no_more() {
        let mut msrs = msrs();
        msrs.write(kvmclock::MSR_SYSTEM_TIME, 0x1001).unwrap();
        msrs.write(MSR_STEAL_TIME, 0x1041).unwrap();
        assert_eq!(msrs.read(MSR_STEAL_TIME), Ok(0x1041));
        msrs.init();
        assert_eq!(msrs.read(kvmclock::MSR_SYSTEM_TIME), Ok(0));
        assert_eq!(msrs.read(MSR_STEAL_TIME), Ok(0));
        msrs.set_preempted(true);
        assert_eq!(msrs.ram.read(0x1050, 1), Some(0));
    }

    #[test]
    fn the_apic_appears_at_its_msrs_when_it_is_switched_over() {
        let mut msrs = msrs();
        assert_eq!(msrs.read(0x802), Err(GeneralProtection));
        msrs.write(IA32_APIC_BASE, 0xfee0_0d00).unwrap();
        assert_eq!((msrs.read(0x802), msrs.read(IA32_APIC_BASE)), (Ok(0), Ok(0xfee0_0d00)));
        assert_eq!(msrs.write(IA32_APIC_BASE, 0xfee0_0900), Err(GeneralProtection));
        msrs.write(0x832, 2 << 17 | 0x41).unwrap();
        msrs.write(IA32_TSC_DEADLINE, 77).unwrap();
        assert_eq!(msrs.read(IA32_TSC_DEADLINE), Ok(77));
    }

    #[test]
    fn what_is_not_there_faults() {
        let mut msrs = msrs();
        for msr in [
            0x11,
            0x12,
            0x7ff,
            0x840,
            0x4000_0000,
            0x4b56_4d02,
            0x4b56_4d04,
            0xc001_0000,
            u32::MAX,
        ] {
            assert_eq!(msrs.read(msr), Err(GeneralProtection), "{msr:#x}");
            assert_eq!(msrs.write(msr, 0), Err(GeneralProtection), "{msr:#x}");
        }
    }
}

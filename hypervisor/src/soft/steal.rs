//! Steal time: how long a vCPU could have run while the host ran something else.
//!
//! The guest reads it in a structure in its own memory, whose layout and protocol are those of Linux'
//! `Documentation/virt/kvm/x86/msr.rst`: the version is odd while the structure is being written. What is counted there is
//! the time that the vCPU's thread spent runnable on a run queue of the host, as on KVM: a vCPU that is halted, paused or
//! waits for a device has nothing stolen from it. Beside it the structure says whether the vCPU is executing at all
//! (`preempted`), so that another one does not spin for a lock whose holder cannot give it back.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{Ordering, fence};
use std::thread::ThreadId;

use reprise_emulator::Ram;
use reprise_emulator::paging::PHYSICAL_BITS;

use super::lapic::GeneralProtection;
use crate::state::PlatformMsrs;

/// MSR: where this vCPU's steal time shall be written, bit 0 set.
pub const MSR_STEAL_TIME: u32 = 0x4b56_4d03;

/// The structure is aligned to 64 bytes; the bits below but for [`ENABLED`] are reserved.
const RESERVED: u64 = 0b11_1110;
const ENABLED: u64 = 1;

/// How often the host is asked, in nanoseconds: about as often as a guest's tick looks, at a microsecond each.
const INTERVAL: u64 = 2_000_000;

/// Offsets within the structure, of 64 bytes.
const STEAL: u64 = 0;
const VERSION: u64 = 8;
const FLAGS: u64 = 12;
const PREEMPTED: u64 = 16;

/// The steal time of one vCPU.
#[derive(Debug, Clone, Default)]
pub struct StealTime {
    /// The MSR.
    msr: u64,
    /// Nanoseconds stolen since the guest asked for them first.
    steal: u64,
    /// The structure's version.
    version: u32,
    /// What the structure says of the vCPU.
    preempted: bool,
}

impl StealTime {
    /// The steal time that `state` tells of. The structure in memory is restored with the memory.
    pub fn from_state(state: &PlatformMsrs) -> Self {
        Self {
            msr: state.kvm_steal_time & !RESERVED,
            steal: state.kvm_stolen,
            version: state.kvm_steal_version & !1,
            preempted: state.kvm_preempted,
        }
    }

    /// Adds it to `state`.
    pub fn save(&self, state: &mut PlatformMsrs) {
        state.kvm_steal_time = self.msr;
        state.kvm_stolen = self.steal;
        state.kvm_steal_version = self.version;
        state.kvm_preempted = self.preempted;
    }

    /// The MSR.
    pub fn msr(&self) -> u64 {
        self.msr
    }

    /// Writes the MSR and, if that enables it, the structure. An address where there is no memory gets nothing.
    ///
    /// # Errors
    /// [`GeneralProtection`] for reserved bits.
    pub fn write_msr(&mut self, value: u64, ram: &Ram) -> Result<(), GeneralProtection> {
        if value & RESERVED != 0 {
            return Err(GeneralProtection);
        }
        self.msr = value;
        // It is the vCPU itself that writes this, so it executes.
        self.preempted = false;
        if let Some(address) = self.address() {
            ram.write(address + FLAGS, 4, 0);
            ram.write(address + PREEMPTED, 1, 0);
            self.publish(ram, address);
        }
        Ok(())
    }

    /// Adds what was stolen since.
    pub fn add(&mut self, nanoseconds: u64, ram: &Ram) {
        if nanoseconds != 0
            && let Some(address) = self.address()
        {
            self.steal = self.steal.wrapping_add(nanoseconds);
            self.publish(ram, address);
        }
    }

    /// Says whether the vCPU executes (false) or not (true).
    #[inline]
    pub fn set_preempted(&mut self, preempted: bool, ram: &Ram) {
        if preempted != self.preempted
            && let Some(address) = self.address()
        {
            self.preempted = preempted;
            ram.write(address + PREEMPTED, 1, u64::from(preempted));
        }
    }

    /// Where the structure is, if the guest wants it.
    #[inline]
    fn address(&self) -> Option<u64> {
        (self.msr & ENABLED != 0 && self.msr < 1 << PHYSICAL_BITS).then_some(self.msr & !ENABLED)
    }

    fn publish(&mut self, ram: &Ram, address: u64) {
        ram.write(address + VERSION, 4, u64::from(self.version | 1));
        fence(Ordering::SeqCst);
        ram.write(address + STEAL, 8, self.steal);
        fence(Ordering::SeqCst);
        self.version = self.version.wrapping_add(2) & !1;
        ram.write(address + VERSION, 4, u64::from(self.version));
    }
}

/// How long the host made threads wait that could have run.
#[derive(Debug, Default)]
pub struct RunDelay {
    thread: Option<Thread>,
    /// When to ask next, on the machine's clock.
    next: u64,
}

/// The thread that runs the vCPU, as the host sees it.
#[derive(Debug)]
struct Thread {
    id: ThreadId,
    /// `schedstat`; none on a host that does not keep it.
    figures: Option<File>,
    /// What it said last.
    last: u64,
}

impl RunDelay {
    /// Nanoseconds that the calling thread has waited since the last call, if it is time to ask, at `now`.
    #[inline]
    pub fn since(&mut self, now: u64) -> u64 {
        if now < self.next { 0 } else { self.ask(now) }
    }

    #[cold]
    fn ask(&mut self, now: u64) -> u64 {
        self.next = now.saturating_add(INTERVAL);
        let id = std::thread::current().id();
        match &mut self.thread {
            Some(thread) if thread.id == id => {
                let figure = thread.figure().unwrap_or(thread.last);
                figure.saturating_sub(std::mem::replace(&mut thread.last, figure))
            }
            // Another thread: what it waited for before is none of this vCPU's business.
            other => {
                let figures = File::open("/proc/thread-self/schedstat").ok();
                let mut thread = Thread { id, figures, last: 0 };
                thread.last = thread.figure().unwrap_or(0);
                *other = Some(thread);
                0
            }
        }
    }
}

impl Thread {
    /// The second figure of `schedstat`: time spent waiting on a run queue, in nanoseconds.
    fn figure(&self) -> Option<u64> {
        let mut text = [0; 64];
        let length = self.figures.as_ref()?.read_at(&mut text, 0).ok()?;
        let text = std::str::from_utf8(&text[..length]).ok()?;
        text.split_whitespace().nth(1)?.parse().ok()
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

    #[test]
    fn the_guest_reads_what_was_stolen_under_an_even_version() {
        let (ram, mut steal) = (ram(), StealTime::default());
        steal.add(5, &ram);
        steal.write_msr(0x1041, &ram).unwrap();
        assert_eq!((ram.read(0x1040, 8), ram.read(0x1048, 4)), (Some(0), Some(2)));
        steal.add(7, &ram);
        steal.add(0, &ram);
        steal.add(8, &ram);
        assert_eq!((ram.read(0x1040, 8), ram.read(0x1048, 4)), (Some(15), Some(6)));
        assert_eq!(steal.msr(), 0x1041);
    }

    #[test]
    fn a_vcpu_that_does_not_execute_is_told_as_preempted() {
        let (ram, mut steal) = (ram(), StealTime::default());
        steal.set_preempted(true, &ram);
        assert_eq!(ram.read(0x1050, 1), Some(0), "nobody asked");
        steal.write_msr(0x1041, &ram).unwrap();
        for preempted in [true, true, false] {
            steal.set_preempted(preempted, &ram);
            assert_eq!(ram.read(0x1050, 1), Some(u64::from(preempted)));
        }
    }

    #[test]
    fn reserved_bits_fault_and_addresses_without_memory_get_nothing() {
        let (ram, mut steal) = (ram(), StealTime::default());
        for bit in 1..6 {
            assert_eq!(steal.write_msr(0x1001 | 1 << bit, &ram), Err(GeneralProtection));
        }
        for address in [0x10_0001, 1 << 45 | 1, 1 << 46 | 1, !RESERVED] {
            steal.write_msr(address, &ram).unwrap();
            steal.add(1, &ram);
            steal.set_preempted(true, &ram);
        }
        steal.write_msr(0x1000, &ram).unwrap();
        steal.add(1, &ram);
        assert_eq!(ram.read(0x1008, 4), Some(0), "not enabled");
    }

    #[test]
    fn a_thread_is_asked_once_in_an_interval_and_its_past_is_not_counted() {
        let mut delay = RunDelay::default();
        assert_eq!(delay.since(0), 0);
        let thread = delay.thread.as_mut().unwrap();
        if thread.figures.is_none() {
            return;
        }
        // As if it had waited that much longer since.
        thread.last = thread.last.saturating_sub(1000);
        let owed = thread.figure().unwrap() - thread.last;
        assert_eq!(delay.since(INTERVAL - 1), 0);
        assert!(delay.since(INTERVAL) >= owed);
        assert_eq!(delay.next, 2 * INTERVAL);
    }
}

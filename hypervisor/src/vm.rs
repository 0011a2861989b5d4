//! A hypervisor makes virtual machines; a virtual machine makes vCPUs and carries interrupts to them.

use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use crate::profile::Profiler;
use crate::signals::{Doorbell, DoorbellAddress, MessageEvent};
use crate::{CpuModel, GuestMemory, HypervisorError, Vcpu, VmState};

/// Which backend this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HypervisorKind {
    /// The CPU in software.
    Soft,
    /// The host's KVM.
    Kvm,
}

/// What a virtual machine is made of.
#[derive(Debug, Clone)]
pub struct VmSettings {
    /// The number of vCPUs, 1 or more; their APIC ids are 0, 1, 2, …
    pub vcpus: u32,
    /// Guest-physical memory.
    pub memory: GuestMemory,
    /// Whether the guest finds Hyper-V's interface (CPUID leaves, MSRs, hypercalls) and not KVM's. A guest uses one of them,
    /// and kvmclock and the like are gone with the other.
    pub hyperv: bool,
    /// Which processor the guest sees.
    pub model: CpuModel,
}

/// Makes virtual machines.
pub trait Hypervisor: Send + Sync {
    /// Which backend this is.
    fn kind(&self) -> HypervisorKind;

    /// The largest number of vCPUs of one machine.
    fn max_vcpus(&self) -> u32;

    /// Makes a virtual machine with its interrupt controllers and timers: local APICs at 0xFEE0_0000, IO-APIC at
    /// 0xFEC0_0000 (id 0, 24 pins, GSI 0 up), PICs at ports 0x20 and 0xA0, PIT at ports 0x40 to 0x43 and 0x61.
    ///
    /// # Errors
    /// [`HypervisorError`] if the settings cannot be met.
    fn create_vm(&self, settings: VmSettings) -> Result<Arc<dyn Vm>, HypervisorError>;
}

/// One virtual machine.
pub trait Vm: Send + Sync {
    /// Makes vCPU `index`, once each. vCPU 0 is the bootstrap processor; the others wait for INIT and SIPI.
    ///
    /// # Errors
    /// [`HypervisorError`] if the index is out of range or already taken.
    fn create_vcpu(&self, index: u32) -> Result<Box<dyn Vcpu>, HypervisorError>;

    /// Has vCPUs that are made from now on translate hot code of the guest, where they are software: the same, but faster. A
    /// backend without such has nothing to do.
    fn translate(&self, _on: bool) {}

    /// Whether a vCPU that was made translates hot code: it was to, it is software, and this host lets it.
    fn translates(&self) -> bool {
        false
    }

    /// Has `profiler` look at each vCPU that is made from now on, every `period` instructions. False where nobody sees the
    /// instructions of a guest.
    fn profile(&self, _period: NonZeroU64, _profiler: Arc<dyn Profiler>) -> bool {
        false
    }

    /// The interrupt line of global system interrupt `gsi`, 0..24: the IO-APIC's pin, and the PIC's for 0..16.
    ///
    /// # Errors
    /// [`HypervisorError`] if there is no such line.
    fn interrupt_line(&self, gsi: u32) -> Result<Arc<dyn InterruptLine>, HypervisorError>;

    /// Delivers a message-signalled interrupt: what a device would write to `address` (SDM Vol. 3, Message Signalled
    /// Interrupts).
    fn signal_msi(&self, address: u64, data: u32);

    /// A new interrupt that an event signals, masked at first.
    ///
    /// # Errors
    /// [`HypervisorError`] if there can be no more of them, or the backend has none.
    fn message_event(&self) -> Result<Arc<dyn MessageEvent>, HypervisorError> {
        Err(HypervisorError::Unsupported {
            what: "an interrupt that an event signals",
        })
    }

    /// Has `event` signalled when the guest writes to `at`, in place of a device access, as long as the doorbell is kept.
    ///
    /// # Errors
    /// [`HypervisorError`] if the address is taken, or the backend has no doorbells.
    fn doorbell(&self, _at: DoorbellAddress, _event: &EventFd) -> Result<Doorbell, HypervisorError> {
        Err(HypervisorError::Unsupported { what: "a doorbell" })
    }

    /// Whether the host's kernel serves [message events](Self::message_event) and [doorbells](Self::doorbell), and so sooner than
    /// the devices of this process would hear of an exit.
    fn has_kernel_events(&self) -> bool {
        false
    }

    /// Begins (true) or ends (false) to log which pages of guest memory are written.
    ///
    /// # Errors
    /// [`HypervisorError`] if the backend keeps no such log.
    fn log_writes(&self, _on: bool) -> Result<(), HypervisorError> {
        Err(HypervisorError::Unsupported {
            what: "a log of written memory",
        })
    }

    /// The pages that vCPUs have written, and those of [`memory_written`](Self::memory_written), since this was asked last or
    /// the log begun: ranges of guest-physical addresses in order.
    ///
    /// # Errors
    /// [`HypervisorError`] if the backend keeps no such log.
    fn written(&self) -> Result<Vec<Range<u64>>, HypervisorError> {
        Err(HypervisorError::Unsupported {
            what: "a log of written memory",
        })
    }

    /// Says that `length` bytes of guest memory from `address` on were written by somebody who is no vCPU (a loader, a
    /// device), so that no vCPU goes on with instructions decoded from what was there before.
    fn memory_written(&self, address: u64, length: u64);

    /// Whether vCPUs keep what they have decoded, so that [`memory_written`](Self::memory_written) matters to what they execute.
    fn keeps_decoded(&self) -> bool {
        false
    }

    /// Stops (true) or continues (false) the guest's clocks and timers; a paused machine's kvmclock stands still.
    fn set_paused(&self, paused: bool);

    /// Everything that the vCPUs share, as a snapshot holds it. [`crate::state`] tells when and in which order.
    ///
    /// # Errors
    /// [`HypervisorError`] if the backend cannot read it.
    fn state(&self) -> Result<VmState, HypervisorError>;

    /// Goes on from `state`, paused: the clocks stand until [`set_paused(false)`](Self::set_paused). For a machine that has
    /// not run yet.
    ///
    /// # Errors
    /// [`HypervisorError::State`] if this machine cannot go on from it; nothing has changed then but that it is paused.
    fn restore(&self, state: &VmState) -> Result<(), HypervisorError>;
}

/// One interrupt line, level-sensitive: raised until lowered. Callable from any thread; never blocks on a guest.
pub trait InterruptLine: Send + Sync {
    /// Asserts (true) or deasserts (false) the line.
    fn set(&self, level: bool);

    /// Asserts and deasserts at once, as an edge-triggered source does.
    fn pulse(&self) {
        self.set(true);
        self.set(false);
    }
}

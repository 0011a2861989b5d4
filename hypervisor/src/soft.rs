//! The backend whose CPU is software.
//!
//! # Purpose
//! It owns what KVM keeps in the kernel: local APICs, IO-APIC, PICs, PIT, kvmclock, and what CPUID says. The CPU itself
//! is `reprise-emulator`. Each vCPU runs on the thread of its owner; one more thread for each machine is its alarm clock.
//! # Map
//! - `vm`, `vcpu`: the machine and its vCPUs, as the rest of the program drives them.
//! - `chipset`: the interrupt fabric, which wires `lapic`, `ioapic`, `pic` and `pit` together with `message`s and lines.
//! - `clock`, `alarm`, `doorbell`: time, and how a vCPU is roused. `signals`: interrupts and doorbells as events.
//! - `msr`, `cpuid`: what the processor shows of the platform. For guests that know where they are: `hypercall`, with `kvmclock` and
//!   `steal` of KVM's interface, or `hyperv`.

mod alarm;
mod chipset;
pub(crate) mod clock;
pub(crate) mod cpuid;
mod doorbell;
mod hypercall;
mod hyperv;
pub(crate) mod ioapic;
mod kvmclock;
pub(crate) mod lapic;
mod message;
mod msr;
pub(crate) mod pic;
pub(crate) mod pit;
mod signals;
#[cfg(test)]
mod snapshots;
mod steal;
mod vcpu;
mod vm;
#[cfg(test)]
mod world;

use std::sync::Arc;

use reprise_emulator::translate::Translation;

use crate::tsc::TscRate;
use crate::{Hypervisor, HypervisorError, HypervisorKind, Vm, VmSettings};

/// The backend whose CPU is software. It needs nothing from the host but threads.
#[derive(Debug, Clone, Copy, Default)]
pub struct SoftHypervisor;

/// The same, its machines' time-stamp counters counting at another rate than 1 GHz: what they save goes on on a KVM that has no
/// other.
#[derive(Debug, Clone, Copy)]
pub struct PacedSoft(TscRate);

/// The same, its vCPUs translating code or not as told, whatever the machine's configuration says: for tests.
#[derive(Debug, Clone, Copy)]
pub struct TieredSoft(Option<Translation>);

impl SoftHypervisor {
    /// Has vCPUs translate code as `translation` says, where this host can.
    pub fn translating(self, translation: Translation) -> TieredSoft {
        TieredSoft(Some(translation))
    }

    /// Has vCPUs interpret all code.
    pub fn interpreting(self) -> TieredSoft {
        TieredSoft(None)
    }

    /// Has time-stamp counters count at `khz` kHz; `None` if no processor counts like that.
    pub fn counting_at(self, khz: u32) -> Option<PacedSoft> {
        TscRate::new(khz).map(PacedSoft)
    }
}

impl Hypervisor for PacedSoft {
    fn kind(&self) -> HypervisorKind {
        HypervisorKind::Soft
    }

    fn max_vcpus(&self) -> u32 {
        vm::MAX_VCPUS
    }

    fn create_vm(&self, settings: VmSettings) -> Result<Arc<dyn Vm>, HypervisorError> {
        Ok(Arc::new(vm::SoftVm::counting_at(settings, self.0)?))
    }
}

impl Hypervisor for TieredSoft {
    fn kind(&self) -> HypervisorKind {
        HypervisorKind::Soft
    }

    fn max_vcpus(&self) -> u32 {
        vm::MAX_VCPUS
    }

    fn create_vm(&self, settings: VmSettings) -> Result<Arc<dyn Vm>, HypervisorError> {
        Ok(Arc::new(vm::SoftVm::new(settings)?.translating(self.0)))
    }
}

impl Hypervisor for SoftHypervisor {
    fn kind(&self) -> HypervisorKind {
        HypervisorKind::Soft
    }

    fn max_vcpus(&self) -> u32 {
        vm::MAX_VCPUS
    }

    fn create_vm(&self, settings: VmSettings) -> Result<Arc<dyn Vm>, HypervisorError> {
        Ok(Arc::new(vm::SoftVm::new(settings)?))
    }
}

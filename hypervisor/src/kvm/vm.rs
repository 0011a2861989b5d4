//! One virtual machine on KVM.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use kvm_bindings::{
    CpuId, KVM_CAP_EXCEPTION_PAYLOAD, KVM_CAP_EXIT_ON_EMULATION_FAILURE, KVM_CAP_X86_USER_SPACE_MSR,
    KVM_MAX_CPUID_ENTRIES, KVM_MSR_EXIT_REASON_UNKNOWN, KVM_PIT_SPEAKER_DUMMY, kvm_enable_cap, kvm_msi, kvm_pit_config,
};
use kvm_ioctls::{Kvm, VmFd};
use reprise_emulator::ram::PAGE_SIZE;
use reprise_emulator::{CpuidTable, Ram};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use super::error::{KvmError, Named};
use super::lines::{LINES, Lines, Source};
use super::vcpu::KvmVcpu;
use super::{cpuid, msrs, sys};
use crate::{CpuModel, HypervisorError, InterruptLine, Vcpu, Vm, VmSettings, VmState};

/// Where KVM may put a page table and a task state segment of its own: four pages below the firmware's place, where
/// there is no RAM.
const IDENTITY_MAP: u64 = 0xfffb_c000;
const TASK_STATE: usize = 0xfffb_d000;

/// What lives as long as anybody holds on to the machine.
#[derive(Debug)]
pub struct Machine {
    /// KVM's end.
    pub fd: VmFd,
    /// Who asserts which interrupt line.
    pub lines: Lines,
    /// Guest memory, as the emulator sees it.
    pub ram: Arc<Ram>,
    /// The number of vCPUs.
    pub vcpus: u32,
    /// The processor that guests see.
    pub model: CpuModel,
    /// What KVM can announce.
    pub supported: CpuId,
    /// Length of a run structure.
    pub run_size: usize,
    /// Guest-physical address of a page that is no RAM.
    pub nowhere: u64,
    /// The processor's own MSRs that KVM has.
    pub msrs: OnceLock<msrs::Known>,
    /// How often the clock was stopped and went on.
    pub pauses: AtomicU32,
    /// The clock while the machine is paused.
    held: Mutex<Option<u64>>,
}

/// A virtual machine on KVM.
pub struct KvmVm {
    machine: Arc<Machine>,
    /// Which vCPUs were made.
    made: Mutex<Box<[bool]>>,
}

impl KvmVm {
    /// A machine as `settings` say, with at most `max` vCPUs.
    ///
    /// # Errors
    /// [`HypervisorError`] if there are too many or no vCPUs, or KVM refuses something.
    pub fn new(kvm: &Kvm, max: u32, settings: VmSettings) -> Result<Self, HypervisorError> {
        let VmSettings {
            vcpus,
            memory,
            hyperv,
            model,
        } = settings;
        if hyperv {
            return Err(KvmError::HyperV.into());
        }
        if !(1..=max).contains(&vcpus) {
            return Err(HypervisorError::VcpuCount { wanted: vcpus, max });
        }
        let ram = Arc::new(Ram::new(memory).map_err(|source| HypervisorError::Memory { source })?);
        let machine = Machine::new(kvm, vcpus, model, ram)?;
        // What is left of the model where KVM and the emulator are both asked.
        let announced = CpuidTable::new(cpuid::model(machine.supported.as_slice(), 0, vcpus, 1_000_000, model));
        model.check(|feature| announced.announces(feature))?;
        Ok(Self {
            machine: Arc::new(machine),
            made: Mutex::new(vec![false; vcpus as usize].into()),
        })
    }
}

impl Machine {
    fn new(kvm: &Kvm, vcpus: u32, model: CpuModel, ram: Arc<Ram>) -> Result<Self, KvmError> {
        let fd = kvm.create_vm().map_err(|error| match error.errno() {
            libc::EBUSY => KvmError::Busy,
            _ => Err::<(), _>(error).of_vm("KVM_CREATE_VM").expect_err("it is an error"),
        })?;
        fd.set_identity_map_address(IDENTITY_MAP)
            .of_vm("KVM_SET_IDENTITY_MAP_ADDR")?;
        fd.set_tss_address(TASK_STATE).of_vm("KVM_SET_TSS_ADDR")?;
        for (capability, argument, call) in [
            (KVM_CAP_EXCEPTION_PAYLOAD, 1, "KVM_CAP_EXCEPTION_PAYLOAD"),
            (
                KVM_CAP_EXIT_ON_EMULATION_FAILURE,
                1,
                "KVM_CAP_EXIT_ON_EMULATION_FAILURE",
            ),
            (
                KVM_CAP_X86_USER_SPACE_MSR,
                u64::from(KVM_MSR_EXIT_REASON_UNKNOWN),
                "KVM_CAP_X86_USER_SPACE_MSR",
            ),
        ] {
            let mut enable = kvm_enable_cap {
                cap: capability,
                ..kvm_enable_cap::default()
            };
            enable.args[0] = argument;
            fd.enable_cap(&enable).of_vm(call)?;
        }
        fd.create_irq_chip().of_vm("KVM_CREATE_IRQCHIP")?;
        fd.create_pit2(kvm_pit_config {
            // The kernel answers at port 0x61.
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..kvm_pit_config::default()
        })
        .of_vm("KVM_CREATE_PIT2")?;
        Lines::wire(&fd)?;
        map_memory(&fd, &ram)?;
        Ok(Self {
            lines: Lines::default(),
            vcpus,
            model,
            supported: kvm
                .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
                .of_vm("KVM_GET_SUPPORTED_CPUID")?,
            run_size: fd.run_size(),
            nowhere: (0..0x10_0000)
                .rev()
                .map(|page| page * PAGE_SIZE)
                .find(|page| ram.page(*page).is_none())
                .unwrap_or(0),
            msrs: OnceLock::new(),
            pauses: AtomicU32::new(0),
            held: Mutex::new(None),
            ram,
            fd,
        })
    }

    /// Stops (true) or continues (false) the clock.
    fn set_paused(&self, paused: bool) -> Result<(), KvmError> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if paused == held.is_some() {
            return Ok(());
        }
        if paused {
            *held = Some(self.fd.get_clock().of_vm("KVM_GET_CLOCK")?.clock);
            return Ok(());
        }
        self.lines.settle(&self.fd);
        if let Some(clock) = held.take() {
            self.fd
                .set_clock(&kvm_bindings::kvm_clock_data {
                    clock,
                    ..kvm_bindings::kvm_clock_data::default()
                })
                .of_vm("KVM_SET_CLOCK")?;
            self.pauses.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }
}

/// Gives KVM the regions of `ram`, which keeps them mapped.
fn map_memory(fd: &VmFd, ram: &Ram) -> Result<(), KvmError> {
    for (slot, region) in (0..).zip(ram.memory().iter()) {
        sys::set_memory_slot(fd, slot, region).map_err(|source| KvmError::MemorySlot {
            slot,
            address: region.start_addr().raw_value(),
            length: region.len(),
            source,
        })?;
    }
    Ok(())
}

/// Snapshots of machines are not made yet.
fn unsaved() -> KvmError {
    KvmError::Call {
        call: "a snapshot",
        source: std::io::ErrorKind::Unsupported.into(),
    }
}

impl Vm for KvmVm {
    fn create_vcpu(&self, index: u32) -> Result<Box<dyn Vcpu>, HypervisorError> {
        let place = index as usize;
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        match made.get_mut(place) {
            Some(made) if !*made => *made = true,
            _ => return Err(HypervisorError::VcpuIndex { index }),
        }
        Ok(Box::new(KvmVcpu::new(index, Arc::clone(&self.machine))?))
    }

    fn interrupt_line(&self, gsi: u32) -> Result<Arc<dyn InterruptLine>, HypervisorError> {
        let max = LINES as u32 - 1;
        if gsi > max {
            return Err(HypervisorError::Gsi { gsi, max });
        }
        Ok(Arc::new(Source::new(Arc::clone(&self.machine), gsi as usize)))
    }

    fn signal_msi(&self, address: u64, data: u32) {
        let message = kvm_msi {
            address_lo: address as u32,
            address_hi: (address >> 32) as u32,
            data,
            ..kvm_msi::default()
        };
        if let Err(error) = self.machine.fd.signal_msi(message) {
            tracing::debug!(address, data, %error, "a message that is no interrupt");
        }
    }

    fn memory_written(&self, address: u64, length: u64) {
        // KVM decodes nothing beforehand; the emulator that finishes its instructions may.
        self.machine.ram.written_by_host(address, length);
    }

    fn set_paused(&self, paused: bool) {
        if let Err(error) = self.machine.set_paused(paused) {
            tracing::error!(
                paused,
                error = &error as &dyn std::error::Error,
                "the guest's clock goes its own way"
            );
        }
    }

    fn state(&self) -> Result<VmState, HypervisorError> {
        Err(unsaved().into())
    }

    fn restore(&self, _state: &VmState) -> Result<(), HypervisorError> {
        Err(unsaved().into())
    }
}

//! One virtual machine on KVM.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use kvm_bindings::{
    CpuId, KVM_CAP_EXCEPTION_PAYLOAD, KVM_CAP_EXIT_ON_EMULATION_FAILURE, KVM_CAP_X86_USER_SPACE_MSR,
    KVM_MSR_EXIT_REASON_UNKNOWN, kvm_enable_cap, kvm_msi,
};
use kvm_ioctls::{Cap, VmFd};
use reprise_emulator::ram::PAGE_SIZE;
use reprise_emulator::{CpuidTable, Ram};
use vmm_sys_util::eventfd::EventFd;

use super::clock::Clock;
use super::counters::Counters;
use super::dirty::{self, Dirty};
use super::error::{KvmError, Named};
use super::lines::{LINES, Lines, Source};
use super::pit::Timer;
use super::signals::{self, KvmMessageEvent, Routes};
use super::vcpu::KvmVcpu;
use super::{KvmHypervisor, chips, cpuid, msrs};
use crate::signals::{Doorbell, DoorbellAddress, MessageEvent};
use crate::soft::pit::Pit;
use crate::{CpuModel, Hypervisor, HypervisorError, InterruptLine, Vcpu, Vm, VmSettings, VmState};

/// Where KVM may put a page table and a task state segment of its own: four pages below the firmware's place, where
/// there is no RAM.
const IDENTITY_MAP: u64 = 0xfffb_c000;
const TASK_STATE: usize = 0xfffb_d000;

mod state;

/// What lives as long as anybody holds on to the machine.
#[derive(Debug)]
pub struct Machine {
    /// KVM's end.
    pub fd: Arc<VmFd>,
    /// The machine's clock.
    pub clock: Arc<Clock>,
    /// The interval timer.
    pub pit: Timer,
    /// Where interrupts go that events signal.
    pub routes: Routes,
    /// Which memory was written.
    dirty: Dirty,
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
    /// KVM can have time-stamp counters count at another rate than the host's.
    pub scales: bool,
    /// KVM leaves SYSCALL of ring 3 half done.
    pub halves_syscalls: bool,
    /// The vCPUs' time-stamp counters.
    pub counters: Counters,
}

/// A virtual machine on KVM.
pub struct KvmVm {
    pub(super) machine: Arc<Machine>,
    /// Which vCPUs were made.
    made: Mutex<Box<[bool]>>,
}

impl KvmVm {
    /// A machine as `settings` say.
    ///
    /// # Errors
    /// [`HypervisorError`] if there are too many or no vCPUs, or KVM refuses something.
    pub fn new(hypervisor: &KvmHypervisor, settings: VmSettings) -> Result<Self, HypervisorError> {
        let max = hypervisor.max_vcpus();
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
        let machine = Machine::new(hypervisor, vcpus, model, ram)?;
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
    fn new(hypervisor: &KvmHypervisor, vcpus: u32, model: CpuModel, ram: Arc<Ram>) -> Result<Self, KvmError> {
        let kvm = &hypervisor.kvm;
        let fd = kvm
            .create_vm()
            .map_err(|error| KvmError::no_machine(io::Error::from_raw_os_error(error.errno())))?;
        let fd = Arc::new(fd);
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
        Lines::wire(&fd)?;
        chips::power_up(&fd)?;
        let clock = Arc::new(Clock::new(Arc::clone(&fd)));
        dirty::map(&fd, &ram, false)?;
        Ok(Self {
            pit: Timer::new(Arc::clone(&fd), Arc::clone(&clock))?,
            clock,
            lines: Lines::default(),
            routes: Routes::default(),
            dirty: Dirty::default(),
            vcpus,
            model,
            supported: hypervisor.offers()?,
            run_size: fd.run_size(),
            nowhere: (0..0x10_0000)
                .rev()
                .map(|page| page * PAGE_SIZE)
                .find(|page| ram.page(*page).is_none())
                .unwrap_or(0),
            msrs: OnceLock::new(),
            pauses: AtomicU32::new(0),
            scales: kvm.check_extension(Cap::TscControl),
            halves_syscalls: hypervisor.backing.halves_syscalls(),
            counters: Counters::default(),
            ram,
            fd,
        })
    }

    /// Stops (true) or continues (false) the clock and what counts by it.
    fn set_paused(&self, paused: bool) -> Result<(), KvmError> {
        if paused {
            self.clock.hold()?;
        } else {
            self.lines.settle(&self.fd);
            self.counters.forget();
            if self.clock.release()? {
                self.pauses.fetch_add(1, Ordering::SeqCst);
            }
        }
        self.pit.clock_changed();
        Ok(())
    }

    /// Reads `size` bytes of ports, one port after the other; `None` if the first is none of a chip that is kept here.
    ///
    /// # Errors
    /// What KVM says of the time.
    pub fn read_ports(&self, port: u16, size: u8) -> Result<Option<u64>, KvmError> {
        if !Pit::claims(port) {
            return Ok(None);
        }
        self.pit
            .work(|pit, now| {
                (0..size.min(8)).fold(0, |value, offset| {
                    let byte = match port.wrapping_add(u16::from(offset)) {
                        port if Pit::claims(port) => pit.read(port, now),
                        _ => 0xff,
                    };
                    value | u64::from(byte) << (8 * offset)
                })
            })
            .map(Some)
    }

    /// Writes `size` bytes of ports, one port after the other; false if the first is none of a chip that is kept here.
    ///
    /// # Errors
    /// What KVM says of the time.
    pub fn write_ports(&self, port: u16, size: u8, value: u64) -> Result<bool, KvmError> {
        if !Pit::claims(port) {
            return Ok(false);
        }
        for offset in 0..size.min(8) {
            let port = port.wrapping_add(u16::from(offset));
            if Pit::claims(port) {
                self.pit
                    .work(|pit, now| pit.write(port, (value >> (8 * offset)) as u8, now))?;
            }
        }
        Ok(true)
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
        self.machine.dirty.written(address, length);
    }

    fn message_event(&self) -> Result<Arc<dyn MessageEvent>, HypervisorError> {
        Ok(Arc::new(KvmMessageEvent::new(Arc::clone(&self.machine))?))
    }

    fn doorbell(&self, at: DoorbellAddress, event: &EventFd) -> Result<Doorbell, HypervisorError> {
        Ok(signals::doorbell(&self.machine, at, event)?)
    }

    fn has_kernel_events(&self) -> bool {
        true
    }

    fn log_writes(&self, on: bool) -> Result<(), HypervisorError> {
        let Machine { fd, ram, dirty, .. } = &*self.machine;
        Ok(dirty.log(fd, ram, on)?)
    }

    fn written(&self) -> Result<Vec<Range<u64>>, HypervisorError> {
        let Machine { fd, ram, dirty, .. } = &*self.machine;
        Ok(dirty.take(fd, ram)?)
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
        self.machine.save()
    }

    fn restore(&self, state: &VmState) -> Result<(), HypervisorError> {
        self.machine.go_on_from(state)
    }
}

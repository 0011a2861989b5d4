//! One virtual machine of the soft backend.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use reprise_emulator::model::executes;
use reprise_emulator::translate::Translation;
use reprise_emulator::{CpuidTable, Model, Ram};
use vmm_sys_util::eventfd::EventFd;

use super::chipset::{Chipset, LINES};
use super::hyperv::Partition;
use super::ioapic::MessageBus;
use super::message::decode_msi;
use super::signals::Signals;
use super::vcpu::SoftVcpu;
use crate::profile::{Profiler, Profiling};
use crate::signals::{Doorbell, DoorbellAddress, MessageEvent};
use crate::tsc::TscRate;
use crate::{CpuModel, HypervisorError, InterruptLine, StateError, Vcpu, Vm, VmSettings, VmState};

/// The most vCPUs of a machine: their ids are below 255, which in the 8 bits of an IO-APIC's entry means everyone.
pub const MAX_VCPUS: u32 = 255;

/// What lives as long as anybody holds on to the machine: the chipset and its alarm clock.
pub struct Machine {
    /// The interrupt fabric.
    pub chipset: Arc<Chipset>,
    /// What Hyper-V's virtual processors share, if this machine has Hyper-V's interface and not KVM's.
    pub partition: Option<Arc<Partition>>,
    /// The thread behind the alarm clock.
    alarm: Option<JoinHandle<()>>,
}

impl Machine {
    /// A machine of `vcpus` vCPUs, with Hyper-V's interface or KVM's.
    ///
    /// # Errors
    /// [`HypervisorError::Thread`].
    pub fn new(vcpus: usize, hyperv: bool) -> Result<Self, HypervisorError> {
        let chipset = Arc::new(Chipset::new(vcpus));
        let theirs = Arc::clone(&chipset);
        let alarm = std::thread::Builder::new()
            .name("alarm".into())
            .spawn(move || theirs.alarms.run(&theirs.clock, |slot| theirs.goes_off(slot)))
            .map_err(|source| HypervisorError::Thread { source })?;
        Ok(Self {
            chipset,
            partition: hyperv.then(Arc::default),
            alarm: Some(alarm),
        })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.chipset.alarms.stop();
        if let Some(alarm) = self.alarm.take()
            && alarm.join().is_err()
        {
            tracing::error!("the alarm clock's thread panicked");
        }
    }
}

/// What became of translating.
#[derive(Default)]
struct Tried {
    works: AtomicBool,
    fails: AtomicBool,
}

/// A virtual machine whose CPUs are software.
pub struct SoftVm {
    machine: Arc<Machine>,
    ram: Arc<Ram>,
    model: Arc<Model>,
    cpu_model: CpuModel,
    /// Hot code is to be translated.
    translates: AtomicBool,
    /// How, or that it is not, whatever the configuration says.
    always: Option<Option<Translation>>,
    /// A vCPU was made that does, or whose host does not let it.
    tried: Tried,
    /// Who looks at the vCPUs.
    profiling: Mutex<Option<Profiling>>,
    /// Interrupts that events signal, once there is one.
    signals: Mutex<Option<Signals>>,
    last_signal: AtomicU64,
    /// Which vCPUs were made.
    made: Mutex<Box<[bool]>>,
}

impl SoftVm {
    /// A machine as `settings` say.
    ///
    /// # Errors
    /// [`HypervisorError`] if there are too many or no vCPUs, or the memory is not of whole pages.
    pub fn new(settings: VmSettings) -> Result<Self, HypervisorError> {
        Self::counting_at(settings, TscRate::GIGAHERTZ)
    }

    /// The same, its time-stamp counters counting at `rate`; with Hyper-V's interface at 1 GHz all the same.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn counting_at(settings: VmSettings, rate: TscRate) -> Result<Self, HypervisorError> {
        let VmSettings {
            vcpus,
            memory,
            hyperv,
            model,
        } = settings;
        if !(1..=MAX_VCPUS).contains(&vcpus) {
            return Err(HypervisorError::VcpuCount {
                wanted: vcpus,
                max: MAX_VCPUS,
            });
        }
        model.check(executes)?;
        let ram = Ram::new(memory).map_err(|source| HypervisorError::Memory { source })?;
        let count = vcpus as usize;
        let machine = Machine::new(count, hyperv)?;
        if !hyperv {
            machine.chipset.count_at(rate);
        }
        let table = CpuidTable::new(super::cpuid::entries(0, vcpus, hyperv, model));
        Ok(Self {
            machine: Arc::new(machine),
            ram: Arc::new(ram),
            model: Arc::new(Model::announcing(&table)),
            cpu_model: model,
            translates: AtomicBool::new(false),
            always: None,
            tried: Tried::default(),
            profiling: Mutex::new(None),
            signals: Mutex::new(None),
            last_signal: AtomicU64::new(0),
            made: Mutex::new(vec![false; count].into()),
        })
    }

    /// The same, code being translated as `translation` says, or interpreted only.
    pub fn translating(self, translation: Option<Translation>) -> Self {
        Self {
            always: Some(translation),
            ..self
        }
    }

    /// Has `vcpu` translate hot code, if this host can.
    fn translate_on(&self, vcpu: &mut SoftVcpu, translation: Translation) {
        match vcpu.translate(translation) {
            Ok(()) => self.tried.works.store(true, Ordering::Relaxed),
            // One note for all vCPUs.
            Err(error) if !self.tried.fails.swap(true, Ordering::Relaxed) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(%error, cause, "the guest's code is not translated but interpreted");
            }
            Err(_) => {}
        }
    }
}

impl Vm for SoftVm {
    fn create_vcpu(&self, index: u32) -> Result<Box<dyn Vcpu>, HypervisorError> {
        let place = index as usize;
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        match made.get_mut(place) {
            Some(made) if !*made => *made = true,
            _ => return Err(HypervisorError::VcpuIndex { index }),
        }
        let (machine, ram, model) = (
            Arc::clone(&self.machine),
            Arc::clone(&self.ram),
            Arc::clone(&self.model),
        );
        let (vcpus, hyperv) = (made.len() as u32, machine.partition.is_some());
        let mut entries = super::cpuid::entries(index, vcpus, hyperv, self.cpu_model);
        machine.chipset.tsc_rate().announce(&mut entries);
        let cpuid = CpuidTable::new(entries);
        let mut vcpu = SoftVcpu::new(place, machine, ram, model, cpuid);
        let wanted = self.translates.load(Ordering::Relaxed).then(Translation::default);
        if let Some(translation) = self.always.unwrap_or(wanted) {
            self.translate_on(&mut vcpu, translation);
        }
        let profiling = self.profiling.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(profiling) = profiling {
            vcpu.profile(profiling);
        }
        Ok(Box::new(vcpu))
    }

    fn translate(&self, on: bool) {
        self.translates.store(on, Ordering::Relaxed);
    }

    fn translates(&self) -> bool {
        self.tried.works.load(Ordering::Relaxed)
    }

    fn profile(&self, period: NonZeroU64, profiler: Arc<dyn Profiler>) -> bool {
        let mut profiling = self.profiling.lock().unwrap_or_else(PoisonError::into_inner);
        *profiling = Some(Profiling { period, profiler });
        true
    }

    fn interrupt_line(&self, gsi: u32) -> Result<Arc<dyn InterruptLine>, HypervisorError> {
        let max = LINES as u32 - 1;
        if gsi > max {
            return Err(HypervisorError::Gsi { gsi, max });
        }
        let chipset = Arc::clone(&self.machine.chipset);
        Ok(Arc::new(Source {
            chipset,
            line: gsi as usize,
            asserted: Mutex::new(false),
        }))
    }

    fn signal_msi(&self, address: u64, data: u32) {
        match decode_msi(address, data) {
            Some(message) => {
                self.machine.chipset.deliver(&message);
            }
            None => tracing::debug!(address, data, "a message that is no interrupt"),
        }
    }

    fn message_event(&self) -> Result<Arc<dyn MessageEvent>, HypervisorError> {
        let mut signals = self.signals.lock().unwrap_or_else(PoisonError::into_inner);
        let signals = match &mut *signals {
            Some(signals) => signals,
            none => none.insert(Signals::new(Arc::clone(&self.machine.chipset))?),
        };
        let number = self.last_signal.fetch_add(1, Ordering::SeqCst);
        Ok(Arc::new(signals.interrupt(number)?))
    }

    fn doorbell(&self, at: DoorbellAddress, event: &EventFd) -> Result<Doorbell, HypervisorError> {
        let event = event
            .try_clone()
            .map_err(|source| HypervisorError::Host { call: "dup", source })?;
        let number = self.machine.chipset.doorbells.add(at, event);
        let chipset = Arc::clone(&self.machine.chipset);
        Ok(Doorbell::new(move || chipset.doorbells.remove(number)))
    }

    fn keeps_decoded(&self) -> bool {
        true
    }

    fn memory_written(&self, address: u64, length: u64) {
        self.ram.written_by_host(address, length);
    }

    fn set_paused(&self, paused: bool) {
        self.machine.chipset.set_paused(paused);
    }

    fn state(&self) -> Result<VmState, HypervisorError> {
        let hyperv = self.machine.partition.as_ref().map(|partition| partition.state());
        let state = self.machine.chipset.state();
        Ok(VmState { hyperv, ..state })
    }

    fn restore(&self, state: &VmState) -> Result<(), HypervisorError> {
        let saved = state.hyperv.is_some();
        if saved != self.machine.partition.is_some() {
            return Err(StateError::Interface { saved }.into());
        }
        self.machine.chipset.restore(state)?;
        if let (Some(partition), Some(state)) = (&self.machine.partition, state.hyperv) {
            partition.restore(state);
        }
        Ok(())
    }
}

/// One source of an interrupt line. A line with several sources is up while any of them asserts it.
struct Source {
    chipset: Arc<Chipset>,
    line: usize,
    asserted: Mutex<bool>,
}

impl InterruptLine for Source {
    fn set(&self, level: bool) {
        let mut asserted = self.asserted.lock().unwrap_or_else(PoisonError::into_inner);
        if *asserted != level {
            *asserted = level;
            self.chipset.change_line(self.line, level);
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.set(false);
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestAddress;

    use super::*;
    use crate::{GuestMemory, Hypervisor, HypervisorKind, SoftHypervisor};

    fn settings(vcpus: u32) -> VmSettings {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        VmSettings {
            vcpus,
            memory,
            hyperv: false,
            model: CpuModel::Host,
        }
    }

    #[test]
    fn there_are_1_to_255_vcpus() {
        for wanted in [0, 256, u32::MAX] {
            let refused = SoftHypervisor.create_vm(settings(wanted)).err();
            assert!(
                matches!(refused, Some(HypervisorError::VcpuCount { max: 255, .. })),
                "{wanted}"
            );
        }
        assert!(SoftHypervisor.create_vm(settings(255)).is_ok());
        assert_eq!(
            (SoftHypervisor.kind(), SoftHypervisor.max_vcpus()),
            (HypervisorKind::Soft, 255)
        );
    }

    #[test]
    fn each_vcpu_is_made_once() {
        let vm = SoftVm::new(settings(2)).unwrap();
        assert!(vm.create_vcpu(1).is_ok());
        for index in [1, 2] {
            let refused = vm.create_vcpu(index).err();
            assert!(matches!(refused, Some(HypervisorError::VcpuIndex { .. })), "{index}");
        }
        assert!(vm.create_vcpu(0).is_ok());
    }

    #[test]
    fn there_are_24_lines() {
        let vm = SoftVm::new(settings(1)).unwrap();
        assert!(vm.interrupt_line(23).is_ok());
        let refused = vm.interrupt_line(24).err();
        assert!(matches!(refused, Some(HypervisorError::Gsi { gsi: 24, max: 23 })));
    }

    /// Whether line 5 is up, as the PICs see it: they are told to be level-triggered there, and to show requests.
    fn is_up(vm: &SoftVm) -> bool {
        let chipset = &vm.machine.chipset;
        chipset.write_ports(0x4d0, 1, 0x20);
        chipset.write_ports(0x20, 1, 0x0a);
        chipset.read_ports(0x20, 1).unwrap() & 0x20 != 0
    }

    #[test]
    fn a_line_is_up_while_any_of_its_sources_asserts_it() {
        let vm = SoftVm::new(settings(1)).unwrap();
        let (one, other) = (vm.interrupt_line(5).unwrap(), vm.interrupt_line(5).unwrap());
        one.set(true);
        one.set(true);
        other.set(true);
        one.set(false);
        assert!(is_up(&vm));
        drop(other);
        assert!(!is_up(&vm), "a source that is gone asserts nothing");
    }

    #[test]
    fn the_machine_lives_as_long_as_somebody_holds_on_to_it() {
        let vm = SoftVm::new(settings(1)).unwrap();
        let (vcpu, line) = (vm.create_vcpu(0).unwrap(), vm.interrupt_line(5).unwrap());
        let chipset = Arc::downgrade(&vm.machine.chipset);
        drop(vm);
        line.pulse();
        drop(vcpu);
        drop(line);
        assert!(chipset.upgrade().is_none(), "the alarm clock's thread has ended");
    }

    #[test]
    fn messages_that_are_no_interrupts_are_ignored() {
        SoftVm::new(settings(1)).unwrap().signal_msi(0x1234, 0x41);
    }
}

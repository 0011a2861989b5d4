//! One virtual machine of the soft backend.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use reprise_emulator::{Model, Ram};

use super::chipset::{Chipset, LINES};
use super::ioapic::MessageBus;
use super::message::decode_msi;
use super::vcpu::SoftVcpu;
use crate::{HypervisorError, InterruptLine, Vcpu, Vm, VmSettings};

/// The most vCPUs of a machine: their ids are below 255, which in the 8 bits of an IO-APIC's entry means everyone.
pub const MAX_VCPUS: u32 = 255;

/// What lives as long as anybody holds on to the machine: the chipset and its alarm clock.
pub struct Machine {
    /// The interrupt fabric.
    pub chipset: Arc<Chipset>,
    /// The thread behind the alarm clock.
    alarm: Option<JoinHandle<()>>,
}

impl Machine {
    fn new(vcpus: usize) -> Result<Self, HypervisorError> {
        let chipset = Arc::new(Chipset::new(vcpus));
        let theirs = Arc::clone(&chipset);
        let alarm = std::thread::Builder::new()
            .name("alarm".into())
            .spawn(move || theirs.alarms.run(&theirs.clock, |slot| theirs.goes_off(slot)))
            .map_err(|source| HypervisorError::Thread { source })?;
        Ok(Self {
            chipset,
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

/// A virtual machine whose CPUs are software.
pub struct SoftVm {
    machine: Arc<Machine>,
    ram: Arc<Ram>,
    model: Arc<Model>,
    /// Which vCPUs were made.
    made: Mutex<Box<[bool]>>,
}

impl SoftVm {
    /// A machine as `settings` say.
    ///
    /// # Errors
    /// [`HypervisorError`] if there are too many or no vCPUs, or the memory is not of whole pages.
    pub fn new(settings: VmSettings) -> Result<Self, HypervisorError> {
        let VmSettings { vcpus, memory } = settings;
        if !(1..=MAX_VCPUS).contains(&vcpus) {
            return Err(HypervisorError::VcpuCount {
                wanted: vcpus,
                max: MAX_VCPUS,
            });
        }
        let ram = Ram::new(memory).map_err(|source| HypervisorError::Memory { source })?;
        let count = vcpus as usize;
        Ok(Self {
            machine: Arc::new(Machine::new(count)?),
            ram: Arc::new(ram),
            model: Arc::new(Model::new()),
            made: Mutex::new(vec![false; count].into()),
        })
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
        Ok(Box::new(SoftVcpu::new(place, machine, ram, model)))
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

    fn memory_written(&self, address: u64, length: u64) {
        self.ram.written_by_host(address, length);
    }

    fn set_paused(&self, paused: bool) {
        self.machine.chipset.set_paused(paused);
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

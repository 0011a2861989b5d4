//! A vCPU as plain data, and back.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use reprise_emulator::cpuid::CpuidTable;
use reprise_emulator::{InFlight, Model, Request, Space};

use super::SoftVcpu;
use crate::{StateError, VcpuState, cpu_model};

impl SoftVcpu {
    pub(super) fn save(&self) -> VcpuState {
        VcpuState {
            cpuid: self.cpuid.entries().to_vec(),
            cpu: Box::new(self.emulator.cpu().clone()),
            in_flight: self.emulator.in_flight(),
            local_apic: self.seat().lapic().state(),
            msrs: self.msrs.state(),
            unhalted: self.seat().unhalted.load(Ordering::SeqCst),
        }
    }

    pub(super) fn go_on_from(&mut self, state: VcpuState) -> Result<(), StateError> {
        let VcpuState {
            cpuid,
            cpu,
            in_flight,
            local_apic,
            msrs,
            unhalted,
        } = state;
        cpu_model::check(&cpuid, self.cpuid.entries())?;
        let other = (cpuid != self.cpuid.entries()).then(|| Arc::new(CpuidTable::new(cpuid)));
        cpu.check(other.as_ref().unwrap_or(&self.cpuid))?;
        if let Some(Request { space, .. }) = in_flight.as_ref().and_then(InFlight::request)
            && !matches!(space, Space::Port | Space::Memory | Space::Hypercall)
        {
            return Err(StateError::NotADevice { space });
        }
        let mut place = self.machine.chipset.seats()[self.index].lapic();
        let mut lapic = place.clone();
        lapic.set_rate(self.chipset().tsc_rate());
        lapic.restore(&local_apic)?;
        self.emulator.restore(*cpu, in_flight.as_ref())?;
        *place = lapic;
        drop(place);
        if let Some(table) = other {
            let model = Arc::new(Model::announcing(&table));
            self.emulator.set_model(model, Arc::clone(&table));
            self.cpuid = table;
        }
        self.msrs.restore(&msrs);
        self.seat().unhalted.store(unhalted, Ordering::SeqCst);
        // The alarm clock learns the deadline, and an instruction in flight is followed by a look at what is pending.
        self.arm();
        self.seat().bell.ring();
        Ok(())
    }
}

//! A vCPU as plain data, and back.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use reprise_emulator::cpuid::CpuidEntry;
use reprise_emulator::{InFlight, Request, Space};

use super::SoftVcpu;
use crate::{StateError, VcpuState};

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
        same_model(&cpuid, self.cpuid.entries())?;
        cpu.check(&self.cpuid)?;
        if let Some(Request { space, .. }) = in_flight.as_ref().and_then(InFlight::request)
            && !matches!(space, Space::Port | Space::Memory | Space::Hypercall)
        {
            return Err(StateError::NotADevice { space });
        }
        let mut place = self.machine.chipset.seats()[self.index].lapic();
        let mut lapic = place.clone();
        lapic.restore(&local_apic)?;
        self.emulator.restore(*cpu, in_flight.as_ref())?;
        *place = lapic;
        drop(place);
        self.msrs.restore(&msrs);
        self.seat().unhalted.store(unhalted, Ordering::SeqCst);
        // The alarm clock learns the deadline, and an instruction in flight is followed by a look at what is pending.
        self.arm();
        self.seat().bell.ring();
        Ok(())
    }
}

/// Checks that both answer CPUID alike.
fn same_model(saved: &[CpuidEntry], own: &[CpuidEntry]) -> Result<(), StateError> {
    let leaves = |entries: &[CpuidEntry]| -> BTreeMap<_, _> {
        let leaf = |entry: &CpuidEntry| ((entry.leaf, entry.subleaf), entry.registers);
        entries.iter().map(leaf).collect()
    };
    let (saved, own) = (leaves(saved), leaves(own));
    let mut places: Vec<_> = saved.keys().chain(own.keys()).collect();
    places.sort_unstable();
    match places.into_iter().find(|place| saved.get(place) != own.get(place)) {
        None => Ok(()),
        Some(place) => Err(StateError::CpuModel {
            leaf: place.0,
            subleaf: place.1.unwrap_or(0),
            saved: saved.get(place).copied(),
            own: own.get(place).copied(),
        }),
    }
}

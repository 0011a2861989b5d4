//! What the vCPUs share as plain data, and back.

use super::super::chips;
use super::super::lines::PIT_PIN;
use super::Machine;
use crate::soft::clock::LATEST;
use crate::soft::ioapic::IoApic;
use crate::soft::pic::Pic;
use crate::soft::pit::Pit;
use crate::tsc::TscRate;
use crate::{HypervisorError, StateError, VmState};

/// The level of the PIT's line among those of the IO-APIC's pins.
const PIT_LEVEL: u32 = 1 << PIT_PIN;

impl Machine {
    pub(super) fn save(&self) -> Result<VmState, HypervisorError> {
        let clock = self.clock.now()?;
        let (pit, level) = self.pit.save();
        let pins = self.lines.levels() & !PIT_LEVEL | u32::from(level) << PIT_PIN;
        Ok(VmState {
            vcpus: self.vcpus,
            clock,
            tsc_khz: self.counters.rate().khz(),
            io_apic: chips::read_io_apic(&self.fd, pins)?,
            pic: chips::read_pics(&self.fd)?,
            pit: pit.state(),
            lowest_priority_turn: 0,
            hyperv: None,
        })
    }

    /// Nothing has changed if this fails before KVM refuses something, but that the machine is paused.
    pub(super) fn go_on_from(&self, state: &VmState) -> Result<(), HypervisorError> {
        self.set_paused(true)?;
        let VmState {
            vcpus: saved,
            clock,
            tsc_khz,
            io_apic,
            pic,
            pit,
            lowest_priority_turn: turn,
            hyperv,
        } = state;
        let own = self.vcpus;
        if *saved != own {
            return Err(StateError::VcpuCount { saved: *saved, own }.into());
        }
        if hyperv.is_some() {
            return Err(StateError::Interface { saved: true }.into());
        }
        StateError::unless(*clock < LATEST, "the machine's clock", *clock)?;
        StateError::unless(*turn < own, "the turn of lowest priority", *turn)?;
        let Some(rate) = TscRate::new(*tsc_khz) else {
            let (register, value) = ("the time-stamp counters' frequency in kHz", u64::from(*tsc_khz));
            return Err(StateError::Register { register, value }.into());
        };
        let timer = Pit::from_state(pit)?;
        let pic = Pic::from_state(pic)?.state();
        let io_apic = IoApic::from_state(io_apic)?.state();
        chips::check(&pic)?;
        chips::write(&self.fd, &pic, &io_apic)?;
        self.clock.hold_at(*clock);
        self.counters.restore(rate);
        self.pit.restore(timer, io_apic.pins & PIT_LEVEL != 0);
        self.lines.assume(io_apic.pins & !PIT_LEVEL);
        Ok(())
    }
}

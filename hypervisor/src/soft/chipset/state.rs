//! The interrupt fabric but for the local APICs as plain data, and back.

use std::sync::atomic::Ordering;

use super::{Chipset, IoApic, LINES, PIT_PIN, Pic, Pit, lock};
use crate::StateError;
use crate::soft::clock::LATEST;
use crate::state::VmState;
use crate::tsc::TscRate;

impl Chipset {
    /// Clock, interrupt controllers and timer. They agree with each other if the machine is paused.
    pub fn state(&self) -> VmState {
        VmState {
            vcpus: self.vcpus(),
            clock: self.clock.now(),
            tsc_khz: self.tsc_rate().khz(),
            io_apic: lock(&self.ioapic).state(),
            pic: lock(&self.pic).state(),
            pit: lock(&self.pit).state(),
            lowest_priority_turn: self.turn.load(Ordering::Relaxed) as u32,
            hyperv: None,
        }
    }

    /// Goes on from `state`, paused. No interrupt is sent for that.
    ///
    /// # Errors
    /// [`StateError`] if this machine cannot; nothing has changed then but that it is paused.
    pub fn restore(&self, state: &VmState) -> Result<(), StateError> {
        self.set_paused(true);
        let VmState {
            vcpus: saved,
            clock,
            tsc_khz,
            io_apic,
            pic,
            pit,
            lowest_priority_turn: turn,
            hyperv: _,
        } = state;
        let own = self.vcpus();
        if *saved != own {
            return Err(StateError::VcpuCount { saved: *saved, own });
        }
        StateError::unless(*clock < LATEST, "the machine's clock", *clock)?;
        StateError::unless(
            TscRate::new(*tsc_khz).is_some(),
            "the time-stamp counters' frequency in kHz",
            *tsc_khz,
        )?;
        StateError::unless(*turn < own, "the turn of lowest priority", *turn)?;
        let (io_apic, pic, pit) = (
            IoApic::from_state(io_apic)?,
            Pic::from_state(pic)?,
            Pit::from_state(pit)?,
        );
        self.clock.hold_at(*clock);
        self.tsc_khz.store(*tsc_khz, Ordering::Relaxed);
        self.turn.store(*turn as usize, Ordering::Relaxed);
        *lock(&self.ioapic) = io_apic;
        {
            let mut own = lock(&self.pic);
            *own = pic;
            if let Some(bsp) = self.seats.first() {
                bsp.lapic().place_lint0(own.output());
            }
        }
        {
            let mut own = lock(&self.pit);
            *own = pit;
            self.alarms.arm(self.seats.len(), own.deadline());
        }
        self.alarms.clock_changed();
        Ok(())
    }

    /// Makes the controllers' pins what those who assert the lines say. They differ only after a restore, and then where a
    /// device that asserted its line does so no longer, or the other way round.
    pub(super) fn settle_lines(&self) {
        let asserted = lock(&self.asserted);
        for (line, sources) in asserted.iter().enumerate() {
            let level = *sources > 0;
            // These two are the PIT's.
            if line != 0 {
                self.set_pic_line(line, level);
            }
            if line != PIT_PIN {
                lock(&self.ioapic).set_line(line, level, self);
            }
        }
        drop(asserted);
        self.with_pit(|_, _| ());
    }

    fn vcpus(&self) -> u32 {
        self.seats.len() as u32
    }
}

const _: () = assert!(LINES <= u32::BITS as usize, "pins are saved as bits of a word");

#[cfg(test)]
mod tests;

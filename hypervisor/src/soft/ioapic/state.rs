//! The IO-APIC as plain data, and back.

use super::{IoApic, LEVEL, PINS, REMOTE_IRR, WRITABLE};
use crate::StateError;
use crate::state::IoApicState;

impl IoApic {
    /// Registers and pins.
    pub fn state(&self) -> IoApicState {
        let Self {
            id,
            index,
            entries,
            lines,
        } = *self;
        IoApicState {
            id,
            ioregsel: index,
            ioredtbl: entries,
            pins: lines,
        }
    }

    /// The IO-APIC that was in `state`. Nothing is sent for that.
    ///
    /// # Errors
    /// [`StateError::Register`] if none can be.
    pub fn from_state(state: &IoApicState) -> Result<Self, StateError> {
        let IoApicState {
            id,
            ioregsel,
            ioredtbl,
            pins,
        } = *state;
        StateError::unless(id <= 0xf, "IOAPICID", id)?;
        StateError::unless(pins >> PINS == 0, "the IO-APIC's pins", pins)?;
        for entry in ioredtbl {
            let served_edge = entry & REMOTE_IRR != 0 && entry & LEVEL == 0;
            StateError::unless(entry & !(WRITABLE | REMOTE_IRR) == 0 && !served_edge, "IOREDTBL", entry)?;
        }
        Ok(Self {
            id,
            index: ioregsel,
            entries: ioredtbl,
            lines: pins,
        })
    }
}

#[cfg(test)]
mod tests;

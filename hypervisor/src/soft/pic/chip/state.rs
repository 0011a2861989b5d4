//! One 8259A as plain data, and back.

use super::Chip;
use crate::StateError;
use crate::state::PicChipState;

impl Chip {
    /// Registers and lines.
    pub fn state(&self) -> PicChipState {
        let Self {
            lines,
            elcr,
            irr,
            isr,
            imr,
            lowest,
            vector_base,
            expects,
            needs_icw4,
            single,
            auto_eoi,
            rotates_on_auto_eoi,
            special_fully_nested,
            special_mask,
            reads_isr,
            polled,
            master: _,
        } = *self;
        PicChipState {
            irr,
            isr,
            imr,
            elcr,
            lines,
            vector_base,
            expected_icw: expects,
            icw4_needed: needs_icw4,
            single,
            auto_eoi,
            special_fully_nested,
            rotate_in_auto_eoi: rotates_on_auto_eoi,
            lowest_priority: lowest,
            special_mask,
            read_isr: reads_isr,
            poll: polled,
        }
    }

    /// The chip that was in `state`; `always_edge` are lines that the chipset lets nobody make level-triggered.
    ///
    /// # Errors
    /// [`StateError::Register`] if none can be.
    pub fn from_state(state: &PicChipState, master: bool, always_edge: u8) -> Result<Self, StateError> {
        let PicChipState {
            irr,
            isr,
            imr,
            elcr,
            lines,
            vector_base,
            expected_icw,
            icw4_needed,
            single,
            auto_eoi,
            special_fully_nested,
            rotate_in_auto_eoi,
            lowest_priority,
            special_mask,
            read_isr,
            poll,
        } = *state;
        StateError::unless(elcr & always_edge == 0, "ELCR", elcr)?;
        StateError::unless(vector_base & 7 == 0, "ICW2", vector_base)?;
        StateError::unless(matches!(expected_icw, 0 | 2..=4), "the number of an ICW", expected_icw)?;
        StateError::unless(lowest_priority < 8, "the 8259A's lowest priority", lowest_priority)?;
        Ok(Self {
            lines,
            elcr,
            irr,
            isr,
            imr,
            lowest: lowest_priority,
            vector_base,
            expects: expected_icw,
            needs_icw4: icw4_needed,
            single,
            auto_eoi,
            rotates_on_auto_eoi: rotate_in_auto_eoi,
            special_fully_nested,
            special_mask,
            reads_isr: read_isr,
            polled: poll,
            master,
        })
    }
}

#[cfg(test)]
mod tests;

//! One counter of the 8254 as plain data, and back.

use super::{Access, Channel, Waiting};
use crate::StateError;
use crate::state::{PitAccess, PitChannelState, PitWaitingCount};

/// Moments in a state are at most this many clock pulses from 0: 950 years, and far from any overflow.
pub const FARTHEST: i64 = 1 << 55;

impl Channel {
    /// Registers, and when what is under way began.
    pub fn state(&self) -> PitChannelState {
        // At most 0x10000.
        let count = |count: i64| count as u32;
        let Self {
            mode,
            bcd,
            access,
            count: initial,
            waiting,
            start,
            gate,
            held,
            triggered,
            low_written,
            high_next,
            latched,
            status,
        } = *self;
        PitChannelState {
            mode,
            bcd,
            access: match access {
                Access::Low => PitAccess::Low,
                Access::High => PitAccess::High,
                Access::Both => PitAccess::Both,
            },
            count: initial.map(count),
            waiting: waiting.map(|waiting| PitWaitingCount {
                count: count(waiting.count),
                at: waiting.at,
            }),
            start,
            gate,
            held,
            triggered,
            low_written,
            high_next,
            latched_count: latched,
            latched_status: status,
        }
    }

    /// The counter that was in `state`.
    ///
    /// # Errors
    /// [`StateError::Register`] if none can be.
    pub fn from_state(state: &PitChannelState) -> Result<Self, StateError> {
        let PitChannelState {
            mode,
            bcd,
            access,
            count: initial,
            waiting,
            start,
            gate,
            held,
            triggered,
            low_written,
            high_next,
            latched_count,
            latched_status,
        } = *state;
        let most = if bcd { 10_000 } else { 0x1_0000 };
        let count = |count: u32| -> Result<i64, StateError> {
            StateError::unless((1..=most).contains(&count), "the 8254's count", count)?;
            Ok(i64::from(count))
        };
        let waiting = waiting.map(|waiting| -> Result<Waiting, StateError> {
            waiting.at.map_or(Ok(()), moment)?;
            Ok(Waiting {
                count: count(waiting.count)?,
                at: waiting.at,
            })
        });
        StateError::unless(mode < 6, "the 8254's mode", mode)?;
        moment(start)?;
        if let Some(held) = held {
            StateError::unless((0..=FARTHEST).contains(&held), "the 8254's held count", held as u64)?;
        }
        Ok(Self {
            mode,
            bcd,
            access: match access {
                PitAccess::Low => Access::Low,
                PitAccess::High => Access::High,
                PitAccess::Both => Access::Both,
            },
            count: initial.map(count).transpose()?,
            waiting: waiting.transpose()?,
            start,
            gate,
            held,
            triggered,
            low_written,
            high_next,
            latched: latched_count,
            status: latched_status,
        })
    }
}

/// Checks a moment in clock pulses.
///
/// # Errors
/// [`StateError::Register`] if it is out of all reason.
pub fn moment(pulse: i64) -> Result<(), StateError> {
    StateError::unless(
        (-FARTHEST..=FARTHEST).contains(&pulse),
        "a moment of the 8254",
        pulse as u64,
    )
}

#[cfg(test)]
mod tests;

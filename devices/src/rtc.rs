//! The real-time clock and its CMOS memory: an MC146818, after Motorola's data sheet.
//!
//! # Purpose
//! Guests learn the date from it, and firmware the size of memory. Time is the host's, in UTC, plus an offset that a
//! guest makes by setting the clock.
//!
//! # Invariants
//! - The time registers read as one moment: the update-in-progress bit (UIP) is never set, since an update takes no time.
//! - While a guest holds the clock (SET in register B) the registers show what was written; letting go starts the clock
//!   from there.
//! - A date that no calendar has (month 0, 31 February) is carried over into one that exists when the clock starts.
//!
//! # Left out
//! No interrupts: alarm, periodic and update-ended interrupts can be enabled and never come, as register C always says.

use std::fmt;
use std::sync::{Arc, Mutex};

use crate::bus::{Bus, BusError, Device, Response, Space};
use crate::bytes;
use crate::clock::Clock;
use crate::sync::lock;

mod calendar;
mod cmos;

pub use calendar::CalendarTime;
pub use cmos::{RtcState, RtcTime};

/// The index port; the data port follows.
pub const PORT: u64 = 0x70;
/// The number of ports.
pub const PORTS: u64 = 2;
/// The century's place in CMOS memory, for the FADT's CENTURY.
pub const CENTURY: u8 = 0x32;

const INDEX: u64 = 0;
const DATA: u64 = 1;
/// Bit 7 of the index port masks NMIs on a PC; there are none to mask.
const INDEX_MASK: u8 = 0x7f;

/// How much memory the CMOS tells of, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemorySize {
    /// RAM that ends below 4 GiB, counted from address 0 as if it had no holes.
    pub below_4g: u64,
    /// RAM from 4 GiB up.
    pub above_4g: u64,
}

/// A real-time clock.
pub struct Rtc {
    state: Mutex<RtcState>,
    clock: Arc<dyn Clock>,
}

impl Rtc {
    /// A clock that shows `clock`'s time in UTC, and a CMOS that tells of `memory`.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>, memory: MemorySize) -> Self {
        Self {
            state: Mutex::new(RtcState::new(memory)),
            clock,
        }
    }

    /// Puts the clock at [`PORT`].
    ///
    /// # Errors
    /// [`BusError`] if a port is taken.
    pub fn attach(self: &Arc<Self>, bus: &Bus) -> Result<(), BusError> {
        bus.insert(Space::Port, PORT, PORTS, Arc::clone(self) as Arc<dyn Device>)
    }

    /// Index, memory, and how far the guest's time is from the host's.
    #[must_use]
    pub fn state(&self) -> RtcState {
        lock(&self.state).clone()
    }

    /// Replaces the state. Time goes on from the host's clock of now: a guest that did not set the clock finds the time of
    /// day, one that did finds it as far ahead as before. What the registers cannot hold is made what they can.
    pub fn restore(&self, state: &RtcState) {
        *lock(&self.state) = state.clone().legal(self.clock.unix_seconds());
    }
}

impl Device for Rtc {
    fn name(&self) -> &str {
        "rtc"
    }

    fn read(&self, offset: u64, size: u8) -> Response {
        let state = lock(&self.state);
        let now = self.clock.unix_seconds();
        Response::Done(bytes::read(offset, size, |at| match at {
            DATA => state.read(now),
            // The index port is write-only.
            _ => 0xff,
        }))
    }

    fn write(&self, offset: u64, size: u8, value: u64) -> Response {
        let mut state = lock(&self.state);
        let now = self.clock.unix_seconds();
        bytes::write(offset, size, value, |at, byte| match at {
            INDEX => state.index = byte & INDEX_MASK,
            DATA => state.write(now, byte),
            _ => (),
        });
        Response::Done(0)
    }
}

impl fmt::Debug for Rtc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rtc")
            .field("now", &lock(&self.state).time(self.clock.unix_seconds()))
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;

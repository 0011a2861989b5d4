//! What an 8254 interval timer remembers (Intel 8254 data sheet), with the port that gates its counter 2.

use serde::{Deserialize, Serialize};

/// The timer. Its moments are counted in clock pulses of 105/88 MHz, of which 0 is the start of the machine's clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PitState {
    /// Counters 0 to 2.
    pub counters: [PitChannelState; 3],
    /// Port 0x61, bits 3:0 as written.
    pub port_61: u8,
    /// The pulse up to which the interrupt controllers were told of OUT 0.
    pub told: i64,
    /// OUT 0 as they were told.
    pub out_0: bool,
}

/// One counter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PitChannelState {
    /// Control word, M2 to M0: 0 to 5.
    pub mode: u8,
    /// Control word, BCD.
    pub bcd: bool,
    /// Control word, RW1 and RW0.
    pub access: PitAccess,
    /// The initial count, 1 to 0x10000 (10000 in BCD); `None` until it is written.
    pub count: Option<u32>,
    /// A count that is written and not loaded yet.
    pub waiting: Option<PitWaitingCount>,
    /// The pulse at which the count was loaded.
    pub start: i64,
    /// The GATE input.
    pub gate: bool,
    /// For how many pulses the counter had counted when GATE held it; `None` if it is not held.
    pub held: Option<i64>,
    /// Modes 1 and 5: GATE has risen since the counter was programmed.
    pub triggered: bool,
    /// The first of two bytes of a count that is being written.
    pub low_written: Option<u8>,
    /// The next read gives the second byte.
    pub high_next: bool,
    /// The latched count.
    pub latched_count: Option<u16>,
    /// The latched status.
    pub latched_status: Option<u8>,
}

/// How a counter's bytes are written and read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PitAccess {
    /// The low byte only.
    Low,
    /// The high byte only.
    High,
    /// The low byte, then the high one.
    Both,
}

/// A count that waits for its moment to be loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PitWaitingCount {
    /// The count, as [`PitChannelState::count`].
    pub count: u32,
    /// The pulse that loads it; `None` waits for GATE to rise.
    pub at: Option<i64>,
}

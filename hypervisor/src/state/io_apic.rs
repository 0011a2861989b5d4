//! What an IO-APIC remembers (Intel 82093AA).

use serde::{Deserialize, Serialize};

/// The number of pins.
pub const IO_APIC_PINS: usize = 24;

/// The registers of an IO-APIC and its pins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoApicState {
    /// IOAPICID, 4 bits.
    pub id: u8,
    /// IOREGSEL.
    pub ioregsel: u8,
    /// IOREDTBL, the redirection entries, with remote IRR (bit 14) where a level-triggered interrupt is being served.
    pub ioredtbl: [u64; IO_APIC_PINS],
    /// Which pins are asserted, pin 0 in bit 0.
    pub pins: u32,
}

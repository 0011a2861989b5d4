//! What a pair of 8259A interrupt controllers remembers (Intel 8259A data sheet).

use serde::{Deserialize, Serialize};

/// The pair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PicState {
    /// The one at port 0x20, IRQ 0 to 7.
    pub master: PicChipState,
    /// The one at port 0xA0, IRQ 8 to 15.
    pub slave: PicChipState,
}

/// One controller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PicChipState {
    /// Interrupt request register.
    pub irr: u8,
    /// In-service register.
    pub isr: u8,
    /// Interrupt mask register.
    pub imr: u8,
    /// Edge/level control register of the chipset: level-triggered lines have their bit set.
    pub elcr: u8,
    /// The levels of the request lines; line 2 of the master is the slave's output.
    pub lines: u8,
    /// ICW2: the vector of line 0, a multiple of 8.
    pub vector_base: u8,
    /// The initialisation command word that is expected next, 2 to 4; 0 if none is.
    pub expected_icw: u8,
    /// ICW1, IC4: the initialisation has a fourth word.
    pub icw4_needed: bool,
    /// ICW1, SNGL: there is no third word.
    pub single: bool,
    /// ICW4, AEOI.
    pub auto_eoi: bool,
    /// ICW4, SFNM.
    pub special_fully_nested: bool,
    /// OCW2: rotate in automatic EOI mode.
    pub rotate_in_auto_eoi: bool,
    /// OCW2: the line of the lowest priority, 0 to 7.
    pub lowest_priority: u8,
    /// OCW3: special mask mode.
    pub special_mask: bool,
    /// OCW3, RIS: a read gives ISR, not IRR.
    pub read_isr: bool,
    /// OCW3, P: the next read is a poll.
    pub poll: bool,
}

//! The IO-APIC (Intel 82093AA, with the EOI register of the later ones).
//!
//! Twenty-four pins, one redirection entry each, behind an index and a data register. Every line says *asserted* or not;
//! the polarity bit of an entry is kept and otherwise without meaning, as both ends of a line agree on it.

mod state;

use super::message::{Delivery, Destination, Message};
use crate::state::IO_APIC_PINS;

/// The guest-physical address of the register window.
pub const BASE: u64 = 0xfec0_0000;
/// The length of the register window in bytes.
pub const LENGTH: u64 = 0x1000;
/// The number of pins.
pub const PINS: usize = IO_APIC_PINS;

/// Index register.
const IOREGSEL: u64 = 0x00;
/// Data register.
const IOWIN: u64 = 0x10;
/// End-of-interrupt register.
const EOIR: u64 = 0x40;

const ID: u8 = 0;
const VERSION: u8 = 1;
const ARBITRATION: u8 = 2;
const TABLE: u8 = 0x10;
const TABLE_END: u8 = TABLE + 2 * PINS as u8;

/// Version 0x20 (it has an EOI register), and the number of the last entry.
const VERSION_VALUE: u32 = 0x20 | (PINS as u32 - 1) << 16;

const LOGICAL: u64 = 1 << 11;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
/// Bits of an entry that the guest writes: all but delivery status, remote IRR and the reserved ones.
pub const WRITABLE: u64 = 0xff00_0000_0001_afff;

/// Takes messages to the local APICs.
pub trait MessageBus {
    /// Delivers; true if a local APIC accepted the message.
    fn deliver(&self, message: &Message) -> bool;
}

/// The IO-APIC of the machine.
#[derive(Debug, Clone)]
pub struct IoApic {
    id: u8,
    index: u8,
    entries: [u64; PINS],
    /// The pins that are asserted, bit by bit.
    lines: u32,
}

impl IoApic {
    /// An IO-APIC after reset: id 0, every entry masked.
    pub fn new() -> Self {
        Self {
            id: 0,
            index: 0,
            entries: [MASKED; PINS],
            lines: 0,
        }
    }

    /// Asserts (true) or deasserts (false) `pin`; a pin that is not there stays so.
    pub fn set_line(&mut self, pin: usize, level: bool, bus: &impl MessageBus) {
        let Some(entry) = self.entries.get(pin) else { return };
        let bit = 1 << pin;
        let rises = level && self.lines & bit == 0;
        self.lines = if level { self.lines | bit } else { self.lines & !bit };
        if rises {
            match entry & LEVEL {
                // An edge that meets a masked entry is lost.
                0 if entry & MASKED == 0 => {
                    if let Some(message) = message(*entry) {
                        bus.deliver(&message);
                    }
                }
                0 => {}
                _ => self.service(pin, bus),
            }
        }
    }

    /// The end of the level-triggered interrupt `vector`, from a local APIC: pins that are still asserted interrupt again.
    pub fn end_of_interrupt(&mut self, vector: u8, bus: &impl MessageBus) {
        for pin in 0..PINS {
            let entry = &mut self.entries[pin];
            if *entry & REMOTE_IRR != 0 && *entry as u8 == vector {
                *entry &= !REMOTE_IRR;
                self.service(pin, bus);
            }
        }
    }

    /// Reads the 32-bit register at `offset` (0..[`LENGTH`]) of the window, of which the low `size` bytes are wanted.
    pub fn read(&self, offset: u64, size: u8) -> u64 {
        let value = match offset {
            IOREGSEL => u32::from(self.index),
            IOWIN => match self.index {
                ID | ARBITRATION => u32::from(self.id) << 24,
                VERSION => VERSION_VALUE,
                index @ TABLE..TABLE_END => {
                    let entry = self.entries[usize::from((index - TABLE) / 2)];
                    if index & 1 == 0 {
                        entry as u32
                    } else {
                        (entry >> 32) as u32
                    }
                }
                _ => u32::MAX,
            },
            _ => 0,
        };
        let mask = if size >= 4 { u32::MAX } else { (1 << (size * 8)) - 1 };
        u64::from(value & mask)
    }

    /// Writes the register at `offset` (0..[`LENGTH`]) of the window.
    pub fn write(&mut self, offset: u64, value: u64, bus: &impl MessageBus) {
        match (offset, self.index) {
            (IOREGSEL, _) => self.index = value as u8,
            (EOIR, _) => self.end_of_interrupt(value as u8, bus),
            (IOWIN, ID) => self.id = (value >> 24) as u8 & 0xf,
            (IOWIN, index @ TABLE..TABLE_END) => {
                let pin = usize::from((index - TABLE) / 2);
                let half = u64::from(u32::MAX) << (32 * (index & 1));
                self.write_entry(pin, value << (32 * (index & 1)), half & WRITABLE);
                self.service(pin, bus);
            }
            _ => {}
        }
    }

    fn write_entry(&mut self, pin: usize, value: u64, writable: u64) {
        let entry = &mut self.entries[pin];
        *entry = *entry & !writable | value & writable;
        // Only level-triggered entries have a remote IRR; software clears a stuck one by switching to edge and back.
        if *entry & LEVEL == 0 {
            *entry &= !REMOTE_IRR;
        }
    }

    /// Sends the interrupt of a level-triggered pin that is asserted, not masked, and not being served already.
    fn service(&mut self, pin: usize, bus: &impl MessageBus) {
        let entry = &mut self.entries[pin];
        if self.lines & 1 << pin != 0
            && *entry & (LEVEL | MASKED | REMOTE_IRR) == LEVEL
            && message(*entry).is_some_and(|message| bus.deliver(&message))
        {
            *entry |= REMOTE_IRR;
        }
    }
}

/// The message an entry sends, if its delivery mode has a taker.
fn message(entry: u64) -> Option<Message> {
    let (delivery, lowest) = Delivery::decode((entry >> 8) as u32, entry as u8)?;
    Some(Message {
        destination: Destination::narrow((entry >> 56) as u8, entry & LOGICAL != 0),
        // NMI and INIT are edges whatever the entry says.
        level: entry & LEVEL != 0 && matches!(delivery, Delivery::Fixed(_)),
        delivery,
        lowest,
    })
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use proptest::prelude::*;

    use super::*;

    /// Records what is sent, and accepts it or not.
    struct Wire {
        sent: RefCell<Vec<Message>>,
        accepts: Cell<bool>,
    }

    impl Wire {
        fn new() -> Self {
            Self {
                sent: RefCell::default(),
                accepts: Cell::new(true),
            }
        }

        fn vectors(&self) -> Vec<u8> {
            let vector = |message: Message| match message.delivery {
                Delivery::Fixed(vector) => vector,
                _ => 0,
            };
            self.sent.take().into_iter().map(vector).collect()
        }
    }

    impl MessageBus for Wire {
        fn deliver(&self, message: &Message) -> bool {
            self.sent.borrow_mut().push(*message);
            self.accepts.get()
        }
    }

    fn set(ioapic: &mut IoApic, wire: &Wire, pin: u8, entry: u64) {
        for (index, value) in [
            (TABLE + 2 * pin + 1, entry >> 32),
            (TABLE + 2 * pin, entry & 0xffff_ffff),
        ] {
            ioapic.write(IOREGSEL, u64::from(index), wire);
            ioapic.write(IOWIN, value, wire);
        }
    }

    fn get(ioapic: &mut IoApic, index: u8) -> u64 {
        ioapic.write(IOREGSEL, u64::from(index), &Wire::new());
        ioapic.read(IOWIN, 4)
    }

    #[test]
    fn after_reset_the_registers_read_as_the_data_sheet_says() {
        let mut ioapic = IoApic::new();
        assert_eq!(get(&mut ioapic, ID), 0);
        assert_eq!(get(&mut ioapic, VERSION), 0x0017_0020);
        for pin in 0..24 {
            assert_eq!(get(&mut ioapic, TABLE + 2 * pin), 0x1_0000);
            assert_eq!(get(&mut ioapic, TABLE + 2 * pin + 1), 0);
        }
    }

    #[test]
    fn the_id_has_four_bits() {
        let (mut ioapic, wire) = (IoApic::new(), Wire::new());
        ioapic.write(IOREGSEL, 0, &wire);
        ioapic.write(IOWIN, 0xffff_ffff, &wire);
        assert_eq!(get(&mut ioapic, ID), 0x0f00_0000);
    }

    #[test]
    fn an_edge_interrupts_once_per_rise() {
        let (mut ioapic, wire) = (IoApic::new(), Wire::new());
        set(&mut ioapic, &wire, 4, 0x0300_0000_0000_0041);
        ioapic.set_line(4, true, &wire);
        ioapic.set_line(4, true, &wire);
        let message = Message {
            destination: Destination::Physical(3),
            delivery: Delivery::Fixed(0x41),
            level: false,
            lowest: false,
        };
        assert_eq!(wire.sent.take(), [message]);
        ioapic.set_line(4, false, &wire);
        assert!(wire.vectors().is_empty());
        ioapic.set_line(4, true, &wire);
        assert_eq!(wire.vectors(), [0x41]);
    }

    #[test]
    fn an_edge_while_masked_is_lost() {
        let (mut ioapic, wire) = (IoApic::new(), Wire::new());
        set(&mut ioapic, &wire, 4, 0x1_0041);
        ioapic.set_line(4, true, &wire);
        set(&mut ioapic, &wire, 4, 0x0041);
        assert!(wire.vectors().is_empty());
    }

    #[test]
    fn a_level_interrupts_again_at_its_end_while_it_is_asserted() {
        let (mut ioapic, wire) = (IoApic::new(), Wire::new());
        set(&mut ioapic, &wire, 9, 0x8041);
        ioapic.set_line(9, true, &wire);
        assert_eq!(get(&mut ioapic, TABLE + 18), 0xc041, "remote IRR");
        ioapic.set_line(9, false, &wire);
        ioapic.set_line(9, true, &wire);
        assert_eq!(wire.vectors(), [0x41], "once until its end");
        ioapic.end_of_interrupt(0x42, &wire);
        assert!(wire.vectors().is_empty());
        ioapic.end_of_interrupt(0x41, &wire);
        assert_eq!(wire.vectors(), [0x41]);
        ioapic.set_line(9, false, &wire);
        ioapic.write(EOIR, 0x41, &wire);
        assert_eq!((wire.vectors(), get(&mut ioapic, TABLE + 18)), (vec![], 0x8041));
    }

    #[test]
    fn a_level_that_waits_behind_the_mask_interrupts_when_it_is_lifted() {
        let (mut ioapic, wire) = (IoApic::new(), Wire::new());
        set(&mut ioapic, &wire, 9, 0x1_8041);
        ioapic.set_line(9, true, &wire);
        assert!(wire.vectors().is_empty());
        set(&mut ioapic, &wire, 9, 0x8041);
        assert_eq!(wire.vectors(), [0x41]);
    }

    #[test]
    fn a_level_that_nobody_accepts_is_not_being_served() {
        let (mut ioapic, wire) = (IoApic::new(), Wire::new());
        wire.accepts.set(false);
        set(&mut ioapic, &wire, 9, 0x8041);
        ioapic.set_line(9, true, &wire);
        assert_eq!(get(&mut ioapic, TABLE + 18), 0x8041);
        wire.accepts.set(true);
        set(&mut ioapic, &wire, 9, 0x8041);
        assert_eq!(get(&mut ioapic, TABLE + 18), 0xc041);
    }

    #[test]
    fn switching_to_edge_and_back_clears_a_stuck_remote_irr() {
        let (mut ioapic, wire) = (IoApic::new(), Wire::new());
        set(&mut ioapic, &wire, 9, 0x8041);
        ioapic.set_line(9, true, &wire);
        ioapic.set_line(9, false, &wire);
        set(&mut ioapic, &wire, 9, 0x1_0041);
        set(&mut ioapic, &wire, 9, 0x1_8041);
        assert_eq!(get(&mut ioapic, TABLE + 18), 0x1_8041);
    }

    #[test]
    fn remote_irr_and_delivery_status_cannot_be_written() {
        let (mut ioapic, wire) = (IoApic::new(), Wire::new());
        set(&mut ioapic, &wire, 1, u64::MAX);
        assert_eq!(get(&mut ioapic, TABLE + 2), 0x1_afff);
        assert_eq!(get(&mut ioapic, TABLE + 3), 0xff00_0000);
    }

    proptest! {
        #[test]
        fn no_sequence_of_accesses_panics_or_marks_an_edge_as_served(
            steps in prop::collection::vec((any::<u8>(), 0u64..0x50, any::<u64>(), any::<u8>()), 0..300),
        ) {
            let (mut ioapic, wire) = (IoApic::new(), Wire::new());
            for (kind, offset, value, pin) in steps {
                wire.accepts.set(value & 1 != 0);
                match kind % 5 {
                    0 => ioapic.set_line(usize::from(pin) % 26, value & 2 != 0, &wire),
                    1 => ioapic.end_of_interrupt(value as u8, &wire),
                    2 => ioapic.write(IOREGSEL, u64::from(pin % 0x44), &wire),
                    3 => ioapic.write(IOWIN, value, &wire),
                    _ => { ioapic.write(offset, value, &wire); ioapic.read(offset, kind % 9); }
                }
                prop_assert!(ioapic.entries.iter().all(|entry| entry & REMOTE_IRR == 0 || entry & LEVEL != 0));
            }
        }
    }
}

//! Interrupt messages: what IO-APIC, devices and local APICs send to local APICs.
//!
//! The fields are those of the interrupt command register (SDM Vol. 3, "Interrupt Command Register"), which IO-APIC
//! redirection entries and message-signalled interrupts share.

/// A message on its way to one or several local APICs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// Whom it is for.
    pub destination: Destination,
    /// What it does there.
    pub delivery: Delivery,
    /// True for a level-triggered interrupt, whose end is told to the IO-APIC.
    pub level: bool,
    /// True if only one of several addressed processors shall take it: lowest-priority delivery.
    pub lowest: bool,
}

/// Whom a message is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// The local APIC of this id.
    Physical(u32),
    /// The local APICs whose logical id matches this message destination address.
    Logical(u32),
    /// Every local APIC.
    Everyone,
    /// Every local APIC but that of the vCPU of this index.
    Others(usize),
    /// The local APIC of the vCPU of this index.
    Only(usize),
}

impl Destination {
    /// A destination of 8 bits, as IO-APIC, MSI and xAPIC send it; 0xff is everyone in both modes.
    pub fn narrow(id: u8, logical: bool) -> Self {
        match (id, logical) {
            (0xff, _) => Self::Everyone,
            (id, true) => Self::Logical(u32::from(id)),
            (id, false) => Self::Physical(u32::from(id)),
        }
    }

    /// A destination of 32 bits, as x2APIC sends it; all ones is everyone in both modes.
    pub fn wide(id: u32, logical: bool) -> Self {
        match (id, logical) {
            (u32::MAX, _) => Self::Everyone,
            (id, true) => Self::Logical(id),
            (id, false) => Self::Physical(id),
        }
    }
}

/// What a message does where it arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// Requests this vector.
    Fixed(u8),
    /// A non-maskable interrupt.
    Nmi,
    /// Resets the processor, which then waits for a start-up IPI.
    Init,
    /// Starts a waiting processor in real mode at this page.
    Startup(u8),
}

impl Delivery {
    /// Decodes the delivery mode (bits 10:8 of a command, an entry or MSI data) with `vector`; the second value tells
    /// lowest-priority delivery.
    ///
    /// `None` for what has no taker: SMI (there is no system-management mode), ExtINT (the PIC is wired to LINT0, and
    /// only that pin fetches its vector) and the reserved modes.
    pub fn decode(mode: u32, vector: u8) -> Option<(Self, bool)> {
        match mode & 7 {
            0b000 => Some((Self::Fixed(vector), false)),
            0b001 => Some((Self::Fixed(vector), true)),
            0b100 => Some((Self::Nmi, false)),
            0b101 => Some((Self::Init, false)),
            0b110 => Some((Self::Startup(vector), false)),
            _ => None,
        }
    }
}

/// The message that a write of `data` to `address` is (SDM Vol. 3, "Message Signalled Interrupts"), if it is one.
pub fn decode_msi(address: u64, data: u32) -> Option<Message> {
    if address & !0xf_ffff != 0xfee0_0000 {
        return None;
    }
    let id = (address >> 12) as u8;
    let redirection_hint = address & 1 << 3 != 0;
    let logical = address & 1 << 2 != 0;
    let (delivery, lowest) = Delivery::decode(data >> 8, data as u8)?;
    // A level-triggered message that withdraws (bit 14 clear) requests nothing.
    let level = data & 1 << 15 != 0;
    if level && data & 1 << 14 == 0 {
        return None;
    }
    Some(Message {
        destination: Destination::narrow(id, logical),
        delivery,
        level,
        lowest: lowest || redirection_hint && matches!(delivery, Delivery::Fixed(_)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixed(destination: Destination, vector: u8) -> Message {
        Message {
            destination,
            delivery: Delivery::Fixed(vector),
            level: false,
            lowest: false,
        }
    }

    #[test]
    fn the_address_names_the_destination_in_bits_19_to_12() {
        assert_eq!(
            decode_msi(0xfee0_3000, 0x41),
            Some(fixed(Destination::Physical(3), 0x41))
        );
        assert_eq!(
            decode_msi(0xfee0_3004, 0x41),
            Some(fixed(Destination::Logical(3), 0x41))
        );
        assert_eq!(decode_msi(0xfeef_f000, 0x41), Some(fixed(Destination::Everyone, 0x41)));
    }

    #[test]
    fn the_redirection_hint_and_the_delivery_mode_ask_for_one_taker() {
        let lowest = Message {
            lowest: true,
            ..fixed(Destination::Logical(3), 0x41)
        };
        assert_eq!(decode_msi(0xfee0_300c, 0x41), Some(lowest));
        assert_eq!(decode_msi(0xfee0_3004, 0x141), Some(lowest));
    }

    #[test]
    fn a_level_message_counts_when_it_asserts() {
        let level = Message {
            level: true,
            ..fixed(Destination::Physical(0), 0x30)
        };
        assert_eq!(decode_msi(0xfee0_0000, 0xc030), Some(level));
        assert_eq!(decode_msi(0xfee0_0000, 0x8030), None);
    }

    #[test]
    fn a_write_elsewhere_and_a_mode_without_a_taker_are_no_messages() {
        assert_eq!(decode_msi(0xfed0_0000, 0x41), None);
        assert_eq!(decode_msi(0x1_fee0_0000, 0x41), None);
        for mode in [2, 3, 7] {
            assert_eq!(decode_msi(0xfee0_0000, mode << 8 | 0x41), None, "delivery mode {mode}");
        }
    }
}

//! MSI with 64-bit addresses and per-vector masking, all in configuration space.
//!
//! # Invariants
//! As for MSI-X: a vector that may not be sent is pending instead and sent as soon as it may; disabled, it is neither.

use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use super::{Message, Messages};
use crate::sync::lock;

/// Bytes of the capability behind its two-byte head: control, address, data, two reserved bytes, mask and pending bits.
pub const BODY_LENGTH: usize = 22;

/// Where in the body the pending bits are.
pub(super) const PENDING: usize = 18;

/// Bits of Message Control.
mod control {
    pub const ENABLE: u16 = 1 << 0;
    pub const MULTIPLE_ENABLE: u16 = 7 << 4;
    pub const MULTIPLE_ENABLE_SHIFT: u32 = 4;
    pub const MULTIPLE_CAPABLE_SHIFT: u32 = 1;
    pub const WIDE: u16 = 1 << 7;
    pub const MASKABLE: u16 = 1 << 8;
}

/// Offsets in the body.
mod body {
    pub const CONTROL: usize = 0;
    pub const ADDRESS: usize = 2;
    pub const DATA: usize = 10;
    pub const MASK: usize = 14;
    pub const PENDING: usize = super::PENDING;
}

/// Which vectors of an [`Msi`] wait to be sent; all else lies in configuration space.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsiState {
    /// One bit for each vector.
    pub pending: u32,
}

/// The MSI registers of one function.
pub struct Msi {
    inner: Mutex<Inner>,
    messages: Arc<dyn Messages>,
    /// The binary logarithm of the number of vectors.
    log: u8,
}

#[derive(Default)]
struct Inner {
    control: u16,
    message: Option<Message>,
    mask: u32,
    pending: u32,
    master: bool,
}

impl Msi {
    /// Two to the power of `log` vectors (at most 32), disabled.
    #[must_use]
    pub fn new(log: u8, messages: Arc<dyn Messages>) -> Self {
        Self {
            inner: Mutex::default(),
            messages,
            log: log.min(5),
        }
    }

    /// The body of the capability after reset, and which of its bits can be changed.
    #[must_use]
    pub fn capability(&self) -> ([u8; BODY_LENGTH], [u8; BODY_LENGTH]) {
        let (mut bytes, mut writable) = ([0; BODY_LENGTH], [0; BODY_LENGTH]);
        let capable = u16::from(self.log) << control::MULTIPLE_CAPABLE_SHIFT;
        let word = control::WIDE | control::MASKABLE | capable;
        bytes[body::CONTROL..body::ADDRESS].copy_from_slice(&word.to_le_bytes());
        let word = control::ENABLE | control::MULTIPLE_ENABLE;
        writable[body::CONTROL..body::ADDRESS].copy_from_slice(&word.to_le_bytes());
        writable[body::ADDRESS..body::DATA].copy_from_slice(&(!3_u64).to_le_bytes());
        writable[body::DATA..body::DATA + 2].copy_from_slice(&u16::MAX.to_le_bytes());
        let vectors = u32::MAX >> (32 - (1_u32 << self.log));
        writable[body::MASK..body::PENDING].copy_from_slice(&vectors.to_le_bytes());
        (bytes, writable)
    }

    /// Takes the registers as they stand in `bytes`, the body of the capability, and whether the function is a bus master.
    pub fn update(&self, bytes: &[u8; BODY_LENGTH], master: bool) {
        let mut inner = lock(&self.inner);
        let part = |at: usize, length: usize| {
            let mut value = [0; 8];
            value[..length].copy_from_slice(&bytes[at..at + length]);
            u64::from_le_bytes(value)
        };
        inner.control = part(body::CONTROL, 2) as u16;
        inner.message = Some(Message {
            address: part(body::ADDRESS, 8),
            data: part(body::DATA, 2) as u32,
        });
        inner.mask = part(body::MASK, 4) as u32;
        inner.master = master;
        if inner.control & control::ENABLE == 0 {
            inner.pending = 0;
        }
        for vector in 0..32 {
            if inner.pending & 1 << vector != 0 {
                self.attempt(&mut inner, vector);
            }
        }
    }

    /// Sends the message of `vector`, or makes it pending.
    pub fn signal(&self, vector: u8) {
        let mut inner = lock(&self.inner);
        if inner.control & control::ENABLE != 0 && u32::from(vector) < 1 << self.log {
            self.attempt(&mut inner, vector);
        }
    }

    /// The pending bits, as they are to stand in configuration space.
    #[must_use]
    pub fn state(&self) -> MsiState {
        MsiState {
            pending: lock(&self.inner).pending,
        }
    }

    pub(super) fn restore(&self, state: MsiState) {
        // The registers come afterwards, and with them the leave to send.
        *lock(&self.inner) = Inner {
            pending: state.pending,
            ..Inner::default()
        };
    }

    /// Sends `vector` if it may be sent, else leaves it pending.
    fn attempt(&self, inner: &mut Inner, vector: u8) {
        let bit = 1 << vector;
        match inner.message {
            Some(message) if inner.master && inner.mask & bit == 0 => {
                inner.pending &= !bit;
                // The enabled vectors share the address, and differ in the low bits of the data. Whoever has been given fewer
                // than were asked for tells them apart no more.
                let enabled = (inner.control & control::MULTIPLE_ENABLE) >> control::MULTIPLE_ENABLE_SHIFT;
                let low = (1_u32 << enabled.min(self.log.into())) - 1;
                self.messages.send(Message {
                    data: message.data & !low | u32::from(vector) & low,
                    ..message
                });
            }
            _ => inner.pending |= bit,
        }
    }
}

#[cfg(test)]
mod tests;

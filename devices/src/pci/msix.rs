//! MSI-X: a table of messages, a mask for each, and the array of those that are pending.
//!
//! # Invariants
//! - A vector that may not be sent (masked by itself, by Function Mask, or because the function is no bus master) is pending
//!   instead, once, and is sent as soon as it may, with the address and data that stand in the table then.
//! - Disabled, a vector is neither sent nor pending.
//! - Where a vector's messages go is told only when it changes.

use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use super::{Message, Messages};
use crate::bytes;
use crate::sync::lock;

/// Bytes of a table entry.
pub const ENTRY_LENGTH: u64 = 16;
/// The largest number of vectors of a function.
pub const MAX_VECTORS: u16 = 2048;

/// Bits of Message Control.
pub mod control {
    /// MSI-X Enable.
    pub const ENABLE: u16 = 1 << 15;
    /// Function Mask.
    pub const FUNCTION_MASK: u16 = 1 << 14;
}

/// Vector Control: Mask Bit.
const MASK: u32 = 1 << 0;

/// Where table and pending-bit array lie, both in one BAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsixPlace {
    /// The BAR.
    pub bar: u8,
    /// The offset of the table in bytes, a multiple of 8.
    pub table: u32,
    /// The offset of the pending-bit array in bytes, a multiple of 8.
    pub pending: u32,
}

/// One vector, as saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VectorState {
    /// Message Address and Message Upper Address.
    pub address: u64,
    /// Message Data.
    pub data: u32,
    /// Whether the Mask Bit is set.
    pub masked: bool,
    /// Whether a message waits to be sent.
    pub pending: bool,
}

impl Default for VectorState {
    /// After reset: masked.
    fn default() -> Self {
        Self {
            address: 0,
            data: 0,
            masked: true,
            pending: false,
        }
    }
}

/// What an [`Msix`] remembers besides its control word, which lies in configuration space.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixState {
    /// The vectors, in order.
    pub vectors: Vec<VectorState>,
}

/// The MSI-X structures of one function.
pub struct Msix {
    inner: Mutex<Inner>,
    messages: Arc<dyn Messages>,
}

struct Inner {
    vectors: Vec<VectorState>,
    /// What was told of each vector's route.
    routes: Vec<Option<Message>>,
    enabled: bool,
    function_masked: bool,
    master: bool,
}

impl Msix {
    /// `vectors` vectors (1 to 2048; another number is brought there), disabled, all masked.
    #[must_use]
    pub fn new(vectors: u16, messages: Arc<dyn Messages>) -> Self {
        let count = usize::from(vectors.clamp(1, MAX_VECTORS));
        Self {
            inner: Mutex::new(Inner {
                vectors: vec![VectorState::default(); count],
                routes: vec![None; count],
                enabled: false,
                function_masked: false,
                master: false,
            }),
            messages,
        }
    }

    /// The number of vectors.
    #[must_use]
    pub fn vectors(&self) -> u16 {
        lock(&self.inner).vectors.len() as u16
    }

    /// Whether MSI-X is enabled.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        lock(&self.inner).enabled
    }

    /// Sends the message of `vector`, or makes it pending. A vector that is not there is nobody's.
    pub fn signal(&self, vector: u16) {
        let mut inner = lock(&self.inner);
        if !inner.enabled {
            return;
        }
        let may = inner.may(vector.into());
        let Some(entry) = inner.vectors.get_mut(usize::from(vector)) else {
            return;
        };
        if may {
            self.messages.send(entry.message());
        } else {
            entry.pending = true;
        }
    }

    /// Takes a new Message Control word, and whether the function is a bus master.
    pub fn set_control(&self, word: u16, master: bool) {
        let mut inner = lock(&self.inner);
        inner.enabled = word & control::ENABLE != 0;
        inner.function_masked = word & control::FUNCTION_MASK != 0;
        inner.master = master;
        if !inner.enabled {
            inner.vectors.iter_mut().for_each(|vector| vector.pending = false);
        }
        for vector in 0..inner.vectors.len() {
            self.settle(&mut inner, vector);
        }
    }

    /// Reads the table at `offset` from its start; ones beyond its end.
    #[must_use]
    pub fn read_table(&self, offset: u64, size: u8) -> u64 {
        let inner = lock(&self.inner);
        bytes::read(offset, size, |at| {
            let vector = usize::try_from(at / ENTRY_LENGTH).unwrap_or(usize::MAX);
            let entry = inner.vectors.get(vector).map(VectorState::entry);
            entry.map_or(0xff, |entry| entry[(at % ENTRY_LENGTH) as usize])
        })
    }

    /// Writes the table at `offset` from its start.
    pub fn write_table(&self, offset: u64, size: u8, value: u64) {
        let mut inner = lock(&self.inner);
        // Whole before anything comes of it: an address half written is nobody's.
        bytes::write(offset, size, value, |at, byte| {
            let vector = usize::try_from(at / ENTRY_LENGTH).unwrap_or(usize::MAX);
            if let Some(vector) = inner.vectors.get_mut(vector) {
                let mut entry = vector.entry();
                entry[(at % ENTRY_LENGTH) as usize] = byte;
                vector.set_entry(entry);
            }
        });
        let last = offset.saturating_add(u64::from(size.max(1)) - 1);
        for vector in offset / ENTRY_LENGTH..=last / ENTRY_LENGTH {
            if let Ok(vector) = usize::try_from(vector)
                && vector < inner.vectors.len()
            {
                self.settle(&mut inner, vector);
            }
        }
    }

    /// Reads the pending-bit array at `offset` from its start. It cannot be written.
    #[must_use]
    pub fn read_pending(&self, offset: u64, size: u8) -> u64 {
        let inner = lock(&self.inner);
        bytes::read(offset, size, |at| {
            let first = usize::try_from(at).unwrap_or(usize::MAX).saturating_mul(8);
            let bits = (0..8).filter(|bit| {
                let vector = inner.vectors.get(first.saturating_add(*bit));
                vector.is_some_and(|vector| vector.pending)
            });
            bits.fold(0, |byte, bit| byte | 1 << bit)
        })
    }

    /// Bytes of the table.
    #[must_use]
    pub fn table_length(&self) -> u64 {
        u64::from(self.vectors()) * ENTRY_LENGTH
    }

    /// Bytes of the pending-bit array: whole 8-byte words.
    #[must_use]
    pub fn pending_length(&self) -> u64 {
        u64::from(self.vectors()).div_ceil(64) * 8
    }

    /// What is remembered.
    #[must_use]
    pub fn state(&self) -> MsixState {
        MsixState {
            vectors: lock(&self.inner).vectors.clone(),
        }
    }

    /// Replaces what is remembered; false, and nothing has changed, if there is another number of vectors.
    /// [`set_control`](Self::set_control) is called afterwards.
    pub(super) fn restore(&self, state: &MsixState) -> bool {
        let mut inner = lock(&self.inner);
        let fits = inner.vectors.len() == state.vectors.len();
        if fits {
            // Nothing is sent before the control word is there too.
            inner.enabled = false;
            inner.vectors.clone_from(&state.vectors);
        }
        fits
    }

    /// Sends what is pending and may be sent, and tells the vector's route if it is another one now.
    fn settle(&self, inner: &mut Inner, vector: usize) {
        let may = inner.may(vector);
        let entry = &mut inner.vectors[vector];
        let route = may.then(|| entry.message());
        if may && entry.pending {
            entry.pending = false;
            self.messages.send(entry.message());
        }
        if inner.routes[vector] != route {
            inner.routes[vector] = route;
            self.messages.route(vector as u16, route);
        }
    }
}

impl Inner {
    /// Whether the vector's message may be sent now.
    fn may(&self, vector: usize) -> bool {
        let masked = self.vectors.get(vector).is_none_or(|vector| vector.masked);
        self.enabled && self.master && !self.function_masked && !masked
    }
}

impl VectorState {
    fn message(&self) -> Message {
        Message {
            address: self.address,
            data: self.data,
        }
    }

    /// As it stands in the table.
    fn entry(&self) -> [u8; ENTRY_LENGTH as usize] {
        let mut entry = [0; ENTRY_LENGTH as usize];
        entry[..8].copy_from_slice(&self.address.to_le_bytes());
        entry[8..12].copy_from_slice(&self.data.to_le_bytes());
        entry[12] = if self.masked { MASK as u8 } else { 0 };
        entry
    }

    fn set_entry(&mut self, entry: [u8; ENTRY_LENGTH as usize]) {
        let word = |at: usize| u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]]);
        // The two lowest bits of an address are zero.
        self.address = u64::from(word(0) & !3) | u64::from(word(4)) << 32;
        self.data = word(8);
        self.masked = word(12) & MASK != 0;
    }
}

#[cfg(test)]
mod tests;

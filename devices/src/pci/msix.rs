//! MSI-X: a table of messages, a mask for each, and the array of those that are pending.
//!
//! # Invariants
//! - A vector that may not be sent (masked by itself, by Function Mask, or because the function is no bus master) is pending
//!   instead, once, and is sent as soon as it may, with the address and data that stand in the table then.
//! - Disabled, a vector is neither sent nor pending.
//! - Where a vector's messages go is told only when it changes.
//! - A write that unmasks a vector can be kept open ([`Msix::begin_write`]) until whoever else has to know does. All else of it
//!   is in the table at once, and a vector that is written again meanwhile is not unmasked by what came before.

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
/// Where in an entry the byte of Vector Control is that has it.
const CONTROL: usize = 12;

/// Where table and pending-bit array lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsixPlace {
    /// The BAR of the table.
    pub bar: u8,
    /// The offset of the table in bytes, a multiple of 8.
    pub table: u32,
    /// The offset of the pending-bit array in bytes, a multiple of 8.
    pub pending: u32,
    /// The BAR of the pending-bit array, mostly the same.
    pub pending_bar: u8,
}

/// A vector that a write to the table masks or unmasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaskChange {
    /// It is masked already.
    Masked(u16),
    /// It is unmasked when [`Msix::finish_write`] is called.
    Unmasks(Unmasking),
}

/// A vector on its way to being unmasked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unmasking {
    /// Which.
    pub vector: u16,
    /// How often its Vector Control had been written.
    write: u32,
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
    /// How often each Vector Control was written.
    writes: Vec<u32>,
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
                writes: vec![0; count],
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
            self.messages.signal(vector, entry.message());
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
        if let Some(MaskChange::Unmasks(unmasking)) = self.begin_write(offset, size, value) {
            self.finish_write(unmasking);
        }
    }

    /// Writes the table at `offset` from its start, but leaves a vector masked that is to be unmasked by that. No write is wide
    /// enough to reach the Vector Control of two.
    pub fn begin_write(&self, offset: u64, size: u8, value: u64) -> Option<MaskChange> {
        let mut inner = lock(&self.inner);
        let mut change = None;
        // Whole before anything comes of it: an address half written is nobody's.
        bytes::write(offset, size, value, |at, byte| {
            let Ok(vector) = usize::try_from(at / ENTRY_LENGTH) else {
                return;
            };
            let place = (at % ENTRY_LENGTH) as usize;
            let Inner { vectors, writes, .. } = &mut *inner;
            let (Some(state), Some(writes)) = (vectors.get_mut(vector), writes.get_mut(vector)) else {
                return;
            };
            let before = state.masked;
            let mut entry = state.entry();
            entry[place] = byte;
            state.set_entry(entry);
            if place == CONTROL {
                *writes = writes.wrapping_add(1);
                if before && !state.masked {
                    state.masked = true;
                    change = Some(MaskChange::Unmasks(Unmasking {
                        vector: vector as u16,
                        write: *writes,
                    }));
                } else if !before && state.masked {
                    change = Some(MaskChange::Masked(vector as u16));
                }
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
        change
    }

    /// Unmasks a vector whose unmasking was begun, unless its Vector Control has been written again.
    pub fn finish_write(&self, unmasking: Unmasking) {
        let mut inner = lock(&self.inner);
        let vector = usize::from(unmasking.vector);
        if inner.writes.get(vector) == Some(&unmasking.write) {
            inner.vectors[vector].masked = false;
            self.settle(&mut inner, vector);
        }
    }

    /// Reads the pending-bit array at `offset` from its start. It cannot be written.
    #[must_use]
    pub fn read_pending(&self, offset: u64, size: u8) -> u64 {
        let inner = lock(&self.inner);
        bytes::read(offset, size, |at| {
            let first = usize::try_from(at).unwrap_or(usize::MAX).saturating_mul(8);
            let bits = (0..8).filter(|bit| {
                let vector = first.saturating_add(*bit);
                inner
                    .vectors
                    .get(vector)
                    .is_some_and(|state| self.is_pending(vector, state))
            });
            bits.fold(0, |byte, bit| byte | 1 << bit)
        })
    }

    /// The capability behind its two-byte head, for structures at `place`, and which of its bits can be written.
    pub(super) fn capability(&self, place: MsixPlace) -> (Vec<u8>, [u8; 2]) {
        let mut body = Vec::from((self.vectors() - 1).to_le_bytes());
        body.extend((place.table | u32::from(place.bar)).to_le_bytes());
        body.extend((place.pending | u32::from(place.pending_bar)).to_le_bytes());
        (body, (control::ENABLE | control::FUNCTION_MASK).to_le_bytes())
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
        let mut vectors = lock(&self.inner).vectors.clone();
        for (index, vector) in vectors.iter_mut().enumerate() {
            vector.pending = self.is_pending(index, vector);
        }
        MsixState { vectors }
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

    /// Whether a message waits to be sent.
    fn is_pending(&self, vector: usize, state: &VectorState) -> bool {
        state.pending || self.messages.is_pending(vector as u16)
    }

    /// Tells the vector's route if it is another one now, and then sends what is pending and may be sent.
    fn settle(&self, inner: &mut Inner, vector: usize) {
        let may = inner.may(vector);
        let entry = &mut inner.vectors[vector];
        let route = may.then(|| entry.message());
        if inner.routes[vector] != route {
            inner.routes[vector] = route;
            self.messages.route(vector as u16, route);
        }
        if let Some(message) = route
            && std::mem::take(&mut entry.pending)
        {
            self.messages.signal(vector as u16, message);
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

//! The replay cache: what an instruction has read so far, kept until it retires.
//!
//! # Purpose
//! An instruction that waits for a device is executed again from its first byte when the answer comes. Meanwhile other
//! CPUs, devices and the host go on: guest memory, page tables and clocks are no longer what they were. The second pass
//! must see what the first one saw, so everything that a pass reads and that is not a function of the CPU's own state
//! is recorded here: instruction bytes, page-table entries and the outcome of setting their accessed and dirty bits,
//! descriptors, data, atomic operations, device answers, clock and chance. It is a secret store for exactness; that it
//! also saves work is luck.
//!
//! # Invariants
//! * Entries are (question, value) in the order in which they were asked. A later pass asks the same in the same order;
//!   the k-th question gets the k-th value, so that two reads of one place may rightly differ.
//! * A question that differs from the recorded one is a [`ReplayError::Divergence`]; nothing is read anew and nothing
//!   is guessed.
//! * A hit needs nothing live: the page may be gone, the device too.
//! * Storage is reserved once. A pass that would need more ends in [`ReplayError::Overflow`] before its next side
//!   effect.
//!
//! # Life
//! `empty` -[`record`](ReplayCache::record)-> `recording` -[`rewind`](ReplayCache::rewind)-> `replaying` -(caught up)->
//! `recording` -[`clear`](ReplayCache::clear)-> `empty`. One transaction begins and ends it, in
//! [`Careful`](crate::careful::Careful).
//!
//! Reads that are not the instruction's own (a debugger's, a hypercall's arguments) go around the cache: they hold a
//! guard that suspends it (see [`Aside`](crate::careful::Aside)).

use serde::{Deserialize, Serialize};

use crate::request::Space;

/// What kind of thing is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Instruction bytes.
    Fetch,
    /// Instruction bytes that were not fetched but came with an exit; the address is linear.
    Supplied,
    /// A page-table entry.
    PageTable,
    /// Whether accessed and dirty bits were set in an entry that had not changed meanwhile.
    PageTableUpdate,
    /// How many elements of a repeated string instruction were moved at once.
    Batch,
    /// Data in guest-physical memory, RAM or device: which of them it is may change between two passes.
    Data,
    /// What an atomic operation found.
    Atomic,
    /// A register of a port, of the processor's platform, of a hypercall.
    Device,
    /// The time-stamp counter.
    Clock,
    /// Random bits.
    Chance,
}

/// What a pass asks: kind, address space and address, width.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Kind.
    pub kind: Kind,
    /// Address space; [`Space::Memory`] but for device accesses.
    pub space: Space,
    /// Guest-physical address, port, or register number.
    pub address: u64,
    /// Width in bytes, 1 to 8; 8 for a count.
    pub width: u8,
}

/// A question and what was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What was asked.
    pub question: Question,
    /// The answer, in the low `width` bytes.
    pub value: u64,
    /// There was no such register, or no hypercall can be made: the instruction faults.
    pub refused: bool,
}

impl Entry {
    /// What storage holds that is not in use.
    const UNUSED: Entry = Entry {
        question: Question {
            kind: Kind::Data,
            space: Space::Memory,
            address: 0,
            width: 1,
        },
        value: 0,
        refused: false,
    };
}

/// A pass cannot go on. The guest is not to blame, and has lost nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// A later pass asked something else than the first.
    #[error("entry {index} of the instruction's record is {recorded:?}, but this pass asks {asked:?}")]
    Divergence {
        /// Number of the entry, from 0.
        index: usize,
        /// What the first pass asked.
        recorded: Question,
        /// What this pass asks.
        asked: Question,
    },
    /// Somebody who goes around the record asked a device, which only the instruction itself may.
    #[error("a device was asked around the instruction's record")]
    Aside,
    /// The instruction reads more than any instruction can.
    #[error("the instruction reads more than {capacity} things")]
    Overflow {
        /// How many entries there is room for.
        capacity: usize,
    },
}

/// Entries that one instruction can need; see [`capacity`].
pub const CAPACITY: usize = capacity();

/// Derives the worst case from the instruction set.
const fn capacity() -> usize {
    // A walk of five levels, each entry read and each accessed or dirty bit set; an entry that changes under the walker
    // makes it begin again, which hardly happens twice.
    let walk = 5 * 2;
    let repeated_walks = 4 * walk;
    // 15 bytes from two pages, in parts of 8.
    let fetch = 2 * walk + 4;
    // The largest area that one instruction reads is that of XRSTOR, header and all components, over two pages.
    let xsave = 2 * walk + 2 * (2696 / 8 + 1) + 16;
    // 16 elements of 8 bytes, each over two pages, for a gather.
    let gather = 16 * (2 * walk + 4);
    let data = if gather > xsave { gather } else { xsave };
    // Far transfers and event delivery: gate, code and stack descriptors with their accessed bits, TSS fields, and up
    // to eleven pushes, all of which may cross pages; once more for a contributory fault, and for the double fault.
    let delivery = 3 * (16 * (2 * walk + 2));
    fetch + data + delivery + repeated_walks
}

/// The record of one instruction.
#[derive(Debug)]
pub struct ReplayCache {
    /// Room for as many as there can be, of which the first `length` are in use.
    entries: Box<[Entry]>,
    length: usize,
    /// The entry that answers the next question, if there is one.
    next: usize,
    /// Guards that suspend the cache at the moment.
    suspended: u32,
    /// Answers taken from the record, ever.
    replayed: u64,
}

impl Default for ReplayCache {
    fn default() -> ReplayCache {
        ReplayCache {
            entries: vec![Entry::UNUSED; CAPACITY].into_boxed_slice(),
            length: 0,
            next: 0,
            suspended: 0,
            replayed: 0,
        }
    }
}

impl ReplayCache {
    /// The recorded answer to `question`, if this pass has not caught up with the record yet.
    ///
    /// # Errors
    /// [`ReplayError::Divergence`] if the first pass asked something else here.
    #[inline]
    pub fn recall(&mut self, question: Question) -> Result<Option<Entry>, ReplayError> {
        if self.suspended != 0 {
            return Ok(None);
        }
        let Some(entry) = self.entries[..self.length].get(self.next) else {
            return Ok(None);
        };
        if entry.question != question {
            return Err(ReplayError::Divergence {
                index: self.next,
                recorded: entry.question,
                asked: question,
            });
        }
        self.next += 1;
        self.replayed += 1;
        Ok(Some(*entry))
    }

    /// The entry that answers the next question, if this pass has not caught up with the record yet.
    pub fn peek(&self) -> Option<&Entry> {
        self.entries().get(self.next).filter(|_| self.suspended == 0)
    }

    /// Makes sure that `entries` more can be recorded, before the side effect that they would describe.
    ///
    /// # Errors
    /// [`ReplayError::Overflow`] if there is no room.
    #[inline]
    pub fn reserve(&self, entries: usize) -> Result<(), ReplayError> {
        if self.length + entries <= self.entries.len() || self.suspended != 0 {
            Ok(())
        } else {
            Err(ReplayError::Overflow { capacity: CAPACITY })
        }
    }

    /// As [`reserve`](Self::reserve), for one answer that is yet to come; it must be the instruction's own.
    ///
    /// # Errors
    /// [`ReplayError::Aside`] if the cache is suspended, [`ReplayError::Overflow`] if there is no room.
    pub fn reserve_answer(&self) -> Result<(), ReplayError> {
        if self.is_suspended() {
            return Err(ReplayError::Aside);
        }
        self.reserve(1)
    }

    /// Records an answer that was just obtained; this pass has seen it.
    ///
    /// # Errors
    /// [`ReplayError::Overflow`] if there is no room.
    #[inline]
    pub fn record(&mut self, question: Question, value: u64, refused: bool) -> Result<(), ReplayError> {
        self.answer(question, value, refused)?;
        if self.suspended == 0 {
            self.next = self.length;
        }
        Ok(())
    }

    /// Records an answer that arrived between passes; the next pass will ask for it.
    ///
    /// # Errors
    /// [`ReplayError::Overflow`] if there is no room.
    #[inline]
    pub fn answer(&mut self, question: Question, value: u64, refused: bool) -> Result<(), ReplayError> {
        if self.suspended != 0 {
            return Ok(());
        }
        let Some(place) = self.entries.get_mut(self.length) else {
            return Err(ReplayError::Overflow { capacity: CAPACITY });
        };
        *place = Entry {
            question,
            value,
            refused,
        };
        self.length += 1;
        Ok(())
    }

    /// Recalls the answer to `question`, or obtains it with `live` and records it.
    ///
    /// # Errors
    /// [`ReplayError`].
    #[inline]
    pub fn read(&mut self, question: Question, live: impl FnOnce() -> u64) -> Result<u64, ReplayError> {
        if let Some(entry) = self.recall(question)? {
            return Ok(entry.value);
        }
        self.reserve(1)?;
        let value = live();
        self.record(question, value, false)?;
        Ok(value)
    }

    /// How many questions this pass has asked.
    pub(crate) fn position(&self) -> usize {
        self.next
    }

    /// Takes the next `entries` answers at once, in a pass that need not look at them; false if they are not there.
    pub(crate) fn skip(&mut self, entries: usize) -> bool {
        let skips = self.suspended == 0 && self.length - self.next >= entries;
        if skips {
            self.next += entries;
            self.replayed += entries as u64;
        }
        skips
    }

    /// Begins another pass over the same instruction.
    pub fn rewind(&mut self) {
        self.next = 0;
    }

    /// Ends the instruction: it retired, faulted, or was cancelled. Nothing survives.
    pub fn clear(&mut self) {
        self.length = 0;
        self.next = 0;
    }

    /// Takes over what was recorded elsewhere; the next pass begins with it. What exceeds the capacity is left out.
    pub(crate) fn restore(&mut self, entries: &[Entry]) {
        self.clear();
        for (place, entry) in self.entries.iter_mut().zip(entries) {
            *place = *entry;
        }
        self.length = entries.len().min(CAPACITY);
    }

    /// Everything recorded, in order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries[..self.length]
    }

    /// How many answers were taken from the record, ever.
    pub fn replayed(&self) -> u64 {
        self.replayed
    }

    /// Whether somebody goes around the cache at the moment.
    pub fn is_suspended(&self) -> bool {
        self.suspended != 0
    }

    pub(crate) fn suspend(&mut self) {
        self.suspended += 1;
    }

    pub(crate) fn resume(&mut self) {
        self.suspended -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(address: u64) -> Question {
        Question {
            kind: Kind::Data,
            space: Space::Memory,
            address,
            width: 4,
        }
    }

    #[test]
    fn the_kth_read_gets_the_kth_value_even_at_one_address() {
        let mut cache = ReplayCache::default();
        for value in [1, 2] {
            assert_eq!(cache.read(data(8), || value), Ok(value));
        }
        cache.rewind();
        assert_eq!(cache.read(data(8), || panic!("live")), Ok(1));
        assert_eq!(cache.read(data(8), || panic!("live")), Ok(2));
        assert_eq!(cache.read(data(8), || 3), Ok(3));
    }

    #[test]
    fn a_different_question_is_a_divergence_that_names_both() {
        let mut cache = ReplayCache::default();
        cache.record(data(8), 1, false).unwrap();
        cache.rewind();
        let other = Question { width: 2, ..data(8) };
        assert_eq!(
            cache.recall(other),
            Err(ReplayError::Divergence {
                index: 0,
                recorded: data(8),
                asked: other
            })
        );
    }

    #[test]
    fn an_overflow_is_reported_before_the_side_effect() {
        let mut cache = ReplayCache::default();
        for i in 0..CAPACITY {
            cache.record(data(i as u64), 0, false).unwrap();
        }
        let mut touched = false;
        let full = cache.read(data(0), || {
            touched = true;
            0
        });
        assert_eq!(
            (full, touched),
            (Err(ReplayError::Overflow { capacity: CAPACITY }), false)
        );
    }

    #[test]
    fn recording_never_allocates() {
        let mut cache = ReplayCache::default();
        let storage = cache.entries.as_ptr();
        for i in 0..CAPACITY {
            cache.record(data(i as u64), 0, false).unwrap();
        }
        assert_eq!(cache.entries.as_ptr(), storage);
    }

    #[test]
    fn a_suspended_cache_neither_answers_nor_records() {
        let mut cache = ReplayCache::default();
        cache.record(data(8), 1, false).unwrap();
        cache.rewind();
        cache.suspend();
        assert_eq!(cache.read(data(8), || 7), Ok(7));
        cache.resume();
        assert_eq!(cache.entries().len(), 1);
        assert_eq!(cache.read(data(8), || 9), Ok(1));
    }
}

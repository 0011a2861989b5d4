//! The second level of the TLB: more pages than the first one holds, asked where that one misses.
//!
//! # Invariants
//! * An entry holds for one epoch, forgetting everything is beginning another one; and for one address space (see `spaces`).
//! * What the first level may have, this one may have: entries come and go under the same rules.

use crate::ram::PAGE_SIZE;

/// Entries for each direction; a Debian boot misses 0.1 million times with as many.
const SIZE: usize = 4096;

#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    /// Address of the page, with the context in its low bits.
    key: u64,
    /// The epoch that it holds for; 0 is none.
    epoch: u64,
    space: u64,
    /// Address of the host's page, exposed.
    host: usize,
}

/// Translations of data accesses in one direction.
#[derive(Debug)]
pub(super) struct Second {
    entries: Box<[Entry; SIZE]>,
    epoch: u64,
}

impl Second {
    pub(super) fn new() -> Second {
        Second {
            entries: Box::new([Entry::default(); SIZE]),
            epoch: 1,
        }
    }

    fn slot(linear: u64) -> usize {
        (linear / PAGE_SIZE) as usize % SIZE
    }

    fn key(context: u8, linear: u64) -> u64 {
        linear & !(PAGE_SIZE - 1) | u64::from(context)
    }

    pub(super) fn find(&self, context: u8, linear: u64, space: u64) -> Option<*mut u8> {
        let entry = &self.entries[Second::slot(linear)];
        (entry.key == Second::key(context, linear) && entry.epoch == self.epoch && entry.space == space)
            .then(|| core::ptr::with_exposed_provenance_mut(entry.host))
    }

    pub(super) fn insert(&mut self, context: u8, linear: u64, space: u64, host: *mut u8) {
        self.entries[Second::slot(linear)] = Entry {
            key: Second::key(context, linear),
            epoch: self.epoch,
            space,
            host: host.expose_provenance(),
        };
    }

    /// Forgets one page, in all contexts.
    pub(super) fn forget(&mut self, linear: u64) {
        self.entries[Second::slot(linear)].epoch = 0;
    }

    pub(super) fn clear(&mut self) {
        self.epoch += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_for_one_context_and_space_until_it_is_forgotten() {
        let mut second = Second::new();
        let host: *mut u8 = core::ptr::with_exposed_provenance_mut(0x7000);
        assert!(second.find(0, 0, 0).is_none());
        second.insert(1, 0x5123, 9, host);
        assert_eq!(second.find(1, 0x5fff, 9), Some(host));
        assert!(second.find(2, 0x5fff, 9).is_none() && second.find(1, 0x6000, 9).is_none());
        assert!(second.find(1, 0x5fff, 8).is_none());
        second.forget(0x5000);
        assert!(second.find(1, 0x5123, 9).is_none());
        second.insert(1, 0x5123, 9, host);
        second.clear();
        assert!(second.find(1, 0x5123, 9).is_none());
    }
}

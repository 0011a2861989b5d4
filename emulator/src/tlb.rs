//! The software TLB: linear pages whose bytes may be read or written without asking anybody.
//!
//! # Invariants
//! * An entry for reading is there only for RAM that the context's privilege may read; one for writing only if it may
//!   write, the dirty bit is set, and the page has been admitted for writing by [`CodePages`](crate::code_pages).
//! * Devices, pages that hold code (for writing), and accesses that cross a page never hit.
//!
//! Data accesses have three contexts (user, supervisor, supervisor under SMAP), so a change of privilege flushes
//! nothing.
#![allow(unsafe_code, reason = "entries are pointers to guest pages")]

use std::sync::Arc;

use crate::ram::{HostPage, PAGE_SIZE, Ram, Slot, Span};
use crate::word::Word;

/// Entries for each context and direction.
const SIZE: usize = 512;
/// Entries for instruction fetches, user and supervisor.
const FETCH_SIZE: usize = 256;
const CONTEXTS: usize = 4;
/// No page address has its low bits set.
const INVALID: u64 = 1;
const PAGE: u64 = !(PAGE_SIZE - 1);

#[derive(Debug, Clone, Copy)]
struct Entry {
    tag: u64,
    pointer: *mut u8,
}

const EMPTY: Entry = Entry {
    tag: INVALID,
    pointer: core::ptr::null_mut(),
};

type Entries = Box<[Entry; SIZE]>;

/// A page that instructions may be fetched from.
#[derive(Debug, Clone, Copy)]
pub struct FetchPage {
    tag: u64,
    /// Guest-physical address of the page.
    pub gpa: u64,
    /// The page's number in [`CodePages`](crate::code_pages::CodePages).
    pub number: usize,
}

/// Linear addresses whose translations were made from large pages; forgetting one address there forgets all.
#[derive(Debug, Clone, Copy, Default)]
struct LargeRange {
    start: u64,
    end: u64,
}

/// Cached translations of one CPU.
#[derive(Debug)]
pub struct Tlb {
    read: [Entries; CONTEXTS],
    write: [Entries; CONTEXTS],
    fetch: [Box<[FetchPage; FETCH_SIZE]>; 2],
    /// For the lower and the upper half of the address space.
    large: [LargeRange; 2],
    /// Keeps the pages alive that entries point to.
    ram: Arc<Ram>,
}

// SAFETY: the pointers lead into `ram`, which is kept alive and may be accessed from any thread.
unsafe impl Send for Tlb {}

impl Tlb {
    pub(crate) fn new(ram: Arc<Ram>) -> Tlb {
        let entries = || core::array::from_fn(|_| Box::new([EMPTY; SIZE]));
        let none = FetchPage {
            tag: INVALID,
            gpa: 0,
            number: 0,
        };
        Tlb {
            read: entries(),
            write: entries(),
            fetch: core::array::from_fn(|_| Box::new([none; FETCH_SIZE])),
            large: [LargeRange::default(); 2],
            ram,
        }
    }

    pub(crate) fn ram(&self) -> &Arc<Ram> {
        &self.ram
    }

    /// The page of an operand of `size` bytes, 1 to 4096, if it does not cross into another.
    #[inline(always)]
    fn hit(entries: &[Entry; SIZE], linear: u64, size: u64) -> Option<HostPage<'_>> {
        let entry = &entries[(linear / PAGE_SIZE) as usize % SIZE];
        // The last byte's page is compared with the first byte's entry: what crosses a page misses.
        if entry.tag != linear.wrapping_add(size - 1) & PAGE {
            return None;
        }
        // SAFETY: the entry is valid, so its page is one of `ram`, which lives as long as the entries do.
        Some(unsafe { HostPage::from_pointer(entry.pointer) })
    }

    /// The operand at `linear`, if it may be read.
    #[inline(always)]
    pub(crate) fn readable<T: Word>(&self, context: u8, linear: u64) -> Option<Slot<'_, T>> {
        let page = Tlb::hit(&self.read[usize::from(context & 3)], linear, T::SIZE as u64)?;
        // SAFETY: the entry is valid, so it points at a page of `ram`; the first and the last byte are in the page
        // whose index and tag were compared, hence the operand lies within it.
        Some(unsafe { page.slot_unchecked(linear & !PAGE) })
    }

    /// The operand at `linear`, if it may be written.
    #[inline(always)]
    pub(crate) fn writable<T: Word>(&self, context: u8, linear: u64) -> Option<Slot<'_, T>> {
        let page = Tlb::hit(&self.write[usize::from(context & 3)], linear, T::SIZE as u64)?;
        // SAFETY: as in `readable`.
        Some(unsafe { page.slot_unchecked(linear & !PAGE) })
    }

    /// `length` bytes at `linear`, if they may be read and lie in one page.
    #[inline(always)]
    pub(crate) fn readable_span(&self, context: u8, linear: u64, length: usize) -> Option<Span<'_>> {
        Tlb::hit(&self.read[usize::from(context & 3)], linear, length.max(1) as u64)?.span(linear, length)
    }

    /// `length` bytes at `linear`, if they may be written and lie in one page.
    #[inline(always)]
    pub(crate) fn writable_span(&self, context: u8, linear: u64, length: usize) -> Option<Span<'_>> {
        Tlb::hit(&self.write[usize::from(context & 3)], linear, length.max(1) as u64)?.span(linear, length)
    }

    /// The page to fetch instructions from.
    #[inline]
    pub(crate) fn fetchable(&self, user: bool, linear: u64) -> Option<FetchPage> {
        let entry = &self.fetch[usize::from(user)][(linear / PAGE_SIZE) as usize % FETCH_SIZE];
        (entry.tag == linear & PAGE).then_some(*entry)
    }

    pub(crate) fn insert_read(&mut self, context: u8, linear: u64, page: HostPage<'_>, page_bits: u32) {
        let entry = Entry {
            tag: linear & PAGE,
            pointer: page.pointer(),
        };
        self.read[usize::from(context & 3)][(linear / PAGE_SIZE) as usize % SIZE] = entry;
        self.note_size(linear, page_bits);
    }

    pub(crate) fn insert_write(&mut self, context: u8, linear: u64, page: HostPage<'_>, page_bits: u32) {
        let entry = Entry {
            tag: linear & PAGE,
            pointer: page.pointer(),
        };
        self.write[usize::from(context & 3)][(linear / PAGE_SIZE) as usize % SIZE] = entry;
        self.note_size(linear, page_bits);
    }

    pub(crate) fn insert_fetch(
        &mut self,
        user: bool,
        linear: u64,
        gpa: u64,
        page: HostPage<'_>,
        page_bits: u32,
    ) -> FetchPage {
        let entry = FetchPage {
            tag: linear & PAGE,
            gpa: gpa & PAGE,
            number: page.number,
        };
        self.fetch[usize::from(user)][(linear / PAGE_SIZE) as usize % FETCH_SIZE] = entry;
        self.note_size(linear, page_bits);
        entry
    }

    fn note_size(&mut self, linear: u64, page_bits: u32) {
        if page_bits > 12 {
            let start = linear >> page_bits << page_bits;
            let end = start.saturating_add(1 << page_bits);
            let range = &mut self.large[(linear >> 63) as usize];
            *range = if range.end == 0 {
                LargeRange { start, end }
            } else {
                LargeRange {
                    start: range.start.min(start),
                    end: range.end.max(end),
                }
            };
        }
    }

    /// Forgets everything.
    pub(crate) fn flush(&mut self) {
        for entries in &mut self.read {
            entries.fill(EMPTY);
        }
        self.flush_writes();
        for entries in &mut self.fetch {
            for entry in entries.iter_mut() {
                entry.tag = INVALID;
            }
        }
        self.large = [LargeRange::default(); 2];
    }

    /// Forgets all translations for writing.
    pub(crate) fn flush_writes(&mut self) {
        for entries in &mut self.write {
            entries.fill(EMPTY);
        }
    }

    /// Forgets the translation of one linear address, whatever the size of its page; true if that meant to forget all.
    pub(crate) fn flush_page(&mut self, linear: u64) -> bool {
        let large = self.large[(linear >> 63) as usize];
        if (large.start..large.end).contains(&linear) {
            self.flush();
            return true;
        }
        let number = (linear / PAGE_SIZE) as usize;
        for entries in self.read.iter_mut().chain(&mut self.write) {
            entries[number % SIZE] = EMPTY;
        }
        for entries in &mut self.fetch {
            entries[number % FETCH_SIZE].tag = INVALID;
        }
        false
    }
}

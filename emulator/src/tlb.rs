//! The software TLB: linear pages whose bytes may be read or written without asking anybody.
//!
//! # Invariants
//! * An entry for reading is there only for RAM that the context's privilege may read; one for writing only if it may
//!   write, the dirty bit is set, and the page has been admitted for writing by [`CodePages`](crate::code_pages).
//! * Devices, pages that hold code (for writing), and accesses that cross a page never hit.
//!
//! Data accesses have three contexts (user, supervisor, supervisor under SMAP), so a change of privilege flushes
//! nothing. Both tiers use the same entries; they lie where translated code reaches them (see [`State`]).
#![allow(unsafe_code, reason = "entries are pointers to guest pages")]

mod second;

use std::sync::Arc;

use crate::ram::{HostPage, PAGE_SIZE, Ram, Slot, Span};
use crate::translate::state::{State, Translations};
use crate::word::Word;
use second::Second;

/// Entries for instruction fetches, user and supervisor.
const FETCH_SIZE: usize = 256;
/// No page address has its low bits set.
const INVALID: u64 = 1;
const PAGE: u64 = !(PAGE_SIZE - 1);

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
    /// Translations of data accesses.
    pub(crate) state: State,
    second_read: Second,
    second_write: Second,
    fetch: [Box<[FetchPage; FETCH_SIZE]>; 2],
    /// For the lower and the upper half of the address space.
    large: [LargeRange; 2],
    /// Keeps the pages alive that entries point to.
    ram: Arc<Ram>,
}

impl Tlb {
    pub(crate) fn new(ram: Arc<Ram>) -> Tlb {
        let none = FetchPage {
            tag: INVALID,
            gpa: 0,
            number: 0,
        };
        Tlb {
            state: State::new(),
            second_read: Second::new(),
            second_write: Second::new(),
            fetch: core::array::from_fn(|_| Box::new([none; FETCH_SIZE])),
            large: [LargeRange::default(); 2],
            ram,
        }
    }

    pub(crate) fn ram(&self) -> &Arc<Ram> {
        &self.ram
    }

    #[inline(always)]
    fn table(&self, context: u8, writes: bool) -> &Translations {
        let frame = self.state.frame();
        let tables = if writes { &frame.write } else { &frame.read };
        &tables[usize::from(context & 3)]
    }

    /// The operand at `linear`, if it may be read.
    #[inline(always)]
    pub(crate) fn readable<T: Word>(&self, context: u8, linear: u64) -> Option<Slot<'_, T>> {
        let pointer = self.table(context, false).find(linear, T::SIZE as u64)?;
        // SAFETY: the whole operand lies in the page of a valid entry, which is one of `ram`, which lives as long as `self`.
        Some(unsafe { Slot::from_pointer(pointer) })
    }

    /// The operand at `linear`, if it may be written.
    #[inline(always)]
    pub(crate) fn writable<T: Word>(&self, context: u8, linear: u64) -> Option<Slot<'_, T>> {
        let pointer = self.table(context, true).find(linear, T::SIZE as u64)?;
        // SAFETY: as in `readable`.
        Some(unsafe { Slot::from_pointer(pointer) })
    }

    /// `length` bytes at `linear`, if they may be read and lie in one page.
    #[inline(always)]
    pub(crate) fn readable_span(&self, context: u8, linear: u64, length: usize) -> Option<Span<'_>> {
        self.span(context, false, linear, length)
    }

    /// `length` bytes at `linear`, if they may be written and lie in one page.
    #[inline(always)]
    pub(crate) fn writable_span(&self, context: u8, linear: u64, length: usize) -> Option<Span<'_>> {
        self.span(context, true, linear, length)
    }

    #[inline(always)]
    fn span(&self, context: u8, writes: bool, linear: u64, length: usize) -> Option<Span<'_>> {
        if length > PAGE_SIZE as usize {
            return None;
        }
        let pointer = self.table(context, writes).find(linear, length.max(1) as u64)?;
        // SAFETY: as in `readable`.
        Some(unsafe { Span::from_pointer(pointer, length) })
    }

    /// The page to fetch instructions from.
    #[inline]
    pub(crate) fn fetchable(&self, user: bool, linear: u64) -> Option<FetchPage> {
        let entry = &self.fetch[usize::from(user)][(linear / PAGE_SIZE) as usize % FETCH_SIZE];
        (entry.tag == linear & PAGE).then_some(*entry)
    }

    pub(crate) fn insert_read(&mut self, context: u8, linear: u64, page: HostPage<'_>, page_bits: u32) {
        self.state.frame_mut().read[usize::from(context & 3)].insert(linear, page.pointer());
        self.second_read.insert(context, linear, page.pointer());
        self.note_size(linear, page_bits);
    }

    pub(crate) fn insert_write(&mut self, context: u8, linear: u64, page: HostPage<'_>, page_bits: u32) {
        self.state.frame_mut().write[usize::from(context & 3)].insert(linear, page.pointer());
        self.second_write.insert(context, linear, page.pointer());
        self.note_size(linear, page_bits);
    }

    /// Takes the page of `linear` over from the second level; true if it was there.
    pub(crate) fn promote(&mut self, context: u8, linear: u64, writes: bool) -> bool {
        let second = if writes { &self.second_write } else { &self.second_read };
        let Some(page) = second.find(context, linear) else {
            return false;
        };
        let frame = self.state.frame_mut();
        let tables = if writes { &mut frame.write } else { &mut frame.read };
        tables[usize::from(context & 3)].insert(linear, page);
        true
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
        for table in &mut self.state.frame_mut().read {
            table.clear();
        }
        self.second_read.clear();
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
        for table in &mut self.state.frame_mut().write {
            table.clear();
        }
        self.second_write.clear();
    }

    /// Forgets the translation of one linear address, whatever the size of its page; true if that meant to forget all.
    pub(crate) fn flush_page(&mut self, linear: u64) -> bool {
        let large = self.large[(linear >> 63) as usize];
        if (large.start..large.end).contains(&linear) {
            self.flush();
            return true;
        }
        let number = (linear / PAGE_SIZE) as usize;
        let frame = self.state.frame_mut();
        for table in frame.read.iter_mut().chain(&mut frame.write) {
            table.forget(linear);
        }
        self.second_read.forget(linear);
        self.second_write.forget(linear);
        for entries in &mut self.fetch {
            entries[number % FETCH_SIZE].tag = INVALID;
        }
        false
    }
}

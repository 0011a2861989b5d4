//! The software TLB: linear pages whose bytes may be read or written without asking anybody.
//!
//! # Invariants
//! * An entry for reading is there only for RAM that the context's privilege may read; one for writing only if it may
//!   write, the dirty bit is set, and the page has been admitted for writing by [`CodePages`](crate::code_pages).
//! * Devices, pages that hold code (for writing), and accesses that cross a page never hit.
//!
//! Data accesses have three contexts (user, supervisor, supervisor under SMAP), so a change of privilege flushes
//! nothing. A load of CR3 forgets the lower half of the address space only (see `spaces`), of which the second level keeps what belongs
//! to other PCIDs. Both tiers use the same entries; they lie where translated code reaches them (see [`State`]).
#![allow(unsafe_code, reason = "entries are pointers to guest pages")]

mod second;
mod spaces;

use std::sync::Arc;

use crate::paging::Translation;
use crate::ram::{HostPage, PAGE_SIZE, Ram, Slot, Span};
use crate::translate::state::{State, Translations};
use crate::word::Word;
use second::Second;
pub(crate) use spaces::{Spaces, half};

/// Entries for instruction fetches, user and supervisor.
const FETCH_SIZE: usize = 256;
/// No page address has its low bits set.
const INVALID: u64 = 1;
const PAGE: u64 = !(PAGE_SIZE - 1);

/// A page that instructions may be fetched from.
#[derive(Debug, Clone, Copy)]
pub struct FetchPage {
    tag: u64,
    /// The address space that it is in.
    space: u64,
    /// Guest-physical address of the page.
    pub gpa: u64,
    /// The page's number in [`CodePages`](crate::code_pages::CodePages).
    pub number: usize,
}

/// Where translations were made from large pages: forgetting one address there forgets many. Each 2 MiB have a bit, which others
/// share; what is larger is within the range.
#[derive(Debug)]
struct Large {
    bits: Box<[u64; LARGE_BITS / 64]>,
    start: u64,
    end: u64,
}

const LARGE_BITS: usize = 4096;

impl Large {
    fn new() -> Large {
        Large {
            bits: Box::new([0; LARGE_BITS / 64]),
            start: u64::MAX,
            end: 0,
        }
    }

    fn bit(linear: u64) -> (usize, u64) {
        let number = (linear >> 21) as usize % LARGE_BITS;
        (number / 64, 1 << (number % 64))
    }

    fn note(&mut self, linear: u64, page_bits: u32) {
        match page_bits {
            ..=20 => {}
            21 | 22 => {
                for linear in [linear, linear ^ 1 << 21].into_iter().take(page_bits as usize - 20) {
                    let (word, bit) = Large::bit(linear);
                    self.bits[word] |= bit;
                }
            }
            _ => {
                let start = linear >> page_bits << page_bits;
                self.start = self.start.min(start);
                self.end = self.end.max(start.saturating_add(1 << page_bits));
            }
        }
    }

    fn may_be(&self, linear: u64) -> bool {
        let (word, bit) = Large::bit(linear);
        self.bits[word] & bit != 0 || (self.start..self.end).contains(&linear)
    }

    fn clear(&mut self) {
        self.bits.fill(0);
        (self.start, self.end) = (u64::MAX, 0);
    }
}

/// Cached translations of one CPU.
#[derive(Debug)]
pub struct Tlb {
    /// Translations of data accesses.
    pub(crate) state: State,
    second_read: Second,
    second_write: Second,
    fetch: [Box<[FetchPage; FETCH_SIZE]>; 2],
    large: Large,
    spaces: Spaces,
    /// Keeps the pages alive that entries point to.
    ram: Arc<Ram>,
}

impl Tlb {
    pub(crate) fn new(ram: Arc<Ram>) -> Tlb {
        let none = FetchPage {
            tag: INVALID,
            space: 0,
            gpa: 0,
            number: 0,
        };
        Tlb {
            state: State::new(),
            second_read: Second::new(),
            second_write: Second::new(),
            fetch: core::array::from_fn(|_| Box::new([none; FETCH_SIZE])),
            large: Large::new(),
            spaces: Spaces::new(),
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
        (entry.tag == linear & PAGE && entry.space == self.spaces.number(linear)).then_some(*entry)
    }

    pub(crate) fn insert_read(&mut self, context: u8, linear: u64, page: HostPage<'_>, translation: Translation) {
        self.state.frame_mut().read[usize::from(context & 3)].insert(linear, page.pointer());
        let space = self.note(linear, translation);
        self.second_read.insert(context, linear, space, page.pointer());
    }

    pub(crate) fn insert_write(&mut self, context: u8, linear: u64, page: HostPage<'_>, translation: Translation) {
        self.state.frame_mut().write[usize::from(context & 3)].insert(linear, page.pointer());
        let space = self.note(linear, translation);
        self.second_write.insert(context, linear, space, page.pointer());
    }

    /// Notes that there is a translation of `linear`; the address space that it is in.
    fn note(&mut self, linear: u64, translation: Translation) -> u64 {
        self.large.note(linear, translation.page_bits);
        self.spaces.note(linear, translation.global);
        self.spaces.number(linear)
    }

    /// Takes the page of `linear` over from the second level; true if it was there.
    pub(crate) fn promote(&mut self, context: u8, linear: u64, writes: bool) -> bool {
        let second = if writes { &self.second_write } else { &self.second_read };
        let Some(page) = second.find(context, linear, self.spaces.number(linear)) else {
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
        page: HostPage<'_>,
        translation: Translation,
    ) -> FetchPage {
        let entry = FetchPage {
            tag: linear & PAGE,
            space: self.note(linear, translation),
            gpa: translation.gpa & PAGE,
            number: page.number,
        };
        self.fetch[usize::from(user)][(linear / PAGE_SIZE) as usize % FETCH_SIZE] = entry;
        entry
    }

    /// Which address space each half of linear addresses is, at the moment.
    pub(crate) fn spaces(&self) -> &Spaces {
        &self.spaces
    }

    /// Forgets everything.
    pub(crate) fn flush(&mut self) {
        for table in &mut self.state.frame_mut().read {
            table.clear();
        }
        self.second_read.clear();
        self.flush_writes();
        self.spaces.forget_all();
        self.large.clear();
    }

    /// Begins new address spaces, whatever their PCIDs, for what is kept by linear address elsewhere.
    pub(crate) fn renew_spaces(&mut self) {
        self.spaces.renew_all();
    }

    /// Begins a new address space in the half that `linear` is in.
    pub(crate) fn renew_space(&mut self, linear: u64) {
        self.spaces.renew(half(linear));
    }

    /// CR3 was loaded with this PCID, whose translations hold if `keep` is set.
    pub(crate) fn switch(&mut self, pcid: u16, keep: bool) {
        if self.spaces.switch(pcid, keep) {
            self.clear_half(0);
        } else {
            self.flush();
            self.spaces.switch(pcid, false);
        }
    }

    /// Forgets what is not global, of one PCID.
    pub(crate) fn flush_pcid(&mut self, pcid: u16) {
        if !self.spaces.forget_other(pcid) {
            self.switch(pcid, false);
        }
    }

    /// Forgets what is not global, of all PCIDs.
    pub(crate) fn flush_local(&mut self, pcid: u16) {
        self.spaces.forget_local();
        self.switch(pcid, false);
    }

    /// Takes one half of the address space out of the first level.
    fn clear_half(&mut self, half: usize) {
        let frame = self.state.frame_mut();
        for table in frame.read.iter_mut().chain(&mut frame.write) {
            table.clear_half(half);
        }
    }

    /// Forgets all translations for writing.
    pub(crate) fn flush_writes(&mut self) {
        for table in &mut self.state.frame_mut().write {
            table.clear();
        }
        self.second_write.clear();
    }

    /// Forgets the translation of one linear address, whatever the size of its page; true if that meant to forget all of that half of
    /// the address space.
    pub(crate) fn flush_page(&mut self, linear: u64) -> bool {
        if self.large.may_be(linear) {
            self.clear_half(half(linear));
            self.spaces.renew(half(linear));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_pages_are_known_by_each_of_their_addresses() {
        let mut large = Large::new();
        large.note(0x1_2345_6000, 12);
        assert!(!large.may_be(0x1_2345_6000));
        for (linear, page_bits) in [
            (0x4060_1000, 21),
            (0x40e0_1000, 22),
            (0x7f40_0000_0000, 30),
            (!0xfff, 30),
        ] {
            large.note(linear, page_bits);
            let start = linear >> page_bits << page_bits;
            for at in [
                start,
                linear,
                start + (1 << (page_bits - 1)),
                start + ((1 << page_bits) - 4096),
            ] {
                assert!(large.may_be(at), "{at:#x}");
            }
            large.clear();
            assert!(!large.may_be(linear));
        }
    }
}

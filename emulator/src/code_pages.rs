//! Which guest pages hold instructions that some CPU has decoded, so that whoever writes there is noticed.
//!
//! # Invariants
//! * While a page has code lines, no CPU holds a translation that lets it write there without asking; every such write
//!   ends in [`CodePages::written`].
//! * A page that has code lines has its bit in the map, and others may: who wrote over much of memory, or does not know where,
//!   looks at a bit for each page and at the pages that have code, and not at all pages.
//! * A decoded block is valid while its page's generation is the one that was read before the block's bytes.
//!
//! # Life of a page
//! `data` -[`CodePages::publish`]-> `code` -[`CodePages::written`] over a code line-> `data`, generation + 1.
//!
//! The orders of the atomic operations matter: a decoder sets lines, then reads the generation, then the bytes, then
//! looks whether its lines are still set; a writer writes the bytes, then clears lines, then raises the generation.
//! Whichever way they interleave, the decoder either reads the new bytes or is left with a stale generation.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use crate::attention::Attention;

/// Bytes per code line: a page has 64 of them, one bit each.
const LINE: u64 = 64;

/// What is known about each page of RAM.
#[derive(Debug)]
pub struct CodePages {
    pages: Box<[Page]>,
    /// A bit for each page.
    map: Box<[AtomicU64]>,
    /// The CPUs that share this memory. Held locked for moments only: who waits for a CPU must not hold it.
    cpus: RwLock<Vec<Arc<Attention>>>,
    /// Held locked while a page is made code, so that the second decoder of a page waits until the first one's eviction
    /// of writers is complete.
    eviction: Mutex<()>,
}

#[derive(Debug, Default)]
struct Page {
    lines: AtomicU64,
    generation: AtomicU32,
    /// Some CPU may hold a translation for writing.
    written: AtomicBool,
}

impl CodePages {
    pub(crate) fn new(pages: usize) -> CodePages {
        CodePages {
            pages: (0..pages).map(|_| Page::default()).collect(),
            map: (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            cpus: RwLock::default(),
            eviction: Mutex::default(),
        }
    }

    /// Adds a CPU that executes from this memory.
    pub(crate) fn register(&self, attention: Arc<Attention>) {
        self.cpus
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .push(attention);
    }

    /// Takes a CPU out again.
    pub(crate) fn unregister(&self, attention: &Arc<Attention>) {
        self.cpus
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|cpu| !Arc::ptr_eq(cpu, attention));
    }

    /// The page's generation; a block decoded under another one is stale.
    #[inline(always)]
    pub fn generation(&self, page: usize) -> u32 {
        self.pages[page].generation.load(Ordering::Acquire)
    }

    /// The page holds decoded instructions.
    #[inline]
    pub fn has_code(&self, page: usize) -> bool {
        self.pages[page].lines.load(Ordering::SeqCst) != 0
    }

    /// Declares `lines` of the page as code. Returns once no other CPU can write there without asking; `own_writes` is
    /// called to drop the caller's own translations for writing, if there may be any.
    pub(crate) fn publish(&self, page: usize, lines: u64, me: &Attention, own_writes: impl FnOnce()) {
        let (word, bit) = (&self.map[page / 64], 1 << (page % 64));
        let page = &self.pages[page];
        page.lines.fetch_or(lines, Ordering::SeqCst);
        // After the lines: whoever has cleared the bit before looks at them afterwards.
        if word.load(Ordering::SeqCst) & bit == 0 {
            word.fetch_or(bit, Ordering::SeqCst);
        }
        if !page.written.load(Ordering::SeqCst) {
            return;
        }
        own_writes();
        // Not running while waiting, so that two CPUs evicting each other's translations do not wait for each other.
        me.set_running(false);
        {
            let _eviction = self.eviction.lock().unwrap_or_else(PoisonError::into_inner);
            if page.written.load(Ordering::SeqCst) {
                let mut others = self.cpus.read().unwrap_or_else(PoisonError::into_inner).clone();
                others.retain(|cpu| !core::ptr::eq(&raw const **cpu, &raw const *me));
                for cpu in &others {
                    cpu.request_drop();
                }
                for cpu in &others {
                    let mut spins = 0;
                    while !cpu.has_dropped() {
                        spins += 1;
                        if spins % 256 == 0 {
                            std::thread::yield_now();
                        } else {
                            core::hint::spin_loop();
                        }
                    }
                }
                page.written.store(false, Ordering::SeqCst);
            }
        }
        me.set_running(true);
    }

    /// The lines are still declared: nobody wrote to them since [`CodePages::publish`].
    pub(crate) fn still_published(&self, page: usize, lines: u64) -> bool {
        self.pages[page].lines.load(Ordering::SeqCst) & lines == lines
    }

    /// Asks for leave to write to the page without asking again; refused while it holds code.
    pub(crate) fn admit_writer(&self, page: usize) -> bool {
        let page = &self.pages[page];
        if page.lines.load(Ordering::SeqCst) != 0 {
            return false;
        }
        page.written.store(true, Ordering::SeqCst);
        page.lines.load(Ordering::SeqCst) == 0
    }

    /// Says that `count` whole pages from `first` on were written, or may have been.
    pub(crate) fn written_pages(&self, first: usize, count: usize) {
        let end = first.saturating_add(count).min(self.pages.len());
        // As in `written`, for all of them.
        core::sync::atomic::fence(Ordering::SeqCst);
        let mut at = first;
        while at < end {
            let (word, from) = (at / 64, at % 64);
            let to = (end - word * 64).min(64);
            let within = (u64::MAX >> (64 - (to - from))) << from;
            let map = &self.map[word];
            if map.load(Ordering::SeqCst) & within != 0 {
                // Before the lines: whoever sets some afterwards sets the bit again.
                let mut marked = map.fetch_and(!within, Ordering::SeqCst) & within;
                while marked != 0 {
                    self.written(word * 64 + marked.trailing_zeros() as usize, 0, 4096);
                    marked &= marked - 1;
                }
            }
            at = (word + 1) * 64;
        }
    }

    /// Says that `length` bytes at `offset` of the page were written.
    #[inline]
    pub(crate) fn written(&self, page: usize, offset: u64, length: u64) {
        // The fence orders the caller's write before the look at the lines; see the module's head.
        core::sync::atomic::fence(Ordering::SeqCst);
        let page = &self.pages[page];
        let lines = page.lines.load(Ordering::SeqCst);
        if lines & line_mask(offset, length) != 0 {
            page.lines.swap(0, Ordering::SeqCst);
            page.generation.fetch_add(1, Ordering::SeqCst);
            for cpu in &*self.cpus.read().unwrap_or_else(PoisonError::into_inner) {
                cpu.code_overwritten();
            }
        }
    }
}

/// The lines that `length` bytes at `offset` of a page touch.
pub(crate) fn line_mask(offset: u64, length: u64) -> u64 {
    let first = offset / LINE;
    let last = (offset + length.max(1) - 1).min(4095) / LINE;
    (u64::MAX >> (63 - (last - first))) << first
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_masks_cover_exactly_the_lines_touched() {
        assert_eq!(line_mask(0, 1), 1);
        assert_eq!(line_mask(63, 2), 3);
        assert_eq!(line_mask(0, 4096), u64::MAX);
        assert_eq!(line_mask(4095, 1), 1 << 63);
    }

    #[test]
    fn a_write_beside_the_code_keeps_the_generation_and_one_over_it_does_not() {
        let pages = CodePages::new(1);
        let me = Attention::default();
        pages.publish(0, line_mask(0, 64), &me, || ());
        pages.written(0, 64, 8);
        assert_eq!(pages.generation(0), 0);
        assert!(!pages.admit_writer(0));
        pages.written(0, 60, 8);
        assert_eq!(pages.generation(0), 1);
        assert!(!pages.has_code(0) && pages.admit_writer(0));
    }

    #[test]
    fn of_many_pages_that_were_written_those_with_code_are_found_and_no_others() {
        let me = Attention::default();
        for (first, count) in [
            (0, 200),
            (3, 60),
            (3, 61),
            (63, 2),
            (64, 64),
            (65, 1),
            (199, 1),
            (190, 100),
            (7, 0),
        ] {
            let pages = CodePages::new(200);
            // Twice, for what was found once is found again when there is code again.
            for round in 1..=2 {
                let code = (0..200).filter(|page| page % 3 == 0);
                code.clone().for_each(|page| pages.publish(page, 1, &me, || ()));
                pages.written_pages(first, count);
                let of_written = |page: &usize| (first..first + count).contains(page);
                for page in code {
                    assert_eq!(
                        pages.has_code(page),
                        !of_written(&page),
                        "{page} of {count} from {first}"
                    );
                    let generation = if of_written(&page) { round } else { 0 };
                    assert_eq!(pages.generation(page), generation, "{page} of {count} from {first}");
                }
                assert!((0..200).all(|page| page % 3 == 0 || pages.generation(page) == 0));
            }
        }
    }

    #[test]
    fn making_a_page_code_waits_until_the_other_cpu_has_dropped_its_translations() {
        let pages = Arc::new(CodePages::new(1));
        let (me, other) = (Arc::new(Attention::default()), Arc::new(Attention::default()));
        pages.register(me.clone());
        pages.register(other.clone());
        other.set_running(true);
        assert!(pages.admit_writer(0));
        let decoder = std::thread::spawn({
            let pages = pages.clone();
            move || pages.publish(0, 1, &me, || ())
        });
        while !other.wants_writes_dropped() {
            std::thread::yield_now();
        }
        assert!(!decoder.is_finished());
        other.writes_dropped();
        decoder.join().unwrap();
    }
}

//! How other threads get a running CPU's attention.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Signals to one CPU, which it looks at between blocks of instructions.
#[derive(Debug)]
pub struct Attention {
    signals: AtomicU32,
    /// Zero if something is signalled, or was: what translated code looks at. Whoever signals clears it afterwards; the CPU sets it
    /// before it looks at the signals themselves ([`Attention::settle`]).
    quiet: AtomicU32,
    /// What the CPU may be using at the moment: [`RUNNING`], [`TRANSLATED`].
    uses: AtomicU32,
    /// The CPU has translated code, and wants to know when code is overwritten.
    translating: AtomicBool,
}

/// The CPU is executing, and may hold translations that let it write without asking.
const RUNNING: u32 = 1;
/// The CPU is executing, or in the middle of an instruction that goes on with the translations it has made.
const TRANSLATED: u32 = 2;

/// The CPU's owner wants to be heard: an interrupt is pending, say.
const OWNER: u32 = 1;
/// Translations for writing are to be dropped, since a page became code.
const DROP_WRITES: u32 = 2;
/// All translations are to be dropped, since page tables have changed.
const FLUSH: u32 = 4;
/// Code was overwritten that may have been translated.
const STALE: u32 = 8;

impl Default for Attention {
    fn default() -> Attention {
        Attention {
            signals: AtomicU32::new(0),
            quiet: AtomicU32::new(1),
            uses: AtomicU32::new(0),
            translating: AtomicBool::new(false),
        }
    }
}

impl Attention {
    fn signal(&self, signal: u32) {
        self.signals.fetch_or(signal, Ordering::SeqCst);
        self.quiet.store(0, Ordering::SeqCst);
    }

    /// Makes the CPU return [`Exit::Attention`](crate::Exit::Attention) before the next block.
    pub fn call(&self) {
        self.signal(OWNER);
    }

    /// Something was signalled.
    #[inline(always)]
    pub(crate) fn any(&self) -> bool {
        self.signals.load(Ordering::Acquire) != 0
    }

    /// Takes the owner's signal.
    pub(crate) fn take_call(&self) -> bool {
        self.signals.fetch_and(!OWNER, Ordering::SeqCst) & OWNER != 0
    }

    /// Tells whether translations for writing are to be dropped; the caller does it before
    /// [`Attention::writes_dropped`].
    pub(crate) fn wants_writes_dropped(&self) -> bool {
        self.signals.load(Ordering::SeqCst) & DROP_WRITES != 0
    }

    /// Says that no translation for writing is left.
    pub(crate) fn writes_dropped(&self) {
        self.signals.fetch_and(!DROP_WRITES, Ordering::SeqCst);
    }

    /// What translated code looks at: zero if something is signalled.
    pub(crate) fn quiet(&self) -> *const AtomicU32 {
        &raw const self.quiet
    }

    /// Has translated code run on if nothing is signalled any more.
    pub(crate) fn settle(&self) {
        if self.quiet.load(Ordering::Relaxed) == 0 {
            self.quiet.store(1, Ordering::SeqCst);
            if self.signals.load(Ordering::SeqCst) != 0 {
                self.quiet.store(0, Ordering::SeqCst);
            }
        }
    }

    /// Says whether the CPU has translated code.
    pub(crate) fn set_translating(&self, translating: bool) {
        self.translating.store(translating, Ordering::SeqCst);
    }

    /// Code was overwritten: the CPU does not enter translated code again that was made of it.
    pub(crate) fn code_overwritten(&self) {
        if self.translating.load(Ordering::SeqCst) {
            self.signal(STALE);
        }
    }

    /// Takes the signal that code was overwritten; the caller forgets where translated code is after that.
    pub(crate) fn take_code_overwritten(&self) -> bool {
        self.signals.load(Ordering::SeqCst) & STALE != 0
            && self.signals.fetch_and(!STALE, Ordering::SeqCst) & STALE != 0
    }

    /// Has the CPU forget every translation before it begins its next instruction; [`Attention::has_flushed`] tells when it can no
    /// longer use one that it has now.
    pub fn request_flush(&self) {
        self.signal(FLUSH);
    }

    /// No translation from before the last [`Attention::request_flush`] is used any more: the CPU has forgotten them, or stands between
    /// two instructions and will do so first. While it waits for a device in the middle of an instruction, it still uses them.
    pub fn has_flushed(&self) -> bool {
        self.uses.load(Ordering::SeqCst) & TRANSLATED == 0 || !self.wants_flush()
    }

    /// Tells whether all translations are to be dropped; the caller does it, between two instructions, before
    /// [`Attention::flushed`].
    pub(crate) fn wants_flush(&self) -> bool {
        self.signals.load(Ordering::SeqCst) & FLUSH != 0
    }

    /// Says that no translation is left.
    pub(crate) fn flushed(&self) {
        self.signals.fetch_and(!FLUSH, Ordering::SeqCst);
    }

    /// The CPU begins to execute. One that does not need not answer [`Attention::request_drop`]; it sees the request when it begins
    /// again.
    pub(crate) fn enter(&self) {
        self.uses.store(RUNNING | TRANSLATED, Ordering::SeqCst);
    }

    /// The CPU executes no more; `translated` if it is in the middle of an instruction that will go on with its translations.
    pub(crate) fn leave(&self, translated: bool) {
        self.uses
            .store(if translated { TRANSLATED } else { 0 }, Ordering::SeqCst);
    }

    /// Marks the CPU as one that holds no translations for writing while it waits for others, or as executing again.
    pub(crate) fn set_running(&self, running: bool) {
        if running {
            self.uses.fetch_or(RUNNING, Ordering::SeqCst);
        } else {
            self.uses.fetch_and(!RUNNING, Ordering::SeqCst);
        }
    }

    pub(crate) fn request_drop(&self) {
        self.signal(DROP_WRITES);
    }

    /// The CPU can no longer write without asking.
    pub(crate) fn has_dropped(&self) -> bool {
        self.uses.load(Ordering::SeqCst) & RUNNING == 0 || !self.wants_writes_dropped()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_is_waited_for_as_long_as_an_old_translation_may_be_used() {
        let cpu = Attention::default();
        cpu.request_flush();
        assert!(cpu.has_flushed(), "one that stands still flushes before it goes on");
        cpu.enter();
        assert!(!cpu.has_flushed());
        // Waiting for others in the middle of a block is not being done with it.
        cpu.set_running(false);
        assert!(!cpu.has_flushed());
        cpu.set_running(true);
        cpu.flushed();
        assert!(cpu.has_flushed());
        cpu.request_flush();
        cpu.leave(true);
        assert!(!cpu.has_flushed(), "in mid-instruction");
        cpu.leave(false);
        assert!(cpu.has_flushed() && cpu.wants_flush());
    }
}

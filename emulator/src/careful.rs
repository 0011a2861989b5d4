//! The careful way to memory: everything read is recorded, everything stored is staged, devices are asked once.
//!
//! # Purpose
//! An instruction that meets a device is abandoned without having changed anything
//! ([`Stop::Await`](crate::access::Stop::Await)) and executed again when the answer is there. Through this accessor the
//! second pass sees exactly what the first one saw.
//!
//! # Invariants
//! * Reads go through the [`ReplayCache`]; nothing live is consulted for what is recorded.
//! * Stores are staged with their translated addresses and reach memory once, in order, at retirement; a later read of
//!   the same instruction sees them.
//! * A device is asked for exactly what the instruction asked, in parts of 1, 2, 4 or 8 bytes that do not cross a page;
//!   all pages of an operand are translated before its first part is asked for.
//! * A page that the instruction has translated stays where it was for the rest of the pass, as in the TLB of a
//!   processor: what was checked before a device was asked can be stored to after it has answered.
//! * Device writes drain in their place among the stores, each waiting for its completion, without another pass.
//!
//! # Life
//! `idle` -[`begin`](Careful::begin)-> `pass` -(Await)-> `waiting` -[`answer`](Careful::answer)-> `pass` …
//! -[`retire`](Careful::retire)-> `draining` -(last store)-> `idle`; a fault or [`abandon`](Careful::abandon) leads
//! to `idle` from anywhere.

mod access;
mod aside;
mod batch;
mod in_flight;
mod parts;
mod platform;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use self::parts::ones;
use crate::cpu::Cpu;
use crate::cpuid::CpuidTable;
use crate::debug::{self, Watched};
use crate::host::Host;
use crate::paging::{Intent, Privilege};
use crate::ram::Ram;
use crate::replay::{Entry, Question, ReplayCache, ReplayError};
use crate::request::{Answer, Direction, Reply, Request, RequestId, Space};

pub use aside::Aside;
pub(crate) use batch::{Elements, Way};
pub use in_flight::{InFlight, InFlightError};

/// Stores that one instruction can stage: XSAVE's largest area in parts of 8 bytes, over a page boundary.
const STORES: usize = 2696 / 8 + 16;

/// Answers that can be given before they are asked for: a 64-byte operand in parts, twice.
const OBTAINED: usize = 16;

/// Pages that a pass remembers: more than any instruction has operands in (16 gathered elements in two pages each).
const PAGES: usize = 40;

/// The recording, staging way to memory and devices.
pub struct Careful {
    ram: Arc<Ram>,
    host: Arc<dyn Host>,
    /// What CPUID answers, and so which control bits and registers there are.
    pub(crate) cpuid: Arc<CpuidTable>,
    cache: ReplayCache,
    stores: Vec<Store>,
    /// Pages translated, in the order in which each pass comes to them.
    translated: Vec<Translated>,
    /// How many of them this pass has come to.
    seen: usize,
    /// How many of `stores` have been made, while draining.
    drained: usize,
    waiting: Option<Waiting>,
    /// Answers that were obtained for this instruction before it came here.
    obtained: Vec<Entry>,
    last_id: RequestId,
    /// Linear address of the page fault that a handler has just returned.
    pub(crate) fault_address: u64,
    /// Why the last handler returned [`Stop::Failed`].
    error: Option<ReplayError>,
    /// Translations to forget when the instruction retires.
    pub(crate) flush: Flush,
    /// Breakpoints on data and ports that this pass has met, as DR6 has them.
    pub(crate) watched: u8,
}

/// Translations that an instruction invalidates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Flush {
    /// None.
    #[default]
    None,
    /// Those of one linear address.
    Page(u64),
    /// CR3 was loaded: those that are not global, and all of the new PCID but if they are kept.
    Switch { keep: bool },
    /// Those of one PCID that are not global.
    Pcid(u16),
    /// Those that are not global, of all PCIDs.
    Local,
    /// All.
    All,
}

/// A staged store: at most 8 bytes within a page, or a port or register write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Store {
    space: Space,
    address: u64,
    width: u8,
    value: u64,
}

/// Which paging structures are walked, for what address, to do what, with whose rights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wanted {
    cr3: u64,
    page: u64,
    intent: Intent,
    privilege: Privilege,
}

impl Wanted {
    /// What may be done so may be done as `other` wants too: what may be written may be read.
    fn covers(&self, other: &Wanted) -> bool {
        let intent = match (self.intent, other.intent) {
            (Intent::Write, Intent::Read) => Intent::Write,
            (_, intent) => intent,
        };
        *self == Wanted { intent, ..*other }
    }
}

/// A page as the instruction in flight has translated it.
#[derive(Debug, Clone, Copy)]
struct Translated {
    wanted: Wanted,
    /// Where the page is.
    gpa: u64,
    /// Where in the record the walk begins, and how many entries it has.
    position: usize,
    entries: usize,
}

/// A request that has not been answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Waiting {
    request: Request,
    /// What the abandoned pass asked, to be recorded with the answer; none while draining, when only the order of the
    /// stores waits for it.
    question: Option<Question>,
}

/// A cache that is suspended as long as this lives; guards nest. Whatever is read meanwhile is read live and not
/// recorded, no page-table entry is marked, and no device is asked: where there is no RAM, all ones are read.
pub(crate) struct Suspended<'a>(&'a mut Careful);

impl Drop for Suspended<'_> {
    fn drop(&mut self) {
        self.0.cache.resume();
    }
}

impl core::ops::Deref for Suspended<'_> {
    type Target = Careful;

    fn deref(&self) -> &Careful {
        self.0
    }
}

impl core::ops::DerefMut for Suspended<'_> {
    fn deref_mut(&mut self) -> &mut Careful {
        self.0
    }
}

impl Careful {
    pub(crate) fn new(ram: Arc<Ram>, host: Arc<dyn Host>, cpuid: Arc<CpuidTable>) -> Careful {
        Careful {
            ram,
            host,
            cpuid,
            cache: ReplayCache::default(),
            stores: Vec::with_capacity(STORES),
            translated: Vec::with_capacity(PAGES),
            seen: 0,
            drained: 0,
            waiting: None,
            obtained: Vec::with_capacity(OBTAINED),
            last_id: 0,
            fault_address: 0,
            error: None,
            flush: Flush::None,
            watched: 0,
        }
    }

    /// Begins a pass: the first over a new instruction, or another over the one in flight.
    pub(crate) fn begin(&mut self) {
        self.cache.rewind();
        self.stores.clear();
        self.seen = 0;
        self.drained = 0;
        self.flush = Flush::None;
        self.watched = 0;
    }

    /// Notes the breakpoints that an access meets.
    pub(crate) fn watch(&mut self, cpu: &Cpu, address: u64, length: u64, watched: Watched) {
        self.watched |= debug::matches(cpu, address, length, watched);
    }

    /// An instruction is between its first pass and its end.
    pub(crate) fn in_flight(&self) -> bool {
        self.has_begun() || !self.obtained.is_empty()
    }

    /// A pass over an instruction has ended before the instruction did, or its bytes were supplied.
    pub(crate) fn has_begun(&self) -> bool {
        self.waiting.is_some() || !self.cache.entries().is_empty() || self.is_draining()
    }

    /// How many questions this pass has asked.
    pub(crate) fn position(&self) -> usize {
        self.cache.position()
    }

    /// Begins a later pass behind the fetch, which made the first `entries` of the record; false if they are not there.
    pub(crate) fn skip_fetch(&mut self, entries: usize) -> bool {
        let skips = self.cache.skip(entries);
        if skips {
            let fetch = self.translated.iter();
            self.seen = fetch.take_while(|page| page.position < entries).count();
        }
        skips
    }

    /// Nothing that was read for one instruction is there for the next.
    fn forget_record(&mut self) {
        self.cache.clear();
        self.translated.clear();
        self.seen = 0;
    }

    /// The record so far.
    pub fn record(&self) -> &[Entry] {
        self.cache.entries()
    }

    /// How many answers were taken from records, ever.
    pub(crate) fn replayed(&self) -> u64 {
        self.cache.replayed()
    }

    /// The request that waits for its answer.
    pub(crate) fn waiting_for(&self) -> Option<RequestId> {
        self.waiting.map(|waiting| waiting.request.id)
    }

    /// Takes an answer. False if nobody waits for it: it is stale.
    ///
    /// # Errors
    /// [`ReplayError::Overflow`].
    pub(crate) fn answer(&mut self, answer: Answer) -> Result<bool, ReplayError> {
        let Some(waiting) = self.waiting.take_if(|waiting| waiting.request.id == answer.id) else {
            return Ok(false);
        };
        if let Some(question) = waiting.question {
            let (value, refused) = match answer.reply {
                Reply::Value(value) => (value & ones(question.width), false),
                Reply::Refused => (0, true),
            };
            self.cache.answer(question, value, refused)?;
        }
        Ok(true)
    }

    /// Ends the instruction without effect: it faulted or was cancelled.
    pub(crate) fn abandon(&mut self) {
        self.forget_record();
        self.stores.clear();
        self.drained = 0;
        self.waiting = None;
        self.obtained.clear();
        self.flush = Flush::None;
    }

    /// Cancels the instruction in flight; false if there is none. One that has retired keeps the stores that are left.
    pub(crate) fn cancel(&mut self) -> bool {
        let completes = self.waiting.is_some_and(|waiting| waiting.question.is_none());
        if completes || self.is_draining() {
            self.waiting = None;
            return false;
        }
        let dropped = self.in_flight();
        self.abandon();
        dropped
    }

    /// Takes back what an event's delivery has stored that ended in another exception; what it has read stays recorded.
    pub(crate) fn unstage(&mut self) {
        self.stores.clear();
        self.flush = Flush::None;
        self.watched = 0;
    }

    /// The instruction has retired: its stores can be made.
    pub(crate) fn retire(&mut self) {
        self.forget_record();
        self.obtained.clear();
    }

    /// Stores are left to be made.
    pub(crate) fn is_draining(&self) -> bool {
        self.drained < self.stores.len()
    }

    /// Makes staged stores, in order, up to the next that a device must be told of.
    pub(crate) fn drain(&mut self) -> Option<Request> {
        while let Some(store) = self.stores.get(self.drained).copied() {
            self.drained += 1;
            if store.space == Space::Memory && self.ram.write(store.address, store.width, store.value) {
                continue;
            }
            let request = self.request(store.space, store.address, store.width, Direction::Write(store.value));
            self.waiting = Some(Waiting {
                request,
                question: None,
            });
            return Some(request);
        }
        self.stores.clear();
        self.drained = 0;
        None
    }

    /// The request that the pass just abandoned waits for.
    pub(crate) fn awaited(&self) -> Option<Request> {
        self.waiting.map(|waiting| waiting.request)
    }

    /// Why the pass failed.
    pub(crate) fn take_error(&mut self) -> Option<ReplayError> {
        self.error.take()
    }

    /// Goes around the cache while the guard lives: for reads that are not the instruction's own.
    pub(crate) fn suspended(&mut self) -> Suspended<'_> {
        self.cache.suspend();
        Suspended(self)
    }
}

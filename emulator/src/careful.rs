//! The careful way to memory: everything read is recorded, everything stored is staged, devices are asked once.
//!
//! # Purpose
//! An instruction that meets a device is abandoned without having changed anything ([`Stop::Await`]) and executed again
//! when the answer is there. Through this accessor the second pass sees exactly what the first one saw.
//!
//! # Invariants
//! * Reads go through the [`ReplayCache`]; nothing live is consulted for what is recorded.
//! * Stores are staged with their translated addresses and reach memory once, in order, at retirement; a later read of the
//!   same instruction sees them.
//! * A device is asked for exactly what the instruction asked, in parts of 1, 2, 4 or 8 bytes that do not cross a page;
//!   all pages of an operand are translated before its first part is asked for.
//! * A page that the instruction has translated stays where it was for the rest of the pass, as in the TLB of a processor: what
//!   was checked before a device was asked can be stored to after it has answered.
//! * Device writes drain in their place among the stores, each waiting for its completion, without another pass.
//!
//! # Life
//! `idle` -[`begin`](Careful::begin)-> `pass` -(Await)-> `waiting` -[`answer`](Careful::answer)-> `pass` …
//! -[`retire`](Careful::retire)-> `draining` -(last store)-> `idle`; a fault or [`abandon`](Careful::abandon) leads
//! to `idle` from anywhere.

use std::sync::Arc;

use crate::access::{Access, Linear, Stop};
use crate::cpu::Cpu;
use crate::cpuid::CpuidTable;
use crate::event::{self, Exception};
use crate::fast::{non_canonical, set_live_bits};
use crate::host::Host;
use crate::op::Handler;
use crate::paging::{self, Intent, Privilege, Tables};
use crate::ram::{PAGE_SIZE, Ram};
use crate::replay::{Entry, Kind, Question, ReplayCache, ReplayError};
use crate::request::{Answer, Direction, Reply, Request, RequestId, Space};
use crate::word::Word;

/// Stores that one instruction can stage: XSAVE's largest area in parts of 8 bytes, over a page boundary.
const STORES: usize = 2696 / 8 + 16;

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
    /// Pages translated in this pass.
    translated: Vec<Translated>,
    /// How many of `stores` have been made, while draining.
    drained: usize,
    waiting: Option<Waiting>,
    last_id: RequestId,
    /// Linear address of the page fault that a handler has just returned.
    pub(crate) fault_address: u64,
    /// Why the last handler returned [`Stop::Failed`].
    error: Option<ReplayError>,
    /// Translations to forget when the instruction retires.
    pub(crate) flush: Flush,
}

/// Translations that an instruction invalidates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Flush {
    /// None.
    #[default]
    None,
    /// Those of one linear address.
    Page(u64),
    /// All.
    All,
}

/// A staged store: at most 8 bytes within a page, or a port or register write.
#[derive(Debug, Clone, Copy)]
struct Store {
    space: Space,
    address: u64,
    width: u8,
    value: u64,
}

/// A page as this pass has translated it.
#[derive(Debug, Clone, Copy)]
struct Translated {
    /// Which paging structures were walked, for what address, to do what, with whose rights.
    cr3: u64,
    page: u64,
    intent: Intent,
    privilege: Privilege,
    /// Where the page is.
    gpa: u64,
}

/// A request that has not been answered.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    request: Request,
    /// What the abandoned pass asked, to be recorded with the answer; none while draining, when only the order of the
    /// stores waits for it.
    question: Option<Question>,
}

/// Where the bytes of an operand lie: in one page or in two.
#[derive(Debug, Clone, Copy)]
struct Place {
    first: u64,
    first_length: u64,
    second: u64,
    length: u64,
}

impl Place {
    /// The parts: guest-physical address, width (8, 4, 2 or 1), offset within the operand.
    fn parts(self) -> impl Iterator<Item = (u64, u8, usize)> {
        let mut done = 0;
        core::iter::from_fn(move || {
            let (gpa, left) = if done < self.first_length {
                (self.first + done, self.first_length - done)
            } else {
                (self.second + (done - self.first_length), self.length - done)
            };
            if left == 0 {
                return None;
            }
            let width = 1 << left.min(8).ilog2();
            let offset = done as usize;
            done += width;
            Some((gpa, width as u8, offset))
        })
    }
}

/// A cache that is suspended as long as this lives; guards nest.
pub struct Suspended<'a>(&'a mut Careful);

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
            drained: 0,
            waiting: None,
            last_id: 0,
            fault_address: 0,
            error: None,
            flush: Flush::None,
        }
    }

    /// Begins a pass: the first over a new instruction, or another over the one in flight.
    pub(crate) fn begin(&mut self) {
        self.cache.rewind();
        self.stores.clear();
        self.translated.clear();
        self.drained = 0;
        self.flush = Flush::None;
    }

    /// An instruction is between its first pass and its end.
    pub(crate) fn in_flight(&self) -> bool {
        self.waiting.is_some() || !self.cache.entries().is_empty() || self.drained < self.stores.len()
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
                Reply::Value(value) => (value & u64::MAX >> (64 - 8 * u32::from(question.width)), false),
                Reply::Refused => (0, true),
            };
            self.cache.answer(question, value, refused)?;
        }
        Ok(true)
    }

    /// Ends the instruction without effect: it faulted or was cancelled.
    pub(crate) fn abandon(&mut self) {
        self.cache.clear();
        self.stores.clear();
        self.drained = 0;
        self.waiting = None;
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
    }

    /// The instruction has retired: its stores can be made.
    pub(crate) fn retire(&mut self) {
        self.cache.clear();
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
    pub fn suspended(&mut self) -> Suspended<'_> {
        self.cache.suspend();
        Suspended(self)
    }
}

/// Reads and writes of single parts.
impl Careful {
    fn request(&mut self, space: Space, address: u64, size: u8, direction: Direction) -> Request {
        self.last_id += 1;
        Request {
            id: self.last_id,
            space,
            address,
            size,
            direction,
        }
    }

    #[cold]
    fn fail(&mut self, error: ReplayError) -> Stop {
        self.error = Some(error);
        Stop::Failed
    }

    fn recall(&mut self, question: Question) -> Result<Option<Entry>, Stop> {
        self.cache.recall(question).map_err(|error| self.fail(error))
    }

    fn reserve(&mut self, entries: usize) -> Result<(), Stop> {
        self.cache.reserve(entries).map_err(|error| self.fail(error))
    }

    fn record_value(&mut self, question: Question, value: u64) -> Result<(), Stop> {
        self.cache
            .record(question, value, false)
            .map_err(|error| self.fail(error))
    }

    /// Abandons the pass until `direction` at `question`'s place is answered.
    fn wait(&mut self, question: Question, direction: Direction) -> Stop {
        if let Err(error) = self.cache.reserve(1) {
            return self.fail(error);
        }
        let request = self.request(question.space, question.address, question.width, direction);
        self.waiting = Some(Waiting {
            request,
            question: Some(question),
        });
        // The pass is over, and what it staged was for nothing: the next one stages it again.
        self.unstage();
        Stop::Await
    }

    /// Asks the platform (a port, an MSR, a hypercall), once; `None` if it refuses.
    fn ask(&mut self, space: Space, address: u64, width: u8, direction: Direction) -> Result<Option<u64>, Stop> {
        let question = Question {
            kind: Kind::Device,
            space,
            address,
            width,
        };
        match self.recall(question)? {
            Some(entry) => Ok((!entry.refused).then_some(entry.value)),
            None => Err(self.wait(question, direction)),
        }
    }

    /// Reads one part of guest-physical memory, with the stores of this instruction on top.
    fn read_part(&mut self, kind: Kind, gpa: u64, width: u8) -> Result<u64, Stop> {
        let (staged, mask) = self.staged(gpa, width);
        let all = u64::MAX >> (64 - 8 * u32::from(width));
        if mask == all {
            return Ok(staged);
        }
        let question = Question {
            kind,
            space: Space::Memory,
            address: gpa,
            width,
        };
        let value = match self.recall(question)? {
            Some(entry) => entry.value,
            None => match self.ram.read(gpa, width) {
                Some(value) => {
                    self.record_value(question, value)?;
                    value
                }
                None => return Err(self.wait(question, Direction::Read)),
            },
        };
        Ok(value & !mask | staged)
    }

    /// What this instruction has stored at `gpa`, and which bits of the part that covers.
    fn staged(&self, gpa: u64, width: u8) -> (u64, u64) {
        let (mut value, mut mask) = (0, 0);
        for store in self.stores.iter().filter(|store| store.space == Space::Memory) {
            for i in 0..u64::from(width) {
                let offset = (gpa + i).wrapping_sub(store.address);
                if offset < u64::from(store.width) {
                    let byte = store.value >> (8 * offset) & 0xff;
                    value = value & !(0xff << (8 * i)) | byte << (8 * i);
                    mask |= 0xff << (8 * i);
                }
            }
        }
        (value, mask)
    }

    fn stage(&mut self, space: Space, address: u64, width: u8, value: u64) -> Result<(), Stop> {
        if self.stores.len() == STORES {
            return Err(self.fail(ReplayError::Overflow { capacity: STORES }));
        }
        self.stores.push(Store {
            space,
            address,
            width,
            value,
        });
        Ok(())
    }

    /// Translates an address, once for each page and use of it.
    fn translate(&mut self, cpu: &Cpu, linear: u64, intent: Intent, privilege: Privilege) -> Result<u64, Stop> {
        let (page, offset) = (linear & !(PAGE_SIZE - 1), linear % PAGE_SIZE);
        let known = self.translated.iter().find(|known| {
            (known.cr3, known.page, known.privilege) == (cpu.cr3, page, privilege)
                // What may be written may be read.
                && (known.intent == intent || known.intent == Intent::Write && intent == Intent::Read)
        });
        if let Some(known) = known {
            return Ok(known.gpa | offset);
        }
        let gpa = paging::translate(cpu, self, linear, intent, privilege)?.gpa;
        if self.translated.len() < PAGES {
            self.translated.push(Translated {
                cr3: cpu.cr3,
                page,
                intent,
                privilege,
                gpa: gpa & !(PAGE_SIZE - 1),
            });
        }
        Ok(gpa)
    }

    /// Translates an operand, checking every page.
    fn place(
        &mut self,
        cpu: &Cpu,
        at: Linear,
        length: u64,
        intent: Intent,
        privilege: Privilege,
    ) -> Result<Place, Stop> {
        let mask = if cpu.view.is_ia32e() { u64::MAX } else { 0xffff_ffff };
        let linear = at.address & mask;
        let last = at.address.wrapping_add(length - 1) & mask;
        if cpu.view.is_ia32e() && !(paging::is_canonical(cpu, linear) && paging::is_canonical(cpu, last)) {
            return Err(non_canonical(at));
        }
        let first_length = (PAGE_SIZE - linear % PAGE_SIZE).min(length);
        let first = self.translate(cpu, linear, intent, privilege)?;
        let second = if first_length < length {
            self.translate(cpu, last & !(PAGE_SIZE - 1), intent, privilege)?
        } else {
            0
        };
        Ok(Place {
            first,
            first_length,
            second,
            length,
        })
    }

    /// Translates a word, with the alignment check (SDM Vol. 3, Alignment Check Exception).
    fn word<T: Word>(&mut self, cpu: &Cpu, at: Linear, intent: Intent) -> Result<Place, Stop> {
        let place = self.place(cpu, at, T::SIZE as u64, intent, Privilege::of(cpu.cpl()))?;
        if cpu.view.checks_alignment() && !at.address.is_multiple_of(T::SIZE as u64) {
            return Err(Exception::with_code(event::AC, 0).into());
        }
        Ok(place)
    }

    fn load_place(&mut self, place: Place) -> Result<u64, Stop> {
        let mut value = 0;
        for (gpa, width, offset) in place.parts() {
            value |= self.read_part(Kind::Data, gpa, width)? << (8 * offset);
        }
        Ok(value)
    }

    fn stage_place(&mut self, place: Place, value: u64) -> Result<(), Stop> {
        for (gpa, width, offset) in place.parts() {
            let all = u64::MAX >> (64 - 8 * u32::from(width));
            self.stage(Space::Memory, gpa, width, value >> (8 * offset) & all)?;
        }
        Ok(())
    }

    /// An atomic operation on one part of RAM, or one read and one write of whatever else it is.
    fn atomic_place<T: Word, R>(&mut self, place: Place, mut f: impl FnMut(T) -> (Option<T>, R)) -> Result<R, Stop> {
        let in_one_page = place.first_length == place.length;
        let question = Question {
            kind: Kind::Atomic,
            space: Space::Memory,
            address: place.first,
            width: T::SIZE as u8,
        };
        if in_one_page {
            if let Some(entry) = self.recall_kind(question)? {
                return Ok(f(T::truncate(entry.value)).1);
            }
            let ram = self.ram.clone();
            if let Some((page, slot)) = ram
                .page(place.first)
                .and_then(|page| Some((page, page.slot::<T>(place.first)?)))
            {
                self.reserve(1)?;
                let (old, result) = slot.atomic(|old| {
                    let (new, result) = f(old);
                    (new, (old, result))
                });
                ram.code.written(page.number, place.first % PAGE_SIZE, T::SIZE as u64);
                self.record_value(question, old.zero_extend())?;
                return Ok(result);
            }
        }
        let old = T::truncate(self.load_place(place)?);
        let (new, result) = f(old);
        self.stage_place(place, new.unwrap_or(old).zero_extend())?;
        Ok(result)
    }

    /// As [`Careful::recall`], but if the record holds a plain read here, the operation was no atomic one on RAM.
    fn recall_kind(&mut self, question: Question) -> Result<Option<Entry>, Stop> {
        match self.cache.peek() {
            Some(entry) if entry.question.kind != question.kind => Ok(None),
            _ => self.recall(question),
        }
    }
}

/// What only careful instructions do.
impl Careful {
    /// Fetches up to 15 instruction bytes at linear address `at`: those of the first page, and more only if `more` bytes
    /// are asked for. Returns how many there are.
    pub(crate) fn fetch(&mut self, cpu: &Cpu, linear: u64, bytes: &mut [u8]) -> Result<(), Stop> {
        let at = Linear::new(crate::cpu::Seg::Cs, linear);
        let place = self.place(cpu, at, bytes.len() as u64, Intent::Fetch, Privilege::of(cpu.cpl()))?;
        for (gpa, width, offset) in place.parts() {
            let value = self.read_part(Kind::Fetch, gpa, width)?;
            bytes[offset..offset + usize::from(width)].copy_from_slice(&value.to_le_bytes()[..usize::from(width)]);
        }
        Ok(())
    }

    /// Reads descriptor tables and task state: with the processor's own rights.
    ///
    /// # Errors
    /// As [`Access::load`].
    pub fn load_system<T: Word>(&mut self, cpu: &Cpu, address: u64) -> Result<T, Stop> {
        let at = Linear::new(crate::cpu::Seg::Ds, address);
        let place = self.place(cpu, at, T::SIZE as u64, Intent::Read, Privilege::Implicit)?;
        Ok(T::truncate(self.load_place(place)?))
    }

    /// Writes task state with the processor's own rights.
    ///
    /// # Errors
    /// As [`Access::store`].
    pub fn store_system<T: Word>(&mut self, cpu: &Cpu, address: u64, value: T) -> Result<(), Stop> {
        let at = Linear::new(crate::cpu::Seg::Ds, address);
        let place = self.place(cpu, at, T::SIZE as u64, Intent::Write, Privilege::Implicit)?;
        self.stage_place(place, value.zero_extend())
    }

    /// Changes a descriptor atomically (accessed and busy bits) with the processor's own rights.
    ///
    /// # Errors
    /// As [`Access::atomic`].
    pub fn atomic_system<T: Word, R>(
        &mut self,
        cpu: &Cpu,
        address: u64,
        f: impl FnMut(T) -> (Option<T>, R),
    ) -> Result<R, Stop> {
        let at = Linear::new(crate::cpu::Seg::Ds, address);
        let place = self.place(cpu, at, T::SIZE as u64, Intent::Write, Privilege::Implicit)?;
        self.atomic_place(place, f)
    }

    /// Stages a store with the rights of privilege level `cpl`: pushes on the stack of a level about to be entered.
    ///
    /// # Errors
    /// As [`Access::store`].
    pub fn store_at<T: Word>(&mut self, cpu: &Cpu, cpl: u8, at: Linear, value: T) -> Result<(), Stop> {
        let place = self.place(cpu, at, T::SIZE as u64, Intent::Write, Privilege::of(cpl))?;
        self.stage_place(place, value.zero_extend())
    }

    /// Reads with the rights of privilege level `cpl`.
    ///
    /// # Errors
    /// As [`Access::load`].
    pub fn load_at<T: Word>(&mut self, cpu: &Cpu, cpl: u8, at: Linear) -> Result<T, Stop> {
        let place = self.place(cpu, at, T::SIZE as u64, Intent::Read, Privilege::of(cpl))?;
        Ok(T::truncate(self.load_place(place)?))
    }

    /// Reads a port of 1, 2 or 4 bytes.
    ///
    /// # Errors
    /// [`Stop::Await`] until the device has answered.
    pub fn port_read(&mut self, port: u16, size: u8) -> Result<u64, Stop> {
        Ok(self
            .ask(Space::Port, u64::from(port), size, Direction::Read)?
            .unwrap_or(u64::MAX))
    }

    /// Writes a port of 1, 2 or 4 bytes, at retirement.
    ///
    /// # Errors
    /// [`Stop::Failed`].
    pub fn port_write(&mut self, port: u16, size: u8, value: u64) -> Result<(), Stop> {
        self.stage(
            Space::Port,
            u64::from(port),
            size,
            value & u64::MAX >> (64 - 8 * u32::from(size)),
        )
    }

    /// Reads an MSR that is not the processor's own.
    ///
    /// # Errors
    /// #GP(0) if there is none; [`Stop::Await`] until the platform has answered.
    pub fn msr_read(&mut self, msr: u32) -> Result<u64, Stop> {
        self.ask(Space::Msr, u64::from(msr), 8, Direction::Read)?
            .ok_or(Stop::Fault(Exception::gp(0)))
    }

    /// Writes an MSR that is not the processor's own.
    ///
    /// # Errors
    /// #GP(0) if there is none or it does not take the value; [`Stop::Await`] until the platform has answered.
    pub fn msr_write(&mut self, msr: u32, value: u64) -> Result<(), Stop> {
        self.ask(Space::Msr, u64::from(msr), 8, Direction::Write(value))?
            .ok_or(Stop::Fault(Exception::gp(0)))?;
        Ok(())
    }

    /// The task priority, 0 to 15.
    ///
    /// # Errors
    /// [`Stop::Await`] until the platform has answered.
    pub fn task_priority(&mut self) -> Result<u64, Stop> {
        Ok(self.ask(Space::TaskPriority, 8, 1, Direction::Read)?.unwrap_or(0))
    }

    /// Sets the task priority, at retirement.
    ///
    /// # Errors
    /// [`Stop::Failed`].
    pub fn set_task_priority(&mut self, value: u64) -> Result<(), Stop> {
        self.stage(Space::TaskPriority, 8, 1, value & 0xf)
    }

    /// Makes a hypercall; what it returns.
    ///
    /// # Errors
    /// [`Stop::Await`] until it is done.
    pub fn hypercall(&mut self, number: u64) -> Result<u64, Stop> {
        Ok(self
            .ask(Space::Hypercall, number, 8, Direction::Read)?
            .unwrap_or(u64::MAX))
    }

    /// Forgets the translations of one linear address, or of all, when the instruction retires.
    pub(crate) fn invalidate(&mut self, flush: Flush) {
        self.flush = flush;
    }
}

impl Tables for Careful {
    fn entry(&mut self, gpa: u64, size: u8) -> Result<u64, Stop> {
        self.read_part(Kind::PageTable, gpa, size)
    }

    fn set_bits(&mut self, gpa: u64, size: u8, seen: u64, bits: u64) -> Result<bool, Stop> {
        let (staged, mask) = self.staged(gpa, size);
        if mask != 0 {
            // The instruction has itself stored into this entry; the bits join the staged store.
            self.stage(Space::Memory, gpa, size, staged & mask | seen & !mask | bits)?;
            return Ok(true);
        }
        let question = Question {
            kind: Kind::PageTableUpdate,
            space: Space::Memory,
            address: gpa,
            width: size,
        };
        if let Some(entry) = self.recall(question)? {
            return Ok(entry.value != 0);
        }
        self.reserve(1)?;
        // An entry in a device takes no bits: nothing to set, and the walk is done.
        let done = set_live_bits(&self.ram, gpa, size, seen, bits).unwrap_or(true);
        self.record_value(question, u64::from(done))?;
        Ok(done)
    }

    fn page_fault(&mut self, linear: u64, error_code: u16) -> Stop {
        self.fault_address = linear;
        Exception::with_code(event::PF, error_code).into()
    }
}

impl Access for Careful {
    fn load<T: Word>(&mut self, cpu: &Cpu, at: Linear) -> Result<T, Stop> {
        let place = self.word::<T>(cpu, at, Intent::Read)?;
        Ok(T::truncate(self.load_place(place)?))
    }

    fn store<T: Word>(&mut self, cpu: &Cpu, at: Linear, value: T) -> Result<(), Stop> {
        let place = self.word::<T>(cpu, at, Intent::Write)?;
        self.stage_place(place, value.zero_extend())
    }

    fn update<T: Word, R>(&mut self, cpu: &Cpu, at: Linear, f: impl FnOnce(T) -> (T, R)) -> Result<R, Stop> {
        let place = self.word::<T>(cpu, at, Intent::Write)?;
        let (value, result) = f(T::truncate(self.load_place(place)?));
        self.stage_place(place, value.zero_extend())?;
        Ok(result)
    }

    fn atomic<T: Word, R>(&mut self, cpu: &Cpu, at: Linear, f: impl FnMut(T) -> (Option<T>, R)) -> Result<R, Stop> {
        let place = self.word::<T>(cpu, at, Intent::Write)?;
        self.atomic_place(place, f)
    }

    fn compare_exchange_16(&mut self, cpu: &Cpu, at: Linear, expected: u128, new: u128) -> Result<u128, Stop> {
        let place = self.place(cpu, at, 16, Intent::Write, Privilege::of(cpu.cpl()))?;
        let halves = [place.first, place.first + 8].map(|address| Question {
            kind: Kind::Atomic,
            space: Space::Memory,
            address,
            width: 8,
        });
        if let Some(low) = self.recall_kind(halves[0])? {
            let high = self.recall(halves[1])?.map_or(0, |entry| entry.value);
            return Ok(u128::from(low.value) | u128::from(high) << 64);
        }
        let ram = self.ram.clone();
        if let Some(page) = ram.page(place.first)
            && let Some(slot) = page.slot::<u64>(place.first)
        {
            self.reserve(2)?;
            if let Some(old) = slot.compare_exchange_16(expected, new) {
                ram.code.written(page.number, place.first % PAGE_SIZE, 16);
                self.record_value(halves[0], old as u64)?;
                self.record_value(halves[1], (old >> 64) as u64)?;
                return Ok(old);
            }
        }
        let mut bytes = [0; 16];
        self.read_bytes(place, &mut bytes)?;
        let old = u128::from_le_bytes(bytes);
        self.write_bytes(place, &if old == expected { new } else { old }.to_le_bytes())?;
        Ok(old)
    }

    fn load_bytes(&mut self, cpu: &Cpu, at: Linear, bytes: &mut [u8]) -> Result<(), Stop> {
        let place = self.place(cpu, at, bytes.len() as u64, Intent::Read, Privilege::of(cpu.cpl()))?;
        self.read_bytes(place, bytes)
    }

    fn store_bytes(&mut self, cpu: &Cpu, at: Linear, bytes: &[u8]) -> Result<(), Stop> {
        let place = self.place(cpu, at, bytes.len() as u64, Intent::Write, Privilege::of(cpu.cpl()))?;
        self.write_bytes(place, bytes)
    }

    fn check_write(&mut self, cpu: &Cpu, at: Linear, length: u64) -> Result<(), Stop> {
        self.place(cpu, at, length.max(1), Intent::Write, Privilege::of(cpu.cpl()))
            .map(|_| ())
    }

    fn check_read(&mut self, cpu: &Cpu, at: Linear, length: u64) -> Result<(), Stop> {
        self.place(cpu, at, length.max(1), Intent::Read, Privilege::of(cpu.cpl()))
            .map(|_| ())
    }

    fn check_move(&mut self, cpu: &Cpu, from: Linear, to: Linear, length: u64) -> Result<(), Stop> {
        self.check_read(cpu, from, length)?;
        self.check_write(cpu, to, length)
    }

    fn check_comparison(&mut self, cpu: &Cpu, first: Linear, second: Linear, length: u64) -> Result<(), Stop> {
        self.check_read(cpu, first, length)?;
        self.check_read(cpu, second, length)
    }

    /// Each iteration is a transaction of its own.
    const ITERATIONS: u32 = 1;

    fn copy_run(&mut self, _: &Cpu, _: Linear, _: Linear, _: u64) -> u64 {
        0
    }

    fn fill_run<T: Word>(&mut self, _: &Cpu, _: Linear, _: T, _: u64) -> u64 {
        0
    }

    fn tsc(&mut self) -> Result<u64, Stop> {
        let question = Question {
            kind: Kind::Clock,
            space: Space::Msr,
            address: 0x10,
            width: 8,
        };
        let host = self.host.clone();
        self.cache
            .read(question, || host.tsc())
            .map_err(|error| self.fail(error))
    }

    fn random(&mut self) -> Result<u64, Stop> {
        let question = Question {
            kind: Kind::Chance,
            space: Space::Msr,
            address: 0,
            width: 8,
        };
        let host = self.host.clone();
        self.cache
            .read(question, || host.random())
            .map_err(|error| self.fail(error))
    }

    fn careful(handler: Handler<Careful>) -> Handler<Careful> {
        handler
    }
}

impl Careful {
    fn read_bytes(&mut self, place: Place, bytes: &mut [u8]) -> Result<(), Stop> {
        for (gpa, width, offset) in place.parts() {
            let value = self.read_part(Kind::Data, gpa, width)?;
            bytes[offset..offset + usize::from(width)].copy_from_slice(&value.to_le_bytes()[..usize::from(width)]);
        }
        Ok(())
    }

    fn write_bytes(&mut self, place: Place, bytes: &[u8]) -> Result<(), Stop> {
        for (gpa, width, offset) in place.parts() {
            let mut value = [0; 8];
            value[..usize::from(width)].copy_from_slice(&bytes[offset..offset + usize::from(width)]);
            self.stage(Space::Memory, gpa, width, u64::from_le_bytes(value))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

//! The main path: blocks of instructions the fast way, single instructions the careful way, events between them.
//!
//! - `run`: the fast way. `tier`: where it leads through translated code, and what becomes of that where it leaves.
//! - `pass`: the careful way, one attempt at an instruction or the delivery of an event.
//! - `supply`: bytes of an instruction that a hypervisor has fetched already.
//! - `forget`: translations that are flushed.

mod forget;
mod pass;
mod run;
mod supply;
mod tier;

use std::sync::Arc;

use crate::attention::Attention;
use crate::blocks::Blocks;
use crate::careful::{Aside, Careful, Flush, InFlight, InFlightError};
use crate::cpu::{Activity, Cpu};
use crate::cpuid::CpuidTable;
use crate::elsewhere::Elsewhere;
use crate::event::Event;
use crate::fast::Fast;
use crate::host::Host;
use crate::model::Model;
use crate::ram::Ram;
use crate::replay::{self, ReplayError};
use crate::request::{Answer, Request, RequestId, Space};
use crate::translate::Translator;
use pass::{Kept, Pass};

pub use supply::{Cause, SupplyError};

/// How the CPU is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// Nothing is owed: go on.
    Resume,
    /// The answer to the last [`Exit::Request`].
    Answer(Answer),
}

/// Why the CPU came out. It always stands between two instructions, or at the start of one that is in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Something outside is wanted; enter again with its answer.
    Request(Request),
    /// The instruction under RIP is executed elsewhere ([`Emulator::leave`]).
    Elsewhere,
    /// Somebody called for [`Attention`], or the window opened that [`Emulator::request_window`] asked for.
    Attention,
    /// Halted until an event is injected.
    Halt,
    /// A triple fault.
    Shutdown,
}

/// The emulator cannot go on. The guest's own faults are never errors.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The record of an instruction failed.
    #[error("the instruction cannot be executed again")]
    Replay(#[from] ReplayError),
    /// Entered without the answer that an instruction waits for.
    #[error("resumed while request {0} waits for its answer")]
    AnswerOwed(RequestId),
}

/// One CPU in software.
pub struct Emulator {
    cpu: Cpu,
    fast: Fast,
    careful: Careful,
    blocks: Blocks,
    /// The second tier, if there is one.
    translator: Option<Box<Translator>>,
    model: Arc<Model>,
    /// Instructions that are not executed here.
    elsewhere: Option<Elsewhere>,
    attention: Arc<Attention>,
    /// The instruction in flight, decoded by its first pass here.
    kept: Option<Kept>,
    /// The count of instructions at which to come out.
    limit: u64,
    /// The count below which a whole block can be executed before that.
    block_limit: u64,
    /// How many events may have been delivered, ever, when it comes out.
    event_limit: u64,
    /// The fast way is not taken.
    careful_only: bool,
    /// Come out as soon as interrupts can be taken.
    window: bool,
    /// Come out as soon as an NMI can be taken.
    nmi_window: bool,
    counters: Counters,
}

/// What the CPU has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Instructions retired (iterations of repeated ones count).
    pub instructions: u64,
    /// Passes of the careful way.
    pub passes: u64,
    /// Reads answered from the replay cache.
    pub replays: u64,
    /// Requests made to the outside.
    pub requests: u64,
    /// Answers that nobody waited for.
    pub stale_answers: u64,
    /// Instructions in flight that were cancelled.
    pub cancellations: u64,
    /// Exceptions and interrupts delivered.
    pub events: u64,
    /// Blocks decoded.
    pub blocks: u64,
    /// Data accesses that missed the software TLB.
    pub tlb_misses: u64,
    /// Those that missed its second level, too: page tables were walked.
    pub walks: u64,
    /// Blocks translated into code of the host.
    pub translations: u64,
    /// Instructions retired in translated code; they are among [`instructions`](Self::instructions).
    pub translated: u64,
    /// How often translated code was left: for a data access that missed the first level of the TLB,
    pub miss_exits: u64,
    /// for instructions that are interpreted between two pieces of a block,
    pub step_exits: u64,
    /// for an instruction that is interpreted before anything else can be said,
    pub interpret_exits: u64,
    /// for a jump whose target was not known yet,
    pub jump_exits: u64,
    /// and for a limit or a signal.
    pub stop_exits: u64,
    /// How often there was no more room for translated code, and all of it was dropped.
    pub evictions: u64,
    /// Bytes of translated code that there are now.
    pub code_bytes: u64,
    /// How often code was found overwritten while there was translated code, however much of it at once.
    pub invalidations: u64,
}

impl Emulator {
    /// Deliveries of events that [`run_at_most`](Self::run_at_most) allows for however few instructions.
    pub const DELIVERIES: u64 = 64;

    /// A CPU in state `cpu` that executes from `ram` and announces itself as `cpuid` says.
    pub fn new(cpu: Cpu, ram: Arc<Ram>, host: Arc<dyn Host>, model: Arc<Model>, cpuid: Arc<CpuidTable>) -> Emulator {
        let attention = Arc::new(Attention::default());
        ram.code.register(attention.clone());
        let mut cpu = cpu;
        cpu.refresh();
        let fast = Fast::new(ram.clone(), host.clone());
        let mut blocks = Blocks::new();
        blocks.set_spaces(fast.tlb.spaces());
        Emulator {
            cpu,
            fast,
            careful: Careful::new(ram, host, cpuid),
            blocks,
            translator: None,
            model,
            elsewhere: None,
            attention,
            kept: None,
            limit: u64::MAX,
            block_limit: u64::MAX,
            event_limit: u64::MAX,
            careful_only: false,
            window: false,
            nmi_window: false,
            counters: Counters::default(),
        }
    }

    /// The architectural state.
    pub fn cpu(&self) -> &Cpu {
        &self.cpu
    }

    /// Replaces the architectural state. An instruction in flight is cancelled.
    pub fn set_cpu(&mut self, cpu: Cpu) {
        self.cancel();
        self.cpu = cpu;
        self.cpu.refresh();
        self.forget(Flush::All);
    }

    /// Becomes another processor model: one that executes what `model` says and announces itself as `cpuid` says. The CPU's
    /// state must be one that it can be in.
    pub fn set_model(&mut self, model: Arc<Model>, cpuid: Arc<CpuidTable>) {
        self.model = model;
        self.careful.cpuid = cpuid;
        self.kept = None;
        // Blocks are decoded for a model.
        self.blocks.clear();
        if let Some(translator) = &mut self.translator {
            translator.clear(&mut self.fast.tlb.state);
        }
        self.forget(Flush::All);
    }

    /// The instruction in flight, if there is one: to be saved with [`cpu`](Self::cpu).
    pub fn in_flight(&self) -> Option<InFlight> {
        self.careful.save()
    }

    /// Takes over a CPU that was saved, with its instruction in flight. Whatever was in flight here is dropped, with
    /// the stores that it had left.
    ///
    /// # Errors
    /// [`InFlightError`]; nothing has changed then.
    pub fn restore(&mut self, cpu: Cpu, in_flight: Option<&InFlight>) -> Result<(), InFlightError> {
        let dropped = self.careful.in_flight();
        self.careful.restore(in_flight)?;
        self.counters.cancellations += u64::from(dropped);
        self.kept = None;
        self.cpu = cpu;
        self.cpu.refresh();
        self.window = false;
        self.nmi_window = false;
        self.forget(Flush::All);
        self.attention.leave(self.keeps_translations());
        Ok(())
    }

    /// The request whose answer the instruction in flight waits for.
    pub fn waiting_for(&self) -> Option<Request> {
        self.careful.awaited()
    }

    /// Looks at guest memory past the instruction in flight, whose record is suspended meanwhile.
    pub fn aside(&mut self) -> Aside<'_> {
        Aside::new(&self.cpu, &mut self.careful)
    }

    /// Changes the architectural state in place. An instruction in flight is cancelled.
    pub fn change(&mut self, change: impl FnOnce(&mut Cpu)) {
        self.cancel();
        change(&mut self.cpu);
        self.cpu.refresh();
        self.forget(Flush::All);
    }

    /// Takes the CPU out of HLT.
    pub fn wake(&mut self) {
        if self.cpu.activity == Activity::Halted {
            self.cpu.activity = Activity::Running;
        }
    }

    /// Gets this CPU's attention from other threads.
    pub fn attention(&self) -> &Arc<Attention> {
        &self.attention
    }

    /// What the CPU has done so far.
    pub fn counters(&self) -> Counters {
        Counters {
            replays: self.careful.replayed(),
            blocks: self.blocks.decoded,
            tlb_misses: self.fast.misses,
            walks: self.fast.walks,
            translations: self.translator.as_ref().map_or(0, |translator| translator.made),
            evictions: self.translator.as_ref().map_or(0, |translator| translator.evictions),
            code_bytes: self.translator.as_ref().map_or(0, |translator| translator.code_bytes()),
            ..self.counters
        }
    }

    /// An instruction has begun and neither retired nor faulted; no event can be injected.
    pub fn is_in_flight(&self) -> bool {
        self.careful.in_flight()
    }

    /// Injects an event, to be delivered before the next instruction. False, and nothing changes, if the CPU cannot
    /// take one now: it has one already, or an instruction is in flight.
    pub fn inject(&mut self, event: Event) -> bool {
        if self.cpu.event.is_some() || self.careful.in_flight() {
            return false;
        }
        self.cpu.event = Some(event);
        true
    }

    /// Executes everything the careful way from now on, or no longer: slowly, and to the same effect.
    pub fn set_careful(&mut self, only: bool) {
        self.careful_only = only;
    }

    /// Asks for [`Exit::Attention`] as soon as maskable interrupts can be taken.
    pub fn request_window(&mut self) {
        self.window = true;
    }

    /// Asks for [`Exit::Attention`] as soon as a non-maskable interrupt can be taken.
    pub fn request_nmi_window(&mut self) {
        self.nmi_window = true;
    }

    /// What the instruction in flight has read so far, in order; empty when it has retired, even if a device has not
    /// completed its last store yet.
    pub fn record(&self) -> &[replay::Entry] {
        self.careful.record()
    }

    /// Drops the instruction in flight, if there is one; what it waited for is answered in vain. One that has retired
    /// can no longer be dropped: nobody waits for the completion of its last store any more, but the stores that it has
    /// left are made when the CPU runs again, before anything else.
    pub fn cancel(&mut self) {
        if self.careful.cancel() {
            self.counters.cancellations += 1;
        }
        self.attention.leave(self.keeps_translations());
    }

    /// An instruction is in flight that will go on with the translations it has made. Those that wait for anything but a port or
    /// memory have no operands there.
    fn keeps_translations(&self) -> bool {
        match self.careful.awaited() {
            Some(request) => matches!(request.space, Space::Port | Space::Memory),
            None => self.careful.in_flight(),
        }
    }

    /// From now on, comes out with [`Exit::Elsewhere`] before the instructions that `elsewhere` leaves to somebody else. One
    /// that is in flight is executed here.
    pub fn leave(&mut self, elsewhere: Option<Elsewhere>) {
        if Elsewhere::number(self.elsewhere) != Elsewhere::number(elsewhere) {
            self.forget_linear();
        }
        self.elsewhere = elsewhere;
    }

    /// Guest memory is written by others who do not say so, as guest code that a hypervisor runs does: decoded instructions
    /// are compared with it after each [`change`](Self::change) of the CPU's state, before they are executed.
    pub fn distrust_memory(&mut self) {
        self.blocks.distrust_memory();
    }

    /// Runs until something outside the CPU is needed.
    ///
    /// # Errors
    /// [`Error`]. The CPU's state is that before the instruction that failed.
    pub fn run(&mut self, entry: Entry) -> Result<Exit, Error> {
        if let Entry::Answer(answer) = entry
            && !self.careful.answer(answer)?
        {
            self.counters.stale_answers += 1;
        }
        if let Some(id) = self.careful.waiting_for() {
            return Err(Error::AnswerOwed(id));
        }
        self.attention.enter();
        let exit = self.run_until_exit();
        self.attention.leave(self.keeps_translations());
        exit
    }

    /// As [`run`](Self::run), but comes out with [`Exit::Attention`] after `instructions` at the latest (what repeats
    /// may count once for many iterations). Deliveries of events are counted by themselves: after as many, or
    /// [`DELIVERIES`](Self::DELIVERIES) if that is more, it comes out too, since exceptions may follow each other without an
    /// instruction between them, for ever. Nothing is in flight then.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_at_most(&mut self, entry: Entry, instructions: u64) -> Result<Exit, Error> {
        self.set_limit(self.counters.instructions.saturating_add(instructions));
        let deliveries = instructions.max(Self::DELIVERIES);
        self.event_limit = self.counters.events.saturating_add(deliveries);
        let exit = self.run(entry);
        self.set_limit(u64::MAX);
        self.event_limit = u64::MAX;
        exit
    }

    fn run_until_exit(&mut self) -> Result<Exit, Error> {
        if self.careful.in_flight()
            && let Pass::Wants(request) = self.pass()?
        {
            return Ok(self.wants(request));
        }
        loop {
            if self.attention.any() {
                if self.attention.wants_writes_dropped() {
                    self.fast.tlb.flush_writes();
                    self.attention.writes_dropped();
                }
                if self.attention.wants_flush() {
                    self.forget(Flush::All);
                    self.attention.flushed();
                }
                if self.attention.take_code_overwritten() {
                    self.counters.invalidations += 1;
                    self.forget_jumps();
                }
                if self.attention.take_call() {
                    return Ok(Exit::Attention);
                }
            }
            let is_enough = self.counters.instructions >= self.limit || self.counters.events >= self.event_limit;
            if is_enough && self.cpu.event.is_none() {
                return Ok(Exit::Attention);
            }
            if self.window && self.cpu.accepts_interrupts() {
                self.window = false;
                return Ok(Exit::Attention);
            }
            if self.nmi_window && self.cpu.accepts_nmi() {
                self.nmi_window = false;
                return Ok(Exit::Attention);
            }
            let pass = if self.cpu.event.is_some() {
                self.pass()?
            } else {
                match self.cpu.activity {
                    Activity::Running => self.advance()?,
                    Activity::Halted | Activity::WaitForSipi => return Ok(Exit::Halt),
                    Activity::Shutdown => return Ok(Exit::Shutdown),
                }
            };
            match pass {
                Pass::Done => {}
                Pass::Wants(request) => return Ok(self.wants(request)),
                Pass::Elsewhere => return Ok(Exit::Elsewhere),
            }
        }
    }

    fn wants(&mut self, request: Request) -> Exit {
        self.counters.requests += 1;
        Exit::Request(request)
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        let ram = self.fast.tlb.ram().clone();
        ram.code.unregister(&self.attention);
    }
}

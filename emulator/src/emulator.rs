//! The main path: blocks of instructions the fast way, single instructions the careful way, events between them.

mod pass;
mod supply;
mod tier;

use std::sync::Arc;

use crate::access::Stop;
use crate::attention::Attention;
use crate::blocks::{BLOCK_OPS, Block, Blocks, Decoding, is_near_end};
use crate::careful::{Aside, Careful, Flush, InFlight, InFlightError};
use crate::cpu::{Activity, Cpu, Cr4, Shadow, flags, gpr};
use crate::cpuid::CpuidTable;
use crate::debug;
use crate::elsewhere::Elsewhere;
use crate::event::{self, Event, Exception, Source};
use crate::fast::Fast;
use crate::host::Host;
use crate::model::Model;
use crate::op::Op;
use crate::ram::{PAGE_SIZE, Ram};
use crate::replay::{self, ReplayError};
use crate::request::{Answer, Request, RequestId, Space};
use crate::translate::Translator;
use pass::{Kept, Pass};
use tier::Climb;

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

    /// Executes instructions until something is to be looked at.
    fn advance(&mut self) -> Result<Pass, Error> {
        // Single steps and breakpoints are the careful way's business, and so is what only a return or a task switch brings about.
        let is_debugged = self.cpu.flags.any(flags::TF) || debug::is_armed(&self.cpu) || self.cpu.breakpoints != 0;
        if is_debugged || self.careful_only || self.cpu.has_waiting_interrupt() {
            return self.pass();
        }
        // RF is over with the instruction that it was for. A fault sets it again, and so does what repeats.
        let resuming = self.cpu.flags.any(flags::RF);
        self.cpu.flags.assign(flags::RF, false);
        let retired = self.counters.instructions;
        let shadow = self.cpu.shadow;
        let left = if shadow != Shadow::None {
            self.run_one()
        } else if self.may_run_blocks() {
            self.run_blocks()
        } else {
            self.run_near_limit()
        };
        if resuming && self.counters.instructions == retired {
            self.cpu.flags.assign(flags::RF, true);
        }
        match left {
            Left::LookAround => {
                self.end_shadow(shadow);
                Ok(Pass::Done)
            }
            Left::Careful => self.pass(),
        }
    }

    /// An instruction has retired that began under `shadow`: that shadow is over, unless the instruction cast its own.
    fn end_shadow(&mut self, shadow: Shadow) {
        if shadow != Shadow::None && self.cpu.shadow == shadow && self.cpu.event.is_none() {
            self.cpu.shadow = Shadow::None;
        }
    }

    fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
        self.block_limit = limit.saturating_sub(BLOCK_OPS as u64 - 1);
    }

    /// A whole block does not exceed the limit.
    #[inline(always)]
    fn may_run_blocks(&self) -> bool {
        self.counters.instructions < self.block_limit
    }

    /// Executes blocks the fast way.
    fn run_blocks(&mut self) -> Left {
        'blocks: loop {
            if self.attention.any() || !self.may_run_blocks() {
                return Left::LookAround;
            }
            let Some(mut block) = self.block() else {
                return Left::Careful;
            };
            if self.translator.is_some() {
                match self.climb(block) {
                    Climb::Interpret => {}
                    Climb::Again => continue,
                    Climb::Back(left) => return left,
                    Climb::One => {
                        if self.attention.any() || self.counters.instructions >= self.limit {
                            return Left::LookAround;
                        }
                        let Some(found) = self.block() else {
                            return Left::Careful;
                        };
                        block = self.blocks.first_of(found);
                    }
                }
            }
            let ops = self.blocks.ops(block);
            if ops.is_empty() {
                return Left::Careful;
            }
            let start = self.cpu.rip;
            self.cpu.gpr.set(gpr::BLOCK_IP, start);
            'again: loop {
                for (done, op) in ops.iter().enumerate() {
                    let Err(stop) = (op.run)(&mut self.cpu, &mut self.fast, op) else {
                        continue;
                    };
                    if stop == Stop::Taken {
                        self.counters.instructions += done as u64 + 1;
                        // A loop around one block needs no search for it.
                        let same = self.cpu.rip == start
                            && self.translator.is_none()
                            && !self.attention.any()
                            && self.may_run_blocks();
                        if same && self.blocks.is_valid(block, self.fast.tlb.ram()) {
                            continue 'again;
                        }
                        continue 'blocks;
                    }
                    let Err(stop) = try_again(&mut self.cpu, &mut self.fast, op, stop) else {
                        continue;
                    };
                    let (len, off) = (op.len, op.off);
                    self.counters.instructions += done as u64;
                    return self.stopped(stop, len, off);
                }
                break;
            }
            self.counters.instructions += ops.len() as u64;
            self.cpu.rip = self
                .cpu
                .truncate_ip(self.cpu.rip.wrapping_add(u64::from(block.advance)));
        }
    }

    /// Executes one instruction the fast way.
    fn run_one(&mut self) -> Left {
        let Some(block) = self.block() else {
            return Left::Careful;
        };
        let Some(op) = self.blocks.ops(block).first() else {
            return Left::Careful;
        };
        let jumps = block.count == 1 && block.advance == 0;
        let (len, off) = (op.len, op.off);
        self.cpu.gpr.set(gpr::BLOCK_IP, self.cpu.rip);
        let outcome = (op.run)(&mut self.cpu, &mut self.fast, op)
            .or_else(|stop| try_again(&mut self.cpu, &mut self.fast, op, stop));
        match outcome {
            Ok(()) => {
                if !jumps {
                    self.cpu.rip = self.cpu.truncate_ip(self.cpu.rip.wrapping_add(u64::from(len)));
                }
                self.counters.instructions += 1;
                Left::LookAround
            }
            Err(stop) => self.stopped(stop, len, off),
        }
    }

    /// The block under RIP, if that can be executed the fast way.
    #[inline(always)]
    fn block(&mut self) -> Option<Block> {
        let view = &self.cpu.view;
        let linear = if view.is_long() {
            self.cpu.rip
        } else {
            self.cpu.linear_code(self.cpu.rip).ok()?
        };
        let block = match self.blocks.jump(linear, view.code_context, self.fast.tlb.ram()) {
            Some(block) => block,
            None => self.find_block(linear)?,
        };
        if !self.cpu.view.is_long() {
            // The whole block must lie within the code segment.
            let last = self.cpu.rip + u64::from(block.length.max(1)) - 1;
            if last > u64::from(self.cpu.segments[crate::cpu::Seg::Cs].limit) || last > self.cpu.view.ip_mask {
                return None;
            }
        }
        Some(block)
    }

    #[cold]
    fn find_block(&mut self, linear: u64) -> Option<Block> {
        let page = self.fast.fetch_page(&self.cpu, linear)?;
        let mut decoding = Decoding {
            elsewhere: self.elsewhere,
            table: &self.model.fast,
            view: self.cpu.view,
            fast: &mut self.fast,
            attention: &self.attention,
        };
        let block = self.blocks.find(page, linear, &mut decoding);
        if block.count > 0 {
            return Some(block);
        }
        // Perhaps the instruction runs on into the next page.
        let across = next_page(&self.cpu, linear)
            .and_then(|next| decoding.fast.fetch_page(&self.cpu, next))
            .and_then(|next| self.blocks.find_across([page, next], linear, &mut decoding));
        Some(across.unwrap_or(block))
    }

    /// An instruction of a block did not simply run on into the next.
    #[cold]
    fn stopped(&mut self, stop: Stop, len: u8, off: u8) -> Left {
        let ip = self.cpu.truncate_ip(self.cpu.rip.wrapping_add(u64::from(off)));
        match stop {
            Stop::Careful | Stop::Elsewhere | Stop::Retry | Stop::Await | Stop::Failed => {
                self.cpu.rip = ip;
                Left::Careful
            }
            Stop::Fault(exception) => {
                self.cpu.rip = ip;
                self.fault(exception, self.fast.fault_address);
                Left::LookAround
            }
            Stop::Next | Stop::Jumped | Stop::Taken | Stop::Stay => {
                match stop {
                    Stop::Next => self.cpu.rip = self.cpu.truncate_ip(ip.wrapping_add(u64::from(len))),
                    Stop::Stay => {
                        self.cpu.rip = ip;
                        self.repeats();
                    }
                    _ => {}
                }
                self.counters.instructions += 1;
                Left::LookAround
            }
        }
    }

    /// Raises the exception that the instruction under RIP earned.
    fn fault(&mut self, exception: Exception, address: u64) {
        let cr2 = (exception.vector == event::PF).then_some(address);
        let (vector, error_code) = (exception.vector, exception.error_code());
        self.cpu.event = Some(Event {
            vector,
            source: Source::Fault,
            error_code,
            cr2,
            length: 0,
        });
    }

    fn forget(&mut self, flush: Flush) {
        let tlb = &mut self.fast.tlb;
        let cr4 = self.cpu.cr4;
        let pcid = if cr4.any(Cr4::PCIDE) {
            self.cpu.cr3 as u16 & 0xfff
        } else {
            0
        };
        let before = tlb.spaces().numbers();
        match flush {
            Flush::None => return,
            Flush::Page(linear) => {
                if !tlb.flush_page(linear) {
                    if !self.blocks.is_executed(linear) {
                        return;
                    }
                    tlb.renew_space(linear);
                }
            }
            Flush::Switch { keep } => tlb.switch(pcid, keep),
            Flush::Pcid(pcid) => tlb.flush_pcid(pcid),
            Flush::Local => tlb.flush_local(pcid),
            Flush::All => {
                tlb.flush();
                tlb.switch(pcid, false);
            }
        }
        self.follow_spaces(before);
    }

    /// Forgets which code is at which linear address.
    fn forget_linear(&mut self) {
        let before = self.fast.tlb.spaces().numbers();
        self.fast.tlb.renew_spaces();
        self.follow_spaces(before);
    }

    /// Address spaces have changed, perhaps, since they were those `before`: code is no longer where it was.
    fn follow_spaces(&mut self, before: [u64; 2]) {
        let spaces = self.fast.tlb.spaces();
        let (now, is_alone) = (spaces.numbers(), spaces.is_alone());
        self.blocks.set_spaces(spaces);
        for half in 0..2 {
            if now[half] != before[half] {
                // What others have executed is found when they are back.
                if half == 1 || is_alone {
                    self.blocks.forget_executed(half);
                }
                self.fast.tlb.state.forget_jumps_of(half);
            }
        }
    }
}

/// The linear address of the page behind that of `linear`, if an instruction there may run on into it.
fn next_page(cpu: &Cpu, linear: u64) -> Option<u64> {
    let next = (linear | (PAGE_SIZE - 1)).checked_add(1)?;
    let is_there = cpu.view.is_long() || u32::try_from(next).is_ok();
    (is_there && is_near_end(linear)).then_some(next)
}

/// Tries an instruction again as long as the fast way learns translations for it. Two operands may compete for one
/// place in the TLB, so there is an end to that.
#[cold]
#[inline(never)]
fn try_again(cpu: &mut Cpu, fast: &mut Fast, op: &Op<Fast>, stop: Stop) -> Result<(), Stop> {
    const TRIES: u32 = 8;
    let mut outcome = Err(stop);
    for _ in 0..TRIES {
        if outcome != Err(Stop::Retry) {
            return outcome;
        }
        outcome = (op.run)(cpu, fast, op);
    }
    outcome
}

/// Why the fast way came back.
enum Left {
    /// Between two instructions; something may have changed.
    LookAround,
    /// The instruction under RIP must be executed carefully.
    Careful,
}

impl Drop for Emulator {
    fn drop(&mut self) {
        let ram = self.fast.tlb.ram().clone();
        ram.code.unregister(&self.attention);
    }
}

//! Instructions that KVM cannot emulate are finished in the emulator.
//!
//! # Purpose
//! KVM emulates instructions that access devices, and on some hosts whole stretches of guest code; what it does not know it
//! gives up (KVM_INTERNAL_ERROR_EMULATION), and with it the guest. A [`Rescuer`] finishes that instruction and lets KVM go
//! on. This crate's own vCPUs have one each; another program that drives KVM with `kvm-ioctls` adds one to its own loop.
//! # How to add it to a loop
//! 1. Enable KVM_CAP_EXIT_ON_EMULATION_FAILURE for the machine, so that KVM tells the instruction's bytes.
//! 2. Make a [`Rescuer`] for each vCPU, on the [`Ram`] of the machine. It has KVM_RUN leave registers and events in the run
//!    structure, which costs some hundredths of an exit. It asks KVM what CPUID says.
//! 3. After each exit, once a read is answered in the run structure, call [`Rescuer::note`]. An instruction that fails may have
//!    read a device before (CMPXCHG16B reads 16 bytes in two exits), which must not be read again.
//! 4. At an exit for an internal error, [`EmulationFailure::of`] tells whether it is one that can be rescued. Call
//!    [`Rescuer::rescue`], and answer what it asks with [`Rescuer::answer`], until it is [`Rescued::Done`]. Then go on with
//!    KVM_RUN at once: registers that have changed wait in the run structure for it.
//!
//! `examples/rescue.rs` of this crate does this in a few lines.
//! # Invariants
//! - Every rescue executes an instruction, or raises an event, or fails, unless somebody calls for attention: it never goes round in
//!   circles.
//! - Nothing that the emulator knew of guest memory is believed at the next rescue: guest code has run since.
//! - While the emulator holds state, KVM's is that before the instruction, and KVM_RUN is not called.
//! # Life
//! `idle` -[`rescue`](Rescuer::rescue)-> `first`: the instruction itself -> `ahead`: what follows it, as far as
//! [running ahead](#running-ahead) goes -> `idle`. While a device owes an answer, it stands still in `first` or `ahead`.
//! # Running ahead
//! Where failures come thick, some instructions more are executed here before the state goes back; vector registers are
//! fetched when one of them needs them. What only KVM can do (its registers, translations, interrupts, ports) ends that, and
//! so does an integer store but to the stack.
//! # Limits
//! - Registers of interrupt controllers inside KVM are not there for a rescued instruction: they read as all ones.
//! - Breakpoints in debug registers are not looked at for a rescued instruction, as data breakpoints are not by KVM's own
//!   emulation. Software that runs on notices within eight rescues that the guest has set one.
//! - A store by a rescued instruction to a page table that KVM shadows (no EPT, no NPT) is not noticed there.

mod ahead;
mod figures;
mod needs;
mod syscalls;
mod transfer;
mod vcpu;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic};
use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use kvm_ioctls::{SyncReg, VcpuFd};
use reprise_emulator::cpu::{Activity, flags};
use reprise_emulator::cpuid::CpuidTable;
use reprise_emulator::event;
use reprise_emulator::{
    Answer as Reply, Attention, Cause, Cpu, Direction, Emulator, Entry, Exit, Host, Model, Ram, Reply as Content,
    Request, Space,
};

use self::ahead::Ahead;
use self::figures::Figures;
use self::needs::Parts;
pub(super) use self::syscalls::Watch;
use self::transfer::Held;
use super::backing::Backing;
use super::cpu::Shape;
use super::error::{KvmError, KvmVcpuError, Named};
use super::failure::{EmulationFailure, Obtained};
use super::{cpuid, msrs};
use crate::{Answer, IoRequest, RequestId};

/// The least bound with which software runs on.
const WORTH: u32 = 4;
/// So many times software runs on without a look for breakpoints, once there were none: that costs as much as half an exit.
const UNWATCHED: u32 = 7;

/// What became of a rescue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rescued {
    /// The instruction is finished, and KVM goes on.
    Done,
    /// A device access; [`Rescuer::answer`] brings its answer.
    Io(IoRequest),
    /// It led to a triple fault: the processor has shut down.
    Shutdown,
}

/// Finishes what KVM cannot emulate, for one vCPU. The [module](self) tells how to use it.
pub struct Rescuer {
    emulator: Emulator,
    model: Arc<Model>,
    cpuid: Arc<CpuidTable>,
    shape: Arc<Shape>,
    moment: Arc<Moment>,
    held: Held,
    /// What is being rescued.
    failure: Option<EmulationFailure>,
    /// What is under way was begun elsewhere; KVM has nothing of it.
    adopted: bool,
    /// The device access that is under way.
    asked: Option<IoRequest>,
    /// So many times software runs on before it looks for breakpoints again.
    unwatched: u32,
    /// Instructions left to be executed behind the first, and which are KVM's then.
    left: u64,
    /// The first instruction is not done yet.
    first: bool,
    /// Instructions executed before the first.
    started: u64,
    /// Instructions executed when the first was done.
    begun: u64,
    ahead: Ahead,
    /// KVM came out for nothing else since the last rescue.
    directly: bool,
    reads: Reads,
    figures: Figures,
}

/// Clock and chance for rescued instructions: the time-stamp counter as it was when the state was read.
#[derive(Default)]
struct Moment(AtomicU64);

impl Host for Moment {
    fn tsc(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn random(&self) -> u64 {
        getrandom::u64().expect("getrandom(2) does not fail on a host that has booted")
    }
}

/// What devices have answered to the instruction under RIP in exits of KVM, and the registers then.
#[derive(Default)]
struct Reads {
    answers: Vec<Obtained>,
    by: kvm_bindings::kvm_regs,
}

impl Rescuer {
    /// For `vcpu`, whose guest-physical memory is `ram`. KVM_SET_CPUID2 must have been called. One [`Ram`] is shared by the
    /// vCPUs of a machine.
    ///
    /// # Errors
    /// [`KvmError::Call`] if KVM does not say what CPUID does.
    pub fn new(vcpu: &mut VcpuFd, ram: &Arc<Ram>) -> Result<Self, KvmError> {
        // Which may be more than it was given.
        let cpuid = vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES).of_vm("KVM_GET_CPUID2")?;
        let entries: Vec<_> = cpuid.as_slice().iter().map(cpuid::from_kvm).collect();
        let shape = Shape {
            msrs: msrs::Known::probe(vcpu),
            layout: cpuid::layout(cpuid.as_slice()),
            has_xsave: cpuid::has_xsave(&entries),
            halves_syscalls: Backing::of_this_host().halves_syscalls(),
        };
        Ok(Self::of_model(
            vcpu,
            ram,
            Arc::new(CpuidTable::new(entries)),
            Arc::new(shape),
        ))
    }

    /// For a vCPU that announces itself as `cpuid` says.
    fn of_model(vcpu: &mut VcpuFd, ram: &Arc<Ram>, cpuid: Arc<CpuidTable>, shape: Arc<Shape>) -> Self {
        for part in [SyncReg::Register, SyncReg::SystemRegister, SyncReg::VcpuEvents] {
            vcpu.set_sync_valid_reg(part);
        }
        let (moment, model) = (Arc::<Moment>::default(), Arc::new(Model::announcing(&cpuid)));
        let mut emulator = Emulator::new(
            Cpu::reset(),
            Arc::clone(ram),
            moment.clone(),
            Arc::clone(&model),
            Arc::clone(&cpuid),
        );
        emulator.distrust_memory();
        Self {
            emulator,
            model,
            cpuid,
            shape,
            moment,
            held: Held::new(),
            failure: None,
            adopted: false,
            asked: None,
            unwatched: 0,
            left: 0,
            first: false,
            started: 0,
            begun: 0,
            ahead: Ahead::default(),
            directly: false,
            reads: Reads::default(),
            figures: Figures::default(),
        }
    }

    /// Takes note of the exit that KVM_RUN came back with, once it is answered in the run structure.
    pub fn note(&mut self, vcpu: &mut VcpuFd) {
        let registers = vcpu.sync_regs().regs;
        self.directly = false;
        let Some(read) = Obtained::of(vcpu) else {
            self.reads.answers.clear();
            return;
        };
        // An instruction that has ended has moved RIP, or counted, or asks the same again.
        let again = |own: &Obtained| (own.space, own.address) == (read.space, read.address);
        if registers != self.reads.by || self.reads.answers.iter().any(again) {
            self.reads.answers.clear();
            self.reads.by = registers;
        }
        self.reads.answers.push(read);
    }

    /// Finishes the instruction that KVM_RUN has just given up.
    ///
    /// # Errors
    /// [`KvmVcpuError::Emulation`] if the emulator does not know the instruction either, or another [`KvmVcpuError`] if it
    /// cannot be finished; the guest cannot go on then.
    pub fn rescue(&mut self, vcpu: &mut VcpuFd, mut failure: EmulationFailure) -> Result<Rescued, KvmVcpuError> {
        if failure.obtained.is_empty() && self.reads.by == vcpu.sync_regs().regs {
            failure.obtained = std::mem::take(&mut self.reads.answers);
        }
        self.reads.answers.clear();
        let instruction = failure.instruction();
        if let Some(instruction) = &instruction
            && self.is_unknown(instruction)
        {
            let failure = Box::new(failure);
            return Err(KvmVcpuError::Emulation { failure });
        }
        let bound = self.ahead.bound(std::mem::replace(&mut self.directly, true));
        self.begin(vcpu, instruction.as_ref(), bound)?;
        if self.take_back(vcpu, &mut failure)? {
            self.failure = Some(failure);
            return self.go_on(vcpu, Entry::Resume, 1);
        }
        self.figures
            .count(instruction.map_or(Mnemonic::INVALID, |instruction| instruction.mnemonic()));
        if let Err(refused) = self.emulator.supply(&failure.bytes, Cause::Emulation) {
            tracing::trace!(%refused, "the instruction's bytes are fetched");
        }
        for Obtained {
            space,
            address,
            size,
            value,
        } in &failure.obtained
        {
            let space = match space {
                crate::Space::Port => Space::Port,
                crate::Space::Memory => Space::Memory,
            };
            if let Err(refused) = self.emulator.supply_answer(space, *address, *size, *value) {
                tracing::debug!(%refused, "a device is asked again");
            }
        }
        self.failure = Some(failure);
        self.go_on(vcpu, Entry::Resume, 1)
    }

    /// Brings the answer to [`Rescued::Io`].
    ///
    /// # Errors
    /// As [`rescue`](Self::rescue), and [`KvmVcpuError::AnswerOwed`] if it is not the answer that is waited for; nothing has
    /// changed then.
    pub fn answer(&mut self, vcpu: &mut VcpuFd, answer: Answer) -> Result<Rescued, KvmVcpuError> {
        let entry = self.enter(answer)?;
        self.go_on(vcpu, entry, 0)
    }

    /// Goes on from where KVM stands, the beginning of the guest's page fault handler.
    fn handle_fault(&mut self, vcpu: &mut VcpuFd, mut place: EmulationFailure) -> Result<Rescued, KvmVcpuError> {
        self.reads.answers.clear();
        self.begin(vcpu, None, 1)?;
        self.take_back(vcpu, &mut place)?;
        self.failure = Some(place);
        self.go_on(vcpu, Entry::Resume, 1)
    }

    /// Whether the processor has been put back before a SYSCALL that KVM has left half done; `place` is that then.
    fn take_back(&mut self, vcpu: &VcpuFd, place: &mut EmulationFailure) -> Result<bool, KvmVcpuError> {
        let taken = self.shape.halves_syscalls && syscalls::take_back(vcpu, &mut self.emulator)?;
        if taken {
            self.figures.count(Mnemonic::Syscall);
            place.rip = self.emulator.cpu().rip;
            place.bytes.clear();
        }
        Ok(taken)
    }

    /// The device access whose answer is owed.
    pub fn waiting(&self) -> Option<IoRequest> {
        self.asked
    }

    /// Gets a rescue out: a guest whose exception handlers fault again and again executes no instruction, and is left to KVM
    /// when somebody calls here.
    pub fn attention(&self) -> &Arc<Attention> {
        self.emulator.attention()
    }

    /// Figures: `rescues` in all, `rescue_state_transfers`, `rescue_run_ahead` (instructions executed behind rescued ones),
    /// `rescue_run_ahead_longest`, and `rescued_` with each mnemonic that there was.
    pub fn figures(&self) -> Vec<(&'static str, u64)> {
        self.figures.list()
    }

    /// The emulator's end of an answer.
    fn enter(&mut self, answer: Answer) -> Result<Entry, KvmVcpuError> {
        match (self.asked, self.emulator.waiting_for()) {
            (Some(asked), Some(own)) if asked.id == answer.id => {
                self.asked = None;
                Ok(Entry::Answer(Reply {
                    id: own.id,
                    reply: Content::Value(answer.value),
                }))
            }
            (asked, _) => Err(KvmVcpuError::AnswerOwed {
                waiting: asked.map(|request| request.id),
            }),
        }
    }

    /// Whether the guest may expect that the instruction is executed, and it cannot be. Others are undefined.
    fn is_unknown(&self, instruction: &Instruction) -> bool {
        let meant = matches!(instruction.mnemonic(), Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2);
        let features = instruction.cpuid_features();
        !meant
            && !self.model.supports(instruction.code())
            && features.iter().all(|feature| self.cpuid.announces(*feature))
    }

    /// Gets what `instruction` needs, and what is needed to run on by up to `bound` instructions, itself included.
    fn begin(&mut self, vcpu: &VcpuFd, instruction: Option<&Instruction>, bound: u32) -> Result<(), KvmVcpuError> {
        let came = vcpu.sync_regs();
        // Which instruction it is that must be fetched is not known yet.
        let mut parts = instruction.map_or(Parts::ALL, needs::needs);
        let exception = &came.events.exception;
        let debugging = (exception.injected | exception.pending) != 0 && exception.nr == event::DB;
        // Running on over a few instructions is not worth it.
        let runs_on = bound >= WORTH;
        let looks = runs_on && self.unwatched == 0;
        if debugging || came.regs.rflags & flags::TF != 0 || looks {
            parts = parts.with(Parts::DEBUG);
        }
        self.figures.transfers += 1;
        if let Some(tsc) = self.held.load(vcpu, &self.shape, parts, &mut self.emulator)? {
            self.moment.0.store(tsc, Ordering::Relaxed);
        }
        let cpu = self.emulator.cpu();
        let armed = cpu.dr7 & 0xff != 0;
        if looks {
            self.unwatched = if armed { 0 } else { UNWATCHED };
        } else if runs_on {
            self.unwatched -= 1;
        }
        let watched = armed || cpu.flags.any(flags::TF);
        self.left = if watched || !runs_on { 0 } else { u64::from(bound) - 1 };
        self.first = true;
        self.started = self.emulator.counters().instructions;
        self.emulator.leave(None);
        Ok(())
    }

    /// Executes up to `instructions` of what is at hand, and what follows.
    fn go_on(&mut self, vcpu: &mut VcpuFd, entry: Entry, instructions: u64) -> Result<Rescued, KvmVcpuError> {
        let (mut entry, mut instructions) = (entry, instructions);
        loop {
            let exit = self.emulator.run_at_most(entry, instructions);
            entry = Entry::Resume;
            let exit = exit.map_err(|source| KvmVcpuError::Rescue {
                rip: self.emulator.cpu().rip,
                mode: self.emulator.cpu().view.mode,
                bytes: self
                    .failure
                    .as_ref()
                    .map_or(Vec::new(), |failure| failure.bytes.clone()),
                source,
            })?;
            match exit {
                Exit::Request(request) => match request.space {
                    Space::Memory if !self.first && self.is_kernels(vcpu, &request) => {
                        self.emulator.cancel();
                        return self.finish(vcpu, false);
                    }
                    Space::Port | Space::Memory => {
                        let request = IoRequest::of(&request, RequestId(request.id));
                        self.asked = Some(request);
                        return Ok(Rescued::Io(request));
                    }
                    _ => {
                        let reply = platform(vcpu, &request)?;
                        entry = Entry::Answer(Reply { id: request.id, reply });
                        instructions = 0;
                    }
                },
                Exit::Shutdown => return self.shut_down(vcpu),
                // The limit was reached with the triple fault.
                Exit::Attention if self.emulator.cpu().activity == Activity::Shutdown => return self.shut_down(vcpu),
                Exit::Elsewhere if self.fetch_more(vcpu)? => {
                    instructions = self
                        .left
                        .saturating_sub(self.emulator.counters().instructions - self.begun);
                }
                Exit::Halt | Exit::Elsewhere => return self.finish(vcpu, false),
                Exit::Attention => {
                    let done = self.emulator.counters().instructions;
                    if std::mem::take(&mut self.first) {
                        self.begun = done;
                        self.emulator.leave(Some(needs::elsewhere(self.held.parts)));
                    }
                    // Somebody called. Nothing is in flight: either it has faulted, or it has not begun.
                    if done == self.started {
                        return self.finish(vcpu, false);
                    }
                    instructions = self.left.saturating_sub(done - self.begun);
                    if instructions == 0 {
                        return self.finish(vcpu, true);
                    }
                }
            }
        }
    }

    /// Gets what is needed to run on over the instruction under RIP, if that is all that is in the way.
    fn fetch_more(&mut self, vcpu: &VcpuFd) -> Result<bool, KvmVcpuError> {
        let Some(more) = self
            .under_rip()
            .and_then(|instruction| needs::wants(&instruction, self.held.parts))
        else {
            return Ok(false);
        };
        self.held.load_more(vcpu, &self.shape, more, &mut self.emulator)?;
        self.emulator.leave(Some(needs::elsewhere(self.held.parts)));
        Ok(true)
    }

    /// The instruction under RIP, if it lies in one page.
    fn under_rip(&mut self) -> Option<Instruction> {
        const PAGE: u64 = 0x1000;
        let cpu = self.emulator.cpu();
        let (bits, linear) = (cpu.view.code.bits(), cpu.linear_code(cpu.rip).ok()?);
        let mut bytes = [0; 15];
        let bytes = &mut bytes[..(PAGE - linear % PAGE).min(15) as usize];
        self.emulator.aside().read_linear(linear, bytes).then_some(())?;
        let instruction = Decoder::new(bits, bytes, DecoderOptions::AMD).decode();
        (!instruction.is_invalid()).then_some(instruction)
    }

    /// A read in a range where KVM has interrupt controllers of its own.
    fn is_kernels(&self, vcpu: &VcpuFd, request: &Request) -> bool {
        const PAGE: u64 = !0xfff;
        const IO_APIC: u64 = 0xfec0_0000;
        let page = request.address & PAGE;
        let local = vcpu.sync_regs().sregs.apic_base & PAGE;
        request.direction == Direction::Read && (page == IO_APIC || page == local)
    }

    /// A triple fault: KVM has the registers then, and is not to run.
    fn shut_down(&mut self, vcpu: &mut VcpuFd) -> Result<Rescued, KvmVcpuError> {
        self.finish(vcpu, false)?;
        if !self.adopted {
            Held::settle(vcpu)?;
        }
        Ok(Rescued::Shutdown)
    }

    /// Gives KVM its state back; `ran_out` if software could have gone on.
    fn finish(&mut self, vcpu: &mut VcpuFd, ran_out: bool) -> Result<Rescued, KvmVcpuError> {
        if !std::mem::take(&mut self.first) {
            let ahead = self.emulator.counters().instructions - self.begun;
            self.ahead.ended(ahead, ran_out);
            self.figures.count_ahead(ahead);
        }
        if !self.adopted {
            self.figures.transfers += 1;
            self.held.store(vcpu, &self.shape, self.emulator.cpu())?;
        }
        self.idle();
        Ok(Rescued::Done)
    }

    /// Nothing is under way, or no longer.
    fn idle(&mut self) {
        (self.failure, self.asked) = (None, None);
        self.held.parts = Parts::NONE;
    }
}

/// The answer to a request that is for no device.
fn platform(vcpu: &mut VcpuFd, request: &Request) -> Result<Content, KvmVcpuError> {
    Ok(match (request.space, request.direction) {
        (Space::Msr, Direction::Write(value)) => match msrs::set(vcpu, &[(request.address as u32, value)]) {
            Ok(()) => Content::Value(0),
            Err(_) => Content::Refused,
        },
        (Space::Msr, _) => match msrs::get(vcpu, &[request.address as u32]).as_deref() {
            Ok([value]) => Content::Value(*value),
            _ => Content::Refused,
        },
        (Space::TaskPriority, direction) => {
            let mut system = vcpu.get_sregs().of_vcpu("KVM_GET_SREGS")?;
            if let Direction::Write(value) = direction {
                system.cr8 = value & 0xf;
                vcpu.set_sregs(&system).of_vcpu("KVM_SET_SREGS")?;
                vcpu.sync_regs_mut().sregs.cr8 = system.cr8;
            }
            Content::Value(system.cr8)
        }
        _ => Content::Refused,
    })
}

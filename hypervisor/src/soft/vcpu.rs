//! One vCPU: the CPU in software, and the platform around it.
//!
//! # Life of a call to [`run`](Vcpu::run)
//! *Attend* to what others posted (kick, INIT, start-up IPI, NMI, interrupts), *run* the CPU until it wants something,
//! *answer* what the platform has (local APIC, IO-APIC, PICs, PIT, MSRs, CR8), and so on until it wants a device.
//! # Invariants
//! - Every ring of the bell is followed by attending before guest code runs on, unless an instruction is in flight;
//!   then the CPU comes out by itself right after it.
//! - While the CPU runs, the alarm clock knows its deadline; while it sleeps, it watches its deadline itself.

mod hypercall;
mod state;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use reprise_emulator::cpu::Activity;
use reprise_emulator::cpuid::CpuidTable;
use reprise_emulator::translate::{Translation, TranslationError};
use reprise_emulator::{
    Answer, Cpu, Direction, Emulator, Entry, Error, Event, Exit, Model, Ram, Reply, Request, Space,
};

use super::chipset::{Chipset, Seat};
use super::hypercall::Counters as Hypercalls;
use super::msr::{Msrs, Surroundings};
use super::vm::Machine;
use crate::profile::{Profiling, Sample};
use crate::{IoRequest, Kick, RequestId, StateError, Vcpu, VcpuError, VcpuState, VmEntry, VmExit};

/// One vCPU of the soft backend.
pub struct SoftVcpu {
    index: usize,
    emulator: Emulator,
    machine: Arc<Machine>,
    cpuid: Arc<CpuidTable>,
    surroundings: Arc<Surroundings>,
    msrs: Msrs,
    kicked: Arc<AtomicBool>,
    /// The deadline that the alarm clock has.
    armed: Option<u64>,
    counters: Counters,
    hypercalls: Hypercalls,
    /// Who looks at what is executed, and the count of instructions at which that is next.
    profiling: Option<(Profiling, u64)>,
}

/// What the platform did for this vCPU.
#[derive(Debug, Clone, Copy, Default)]
struct Counters {
    interrupts: u64,
    nmis: u64,
    sleeps: u64,
    platform_accesses: u64,
    device_accesses: u64,
    stale_answers: u64,
}

impl SoftVcpu {
    /// vCPU `index` of the machine. The bootstrap processor runs from the reset vector, the others wait for INIT and
    /// SIPI.
    pub fn new(index: usize, machine: Arc<Machine>, ram: Arc<Ram>, model: Arc<Model>, cpuid: CpuidTable) -> Self {
        let mut cpu = Cpu::reset();
        if index != 0 {
            cpu.activity = Activity::WaitForSipi;
        }
        let surroundings = Arc::new(Surroundings::new(Arc::clone(&machine.chipset)));
        let cpuid = Arc::new(cpuid);
        let emulator = Emulator::new(cpu, Arc::clone(&ram), surroundings.clone(), model, Arc::clone(&cpuid));
        machine.chipset.seats()[index].bell.connect(emulator.attention());
        Self {
            index,
            emulator,
            cpuid,
            msrs: Msrs::new(index, Arc::clone(&surroundings), ram, machine.partition.clone()),
            surroundings,
            machine,
            kicked: Arc::default(),
            armed: None,
            counters: Counters::default(),
            hypercalls: Hypercalls::default(),
            profiling: None,
        }
    }

    /// Has somebody look at what is executed.
    pub fn profile(&mut self, profiling: Profiling) {
        let next = self.emulator.counters().instructions + profiling.period.get();
        self.profiling = Some((profiling, next));
    }

    /// Lets the CPU run until it wants something, or is to be looked at.
    fn enter(&mut self, entry: Entry) -> Result<Exit, Error> {
        let Some((_, next)) = self.profiling else {
            return self.emulator.run(entry);
        };
        let left = next.saturating_sub(self.emulator.counters().instructions);
        let exit = self.emulator.run_at_most(entry, left.max(1));
        self.take_sample();
        exit
    }

    /// Has the CPU looked at, if it is time.
    fn take_sample(&mut self) {
        let Some((profiling, next)) = &mut self.profiling else {
            return;
        };
        let Some(late) = self.emulator.counters().instructions.checked_sub(*next) else {
            return;
        };
        let period = profiling.period.get();
        let periods = 1 + late / period;
        *next = next.saturating_add(periods.saturating_mul(period));
        let cpu = self.emulator.cpu().clone();
        let mut aside = self.emulator.aside();
        profiling.profiler.sample(Sample {
            vcpu: self.index as u32,
            periods,
            cpu: &cpu,
            memory: &mut |linear, bytes| aside.read_linear(linear, bytes),
        });
    }

    /// Translates hot code from now on.
    ///
    /// # Errors
    /// [`TranslationError`] if this host cannot; code is interpreted then.
    pub fn translate(&mut self, translation: Translation) -> Result<(), TranslationError> {
        self.emulator.set_translation(Some(translation))
    }

    fn chipset(&self) -> &Chipset {
        &self.machine.chipset
    }

    fn seat(&self) -> &Seat {
        &self.machine.chipset.seats()[self.index]
    }

    /// Looks at everything that others may have posted, and gives the CPU what it can take. Between instructions only.
    fn attend(&mut self) {
        let now = self.surroundings.now();
        self.msrs.account(now.clock);
        let mut lapic = self.machine.chipset.seats()[self.index].lapic();
        lapic.expire(now);
        let init = lapic.take_init();
        if init {
            lapic.init();
        }
        let startup = lapic.take_startup();
        drop(lapic);
        if init {
            self.msrs.init();
            self.seat().unhalted.store(false, Ordering::SeqCst);
            let bootstrap = self.index == 0;
            self.emulator.change(|cpu| {
                cpu.init();
                cpu.activity = if bootstrap {
                    Activity::Running
                } else {
                    Activity::WaitForSipi
                };
            });
        }
        if let Some(page) = startup
            && self.emulator.cpu().activity == Activity::WaitForSipi
        {
            self.emulator.change(|cpu| cpu.start_up(page));
        }
        if matches!(self.emulator.cpu().activity, Activity::Running | Activity::Halted) {
            self.interrupt();
        }
    }

    /// Gives the CPU the interrupt it has to take next, or has it say when it can take one.
    fn interrupt(&mut self) {
        if self.seat().lapic().nmi_pending() {
            if self.emulator.cpu().accepts_nmi() {
                self.seat().lapic().take_nmi();
                self.inject(Event::nmi());
                self.counters.nmis += 1;
            } else {
                self.emulator.request_nmi_window();
            }
        }
        let lapic = self.machine.chipset.seats()[self.index].lapic();
        let external = lapic.external_pending();
        if !external && lapic.pending().is_none() {
            return;
        }
        if !self.emulator.cpu().accepts_interrupts() {
            self.emulator.request_window();
            return;
        }
        drop(lapic);
        let vector = match external {
            true => Some(self.chipset().acknowledge_pic()),
            false => self.seat().lapic().take(),
        };
        if let Some(vector) = vector {
            self.inject(Event::external(vector));
            self.counters.interrupts += 1;
        }
        // The PICs may have another one behind it, without an edge that would ring.
        if self.seat().lapic().external_pending() {
            self.emulator.request_window();
        }
    }

    fn inject(&mut self, event: Event) {
        let taken = self.emulator.inject(event);
        debug_assert!(taken, "the CPU said it accepts this event");
        self.emulator.wake();
    }

    /// Tells the alarm clock when this vCPU has to be rung.
    fn arm(&mut self) {
        let deadline = self.seat().lapic().deadline(self.surroundings.now());
        if deadline != self.armed {
            self.armed = deadline;
            self.chipset().alarms.arm(self.index, deadline);
        }
    }

    /// Sleeps until somebody rings or the local APIC's timer is due.
    fn sleep(&mut self) {
        self.counters.sleeps += 1;
        if self.armed.take().is_some() {
            self.chipset().alarms.arm(self.index, None);
        }
        let deadline = self.seat().lapic().deadline(self.surroundings.now());
        // With the clock stopped there is no telling; whoever continues it rings.
        self.msrs.set_preempted(true);
        self.seat()
            .bell
            .sleep(deadline.and_then(|deadline| self.chipset().clock.until(deadline)));
        self.msrs.set_preempted(false);
    }

    /// Answers a request that is the platform's; `None` if it is for a device.
    fn answer(&mut self, request: &Request) -> Option<Reply> {
        match request.direction {
            Direction::Read | Direction::Write(_) => self.answer_one(request),
            Direction::ReadTo { .. } | Direction::WriteFrom { .. } => self.answer_batch(request),
        }
    }

    fn answer_one(&mut self, request: &Request) -> Option<Reply> {
        let (address, size) = (request.address, request.size);
        if let Direction::Write(value) = request.direction
            && let Some(space) = match request.space {
                Space::Port => Some(crate::Space::Port),
                Space::Memory => Some(crate::Space::Memory),
                _ => None,
            }
            && self.chipset().doorbells.ring(space, address, size, value)
        {
            return Some(Reply::Value(0));
        }
        let reply = match (request.space, request.direction) {
            (Space::Port, Direction::Write(value)) => {
                let done = self.chipset().write_ports(address as u16, size, value);
                done.then_some(Reply::Value(0))?
            }
            (Space::Port, _) => self.chipset().read_ports(address as u16, size).map(Reply::Value)?,
            (Space::Memory, direction) => return self.answer_memory(address, size, direction),
            (Space::Msr, Direction::Write(value)) => {
                let result = self.msrs.write(address as u32, value);
                self.look_again();
                result.map_or(Reply::Refused, |()| Reply::Value(0))
            }
            (Space::Msr, _) => self.msrs.read(address as u32).map_or(Reply::Refused, Reply::Value),
            (Space::TaskPriority, Direction::Write(value)) => {
                self.seat().lapic().set_cr8(value as u8 & 0xf);
                self.look_again();
                Reply::Value(0)
            }
            (Space::TaskPriority, _) => Reply::Value(u64::from(self.seat().lapic().cr8())),
            // Not answered here, since it may have to wait.
            (Space::Hypercall, _) => return None,
        };
        Some(reply)
    }

    fn answer_memory(&mut self, address: u64, size: u8, direction: Direction) -> Option<Reply> {
        let now = self.surroundings.now();
        let mut lapic = self.machine.chipset.seats()[self.index].lapic();
        if lapic.page() != Some(address & !0xfff) {
            drop(lapic);
            return match direction {
                Direction::Write(value) => self.chipset().write_memory(address, value).then_some(Reply::Value(0)),
                _ => self.chipset().read_memory(address, size).map(Reply::Value),
            };
        }
        let offset = address & 0xfff;
        match direction {
            Direction::Write(value) => {
                let effect = lapic.write_page(offset, size, value, now);
                drop(lapic);
                self.chipset().perform(effect);
                self.look_again();
                Some(Reply::Value(0))
            }
            _ => Some(Reply::Value(lapic.read_page(offset, size, now))),
        }
    }

    /// After a write that may have let an interrupt through or set a timer: the CPU has to come out if there is
    /// something to take, and the alarm clock to know the deadline.
    fn look_again(&mut self) {
        if effective(self.seat()) {
            self.emulator.attention().call();
        }
        self.arm();
    }
}

/// Whether there is something for [`SoftVcpu::attend`] to do.
fn effective(seat: &Seat) -> bool {
    let lapic = seat.lapic();
    lapic.pending().is_some() || lapic.external_pending() || lapic.nmi_pending() || lapic.init_pending()
}

impl SoftVcpu {
    fn run_until_exit(&mut self, entry: VmEntry) -> Result<VmExit, VcpuError> {
        // INIT does not wait for a device; its answer then finds no taker.
        let cancelled = self.emulator.is_in_flight() && self.seat().lapic().init_pending();
        if cancelled {
            self.emulator.cancel();
        }
        let mut entry = match entry {
            VmEntry::Resume => Entry::Resume,
            VmEntry::Answer(_) if cancelled => {
                self.counters.stale_answers += 1;
                Entry::Resume
            }
            VmEntry::Answer(answer) => Entry::Answer(Answer {
                id: answer.id.0,
                reply: Reply::Value(answer.value),
            }),
        };
        // A hypercall that was not finished is made again.
        let mut again = self
            .emulator
            .waiting_for()
            .filter(|request| request.space == Space::Hypercall);
        loop {
            if !self.emulator.is_in_flight() {
                self.seat().bell.answer();
                if self.kicked.swap(false, Ordering::SeqCst) {
                    return Ok(VmExit::Interrupted);
                }
                self.attend();
                let activity = self.emulator.cpu().activity;
                if matches!(activity, Activity::Halted | Activity::WaitForSipi) && self.emulator.cpu().event.is_none() {
                    if activity == Activity::Halted && self.seat().unhalted.swap(false, Ordering::SeqCst) {
                        self.emulator.wake();
                    } else {
                        self.sleep();
                        continue;
                    }
                }
                self.arm();
            }
            let exit = match again.take() {
                Some(request) => Exit::Request(request),
                None => self.enter(entry).map_err(|error| match error {
                    Error::AnswerOwed(id) => VcpuError::AnswerOwed { waiting: RequestId(id) },
                    source => VcpuError::Emulator {
                        rip: self.emulator.cpu().rip,
                        source,
                    },
                })?,
            };
            entry = Entry::Resume;
            match exit {
                Exit::Request(request) if request.space == Space::Hypercall => match self.hypercall() {
                    Some(reply) => entry = Entry::Answer(Answer { id: request.id, reply }),
                    // INIT does not wait for it.
                    None if self.seat().lapic().init_pending() => self.emulator.cancel(),
                    None => {
                        self.kicked.store(false, Ordering::SeqCst);
                        return Ok(VmExit::Interrupted);
                    }
                },
                Exit::Request(request) => match self.answer(&request) {
                    Some(reply) => {
                        self.counters.platform_accesses += 1;
                        entry = Entry::Answer(Answer { id: request.id, reply });
                    }
                    None => {
                        self.counters.device_accesses += 1;
                        return Ok(VmExit::Io(IoRequest::of(&request, RequestId(request.id))));
                    }
                },
                // The top of the loop looks after both; nothing is executed elsewhere.
                Exit::Attention | Exit::Halt | Exit::Elsewhere => {}
                Exit::Shutdown => return Ok(VmExit::Shutdown),
            }
        }
    }
}

impl Vcpu for SoftVcpu {
    fn run(&mut self, entry: VmEntry) -> Result<VmExit, VcpuError> {
        self.msrs.set_preempted(false);
        let exit = self.run_until_exit(entry);
        self.msrs.set_preempted(true);
        exit
    }

    fn cpu(&self) -> Result<Box<Cpu>, VcpuError> {
        Ok(Box::new(self.emulator.cpu().clone()))
    }

    fn set_cpu(&mut self, cpu: &Cpu) -> Result<(), VcpuError> {
        cpu.check(&self.cpuid).map_err(StateError::from)?;
        self.emulator.set_cpu(cpu.clone());
        Ok(())
    }

    fn state(&self) -> Result<VcpuState, VcpuError> {
        Ok(self.save())
    }

    fn waiting(&self) -> Option<IoRequest> {
        let owed = self.emulator.waiting_for();
        // A hypercall is made again by the next run.
        let device = owed.filter(|request| matches!(request.space, Space::Port | Space::Memory));
        device
            .as_ref()
            .map(|request| IoRequest::of(request, RequestId(request.id)))
            .filter(|_| !self.seat().lapic().init_pending())
    }

    fn restore(&mut self, state: VcpuState) -> Result<(), VcpuError> {
        Ok(self.go_on_from(state)?)
    }

    fn on_call(&self, call: Arc<dyn Fn() + Send + Sync>) {
        self.seat().bell.connect_owner(call);
    }

    fn kick(&self) -> Arc<dyn Kick> {
        Arc::new(SoftKick {
            kicked: Arc::clone(&self.kicked),
            machine: Arc::clone(&self.machine),
            index: self.index,
        })
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let (cpu, own) = (self.emulator.counters(), &self.counters);
        let mut figures = vec![
            ("instructions", cpu.instructions),
            ("careful_passes", cpu.passes),
            ("replayed_reads", cpu.replays),
            ("requests", cpu.requests),
            ("stale_answers", cpu.stale_answers + own.stale_answers),
            ("cancellations", cpu.cancellations),
            ("events", cpu.events),
            ("blocks_decoded", cpu.blocks),
            ("tlb_misses", cpu.tlb_misses),
            ("page_walks", cpu.walks),
            ("blocks_translated", cpu.translations),
            ("translated_instructions", cpu.translated),
            ("translation_exits_for_misses", cpu.miss_exits),
            ("translation_exits_for_steps", cpu.step_exits),
            ("translation_exits_for_instructions", cpu.interpret_exits),
            ("translation_exits_for_jumps", cpu.jump_exits),
            ("translation_exits_for_stops", cpu.stop_exits),
            ("translation_evictions", cpu.evictions),
            ("translation_invalidations", cpu.invalidations),
            ("translated_bytes", cpu.code_bytes),
            ("interrupts", own.interrupts),
            ("nmis", own.nmis),
            ("sleeps", own.sleeps),
            ("platform_accesses", own.platform_accesses),
            ("device_accesses", own.device_accesses),
        ];
        figures.extend(self.hypercalls.figures());
        figures
    }
}

/// Kicks one vCPU.
struct SoftKick {
    kicked: Arc<AtomicBool>,
    machine: Arc<Machine>,
    index: usize,
}

impl Kick for SoftKick {
    fn kick(&self) {
        self.kicked.store(true, Ordering::SeqCst);
        self.machine.chipset.seats()[self.index].bell.ring();
    }
}

mod batch;
#[cfg(test)]
mod tests;

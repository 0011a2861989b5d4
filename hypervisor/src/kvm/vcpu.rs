//! One vCPU on KVM.
//!
//! # Life of a call to [`run`](Vcpu::run)
//! The answer goes where KVM looks for it; while the exit has accesses left, the next is asked for. Then KVM_RUN, until
//! there is an exit that is not served here.
//! # Invariants
//! - While an access is under way, KVM_RUN is not called, and KVM stands at the instruction that reads, or behind the one
//!   that writes.
//! - An instruction that is finished in software, since KVM cannot or since it was in flight when the restored state was
//!   taken, is finished before KVM_RUN is called.
//! - `obtained` is what the instruction under RIP has read from devices, if KVM has begun with it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_sync_regs};
use kvm_ioctls::VcpuFd;
use reprise_emulator::Cpu;
use reprise_emulator::cpu::msr::{MsrRead, MsrWrite};
use reprise_emulator::cpu::{Activity, Cr0};
use reprise_emulator::cpuid::CpuidTable;

use super::cpu::{self, Shape};
use super::error::{KvmError, KvmVcpuError, Named};
use super::exchange::{Exchange, Senseless};
use super::failure::{self, EmulationFailure, Obtained};
use super::kick::KvmKick;
use super::rescue::{Rescuer, Watch};
use super::sys::{Exit, RunPage, Seen};
use super::vm::Machine;
use super::{cpuid, msrs};
use crate::soft::lapic::Lapic;
use crate::soft::pit::Pit;
use crate::{Answer, IoRequest, Kick, RequestId, StateError, Vcpu, VcpuError, VcpuState, VmEntry, VmExit};

mod state;

/// No instruction makes so many exits.
const MOST_EXITS: u32 = 1024;
/// After so many exits without a rescue, none is expected.
const PLAIN_EXITS: u32 = 64;

/// One vCPU on KVM.
pub struct KvmVcpu {
    index: u32,
    pub(super) fd: VcpuFd,
    run: RunPage,
    pub(super) machine: Arc<Machine>,
    pub(super) cpuid: Arc<CpuidTable>,
    pub(super) shape: Arc<Shape>,
    pub(super) kick: Arc<KvmKick>,
    /// What KVM does not have of the processor; the rest of it says nothing.
    pub(super) beside: Box<Cpu>,
    /// The accesses of the last exit, while one is under way.
    exchange: Option<Exchange>,
    /// Stores of the last exit's instruction that KVM has told already, as it had to complete it to be looked at.
    ahead: RefCell<Option<VecDeque<IoRequest>>>,
    /// What KVM_RUN leaves in the run structure: all of it where rescues are frequent.
    seen: Seen,
    /// Exits since the last rescue.
    plain_exits: u32,
    /// What shows SYSCALLs that KVM leaves half done, where it does.
    watch: Option<Watch>,
    /// Finishes instructions in software, once there was one.
    pub(super) rescuer: Option<Box<Rescuer>>,
    /// What is put into KVM when the vCPU runs first after it was restored.
    restored: Option<Restored>,
    /// The host's rate of the time-stamp counter, in kHz.
    khz: u32,
    /// What devices have answered to the instruction under RIP, and the registers then.
    obtained: Vec<Obtained>,
    obtained_by: kvm_regs,
    /// A triple fault.
    pub(super) shutdown: bool,
    last_id: u64,
    /// The machine's pauses that the guest was told of.
    pauses: u32,
    counters: Counters,
}

/// What KVM counts from the moment on that it is told, and so is told late.
#[derive(Debug, Clone, Copy)]
struct Restored {
    tsc_start: u64,
    tsc_adjust: u64,
    /// IA32_TSC_DEADLINE, of a timer in that mode.
    tsc_deadline: u64,
}

/// What this vCPU has done.
#[derive(Debug, Clone, Copy, Default)]
struct Counters {
    entries: u64,
    device_accesses: u64,
    stale_answers: u64,
    cancellations: u64,
    msr_exits: u64,
    emulation_failures: u64,
}

impl KvmVcpu {
    /// vCPU `index` of the machine. The bootstrap processor runs from the reset vector, the others wait for INIT and
    /// SIPI.
    ///
    /// # Errors
    /// What KVM says.
    pub fn new(index: u32, machine: Arc<Machine>) -> Result<Self, KvmError> {
        let fd = machine.fd.create_vcpu(index.into()).of_vm("KVM_CREATE_VCPU")?;
        let mut run = RunPage::map(&fd, machine.run_size).map_err(|source| KvmError::Call {
            call: "mmap of a vCPU",
            source,
        })?;
        run.see(Seen::General);
        let khz = fd.get_tsc_khz().of_vm("KVM_GET_TSC_KHZ")?;
        let model = cpuid::model(machine.supported.as_slice(), index, machine.vcpus, khz, machine.model);
        fd.set_cpuid2(&cpuid::to_kvm(&model)).of_vm("KVM_SET_CPUID2")?;
        let has = fd.get_cpuid2(KVM_MAX_CPUID_ENTRIES).of_vm("KVM_GET_CPUID2")?;
        let model = cpuid::announced(model, has.as_slice());
        machine.counters.count_at(khz);
        let msrs = machine.msrs.get_or_init(|| msrs::Known::probe(&fd)).clone();
        let shape = Arc::new(Shape {
            msrs,
            layout: cpuid::layout(machine.supported.as_slice()),
            has_xsave: cpuid::has_xsave(&model),
            halves_syscalls: machine.halves_syscalls,
        });
        let vcpu = Self {
            index,
            khz,
            ahead: RefCell::new(None),
            seen: Seen::General,
            plain_exits: 0,
            watch: machine.halves_syscalls.then(Watch::default),
            rescuer: None,
            restored: None,
            kick: KvmKick::new(run.exit_flag()),
            run,
            cpuid: Arc::new(CpuidTable::new(model)),
            shape,
            beside: Box::new(Cpu::reset()),
            exchange: None,
            obtained: Vec::new(),
            obtained_by: kvm_regs::default(),
            shutdown: false,
            last_id: 0,
            pauses: machine.pauses.load(Ordering::SeqCst),
            counters: Counters::default(),
            fd,
            machine,
        };
        let mut cpu = Cpu::reset();
        if index != 0 {
            cpu.activity = Activity::WaitForSipi;
        }
        let first = |source| KvmError::FirstState { source };
        cpu::write(&vcpu.fd, &vcpu.shape, &cpu).map_err(first)?;
        vcpu.set_local_apic(&Lapic::new(index as usize).state())
            .map_err(first)?;
        Ok(vcpu)
    }

    pub(super) fn new_id(&mut self) -> RequestId {
        self.last_id += 1;
        RequestId(self.last_id)
    }

    /// Puts a processor into KVM in place of the one that is there.
    pub(super) fn replace(&mut self, cpu: &Cpu) -> Result<(), KvmVcpuError> {
        cpu::write(&self.fd, &self.shape, cpu)?;
        (*self.beside).clone_from(cpu);
        if let Some(watch) = &mut self.watch {
            watch.forget();
        }
        self.shutdown = cpu.activity == Activity::Shutdown;
        Ok(())
    }

    /// Takes an answer; what the same exit asks next.
    fn answer(&mut self, answer: Answer) -> Option<VmExit> {
        let exchange = self.exchange.as_mut().filter(|own| own.request().id == answer.id);
        let Some(exchange) = exchange else {
            self.counters.stale_answers += 1;
            return None;
        };
        self.last_id += 1;
        if let Some(ahead) = self.ahead.get_mut() {
            if let Some(next) = ahead.pop_front() {
                exchange.ask_instead(next, RequestId(self.last_id));
                self.counters.device_accesses += 1;
                return Some(VmExit::Io(*exchange.request()));
            }
            (self.exchange, *self.ahead.get_mut()) = (None, None);
            return None;
        }
        self.obtained.extend(exchange.answer(&mut self.run, answer.value));
        if exchange.next(&self.run, RequestId(self.last_id)) {
            self.counters.device_accesses += 1;
            return Some(VmExit::Io(*exchange.request()));
        }
        self.exchange = None;
        None
    }

    /// Tells the guest that it was stopped, so that its watchdogs do not bark.
    fn tell_of_pauses(&mut self) {
        let pauses = self.machine.pauses.load(Ordering::SeqCst);
        if self.pauses != pauses {
            self.pauses = pauses;
            // A guest without kvmclock is not told.
            let _no_kvmclock = self.fd.kvmclock_ctrl();
        }
    }

    /// KVM_RUN, once; what the vCPU comes out with, or `None` if it goes on.
    fn enter(&mut self) -> Result<Option<VmExit>, VcpuError> {
        self.counters.entries += 1;
        if let Some(watch) = &mut self.watch {
            watch.look(&self.fd, &self.machine.ram)?;
        }
        let fd = &mut self.fd;
        let result = self.kick.inside(|| fd.run().map(|_| ()));
        let exit = match result {
            Ok(()) => self.run.exit(),
            Err(error) => match error.errno() {
                libc::EINTR | libc::EAGAIN => Exit::Interrupted,
                errno => {
                    return Err(KvmVcpuError::Call {
                        call: "KVM_RUN",
                        source: io::Error::from_raw_os_error(errno),
                    }
                    .into());
                }
            },
        };
        match exit {
            Exit::Port { port, .. } if Pit::claims(port) => {
                self.between_rescues();
                self.obtained.clear();
                return self.serve_ports(&exit).map(|()| None);
            }
            Exit::Port { .. } | Exit::Memory { .. } => return self.begin(&exit).map(Some),
            // What was obtained is the failure's, if it was for the same instruction.
            Exit::Emulation { bytes, length } => {
                self.counters.emulation_failures += 1;
                self.see_all()?;
                let failure = self.failure(&bytes[..length]);
                return self.rescue(failure);
            }
            _ => self.obtained.clear(),
        }
        if let (Exit::Debug, Some(_)) = (exit, &self.watch) {
            self.see_all()?;
            let place = self.failure(&[]);
            return self.handle_fault(place);
        }
        self.between_rescues();
        match exit {
            Exit::ReadMsr { index } => self.read_msr(index),
            Exit::WriteMsr { index, value } => self.write_msr(index, value),
            Exit::Shutdown => {
                self.shutdown = true;
                return Ok(Some(VmExit::Shutdown));
            }
            Exit::Interrupted => return Ok(self.kick.take().then_some(VmExit::Interrupted)),
            other => return Err(self.unexpected(&other).into()),
        }
        Ok(None)
    }

    /// Begins with the accesses of an exit for a device.
    fn begin(&mut self, exit: &Exit) -> Result<VmExit, VcpuError> {
        self.between_rescues();
        let id = self.new_id();
        let exchange = match Exchange::new(exit, &self.run, id) {
            Some(Ok(exchange)) => exchange,
            Some(Err(Senseless { address, length })) => {
                let rip = self.run.registers().rip;
                return Err(KvmVcpuError::Access { rip, address, length }.into());
            }
            None => return Err(self.unexpected(exit).into()),
        };
        let request = *exchange.request();
        if exchange.is_write() {
            self.obtained.clear();
        } else {
            let registers = self.run.registers();
            // An instruction that has ended has moved RIP, or counted, or asks the same again.
            let again = |own: &Obtained| (own.space, own.address) == (request.space, request.address);
            if registers != self.obtained_by || self.obtained.iter().any(again) {
                self.obtained.clear();
                self.obtained_by = registers;
            }
        }
        self.exchange = Some(exchange);
        self.counters.device_accesses += 1;
        Ok(VmExit::Io(request))
    }

    /// Accesses to ports of a chip that is kept here.
    fn serve_ports(&mut self, exit: &Exit) -> Result<(), VcpuError> {
        let Exit::Port {
            write,
            port,
            size,
            count,
            data,
        } = *exit
        else {
            return Err(self.unexpected(exit).into());
        };
        let failed = |source: KvmError| KvmVcpuError::Clock {
            source: Box::new(source),
        };
        for element in 0..count as usize {
            let place = data.saturating_add(element * usize::from(size));
            if write {
                let value = self.run.load(place, size);
                self.machine.write_ports(port, size, value).map_err(failed)?;
            } else {
                let value = self.machine.read_ports(port, size).map_err(failed)?;
                self.run.store(place, size, value.unwrap_or(u64::MAX));
            }
        }
        Ok(())
    }

    /// Everything is in the run structure: what KVM_RUN has just left out of it, and what the next ones leave.
    fn see_all(&mut self) -> Result<(), KvmVcpuError> {
        self.plain_exits = 0;
        if self.seen == Seen::General {
            let system = self.fd.get_sregs().of_vcpu("KVM_GET_SREGS")?;
            let events = self.fd.get_vcpu_events().of_vcpu("KVM_GET_VCPU_EVENTS")?;
            let place = self.fd.sync_regs_mut();
            (place.sregs, place.events) = (system, events);
            self.seen = Seen::All;
            self.run.see(self.seen);
        }
        Ok(())
    }

    fn failure(&mut self, bytes: &[u8]) -> EmulationFailure {
        let came = self.fd.sync_regs();
        let mut obtained = std::mem::take(&mut self.obtained);
        if came.regs != self.obtained_by {
            obtained.clear();
        }
        EmulationFailure::at(&came, bytes, obtained)
    }

    /// KVM came out for something else than an instruction that it cannot emulate.
    fn between_rescues(&mut self) {
        if let Some(rescuer) = &mut self.rescuer {
            rescuer.interrupted();
        }
        self.plain_exits = self.plain_exits.saturating_add(1);
        if self.seen == Seen::All && self.plain_exits > PLAIN_EXITS {
            self.seen = Seen::General;
            self.run.see(self.seen);
        }
    }

    pub(super) fn count_stale_answer(&mut self) {
        self.counters.stale_answers += 1;
    }

    pub(super) fn count_device_access(&mut self) {
        self.counters.device_accesses += 1;
    }

    /// Ends the access that is under way without an answer: whatever KVM makes of it is overwritten by whoever calls this.
    fn cancel(&mut self) -> Result<(), KvmVcpuError> {
        self.obtained.clear();
        if let Some(rescuer) = self.rescuer.as_mut().filter(|rescuer| rescuer.is_busy()) {
            rescuer.cancel();
            self.counters.cancellations += 1;
        }
        let completed = self.ahead.get_mut().take().is_some();
        let Some(exchange) = self.exchange.take() else {
            return Ok(());
        };
        self.counters.cancellations += 1;
        if completed {
            return Ok(());
        }
        if !exchange.is_write() {
            // KVM completes the instruction in its next KVM_RUN, come what may. It must not store what was never read, so
            // it is to fault instead: at the page tables, which are where there is no memory, or at the segments' limits.
            let mut system = self.fd.get_sregs().of_vcpu("KVM_GET_SREGS")?;
            if system.cr0 & Cr0::PG != 0 {
                system.cr3 = self.machine.nowhere;
            } else {
                for segment in [
                    &mut system.ds,
                    &mut system.es,
                    &mut system.fs,
                    &mut system.gs,
                    &mut system.ss,
                ] {
                    segment.limit = 0;
                    segment.g = 0;
                }
            }
            self.fd.set_sregs(&system).of_vcpu("KVM_SET_SREGS")?;
        }
        // What it wants to access besides is not made either; an instruction has an end.
        for _ in 0..MOST_EXITS {
            self.kick.complete_only();
            let completed = self.fd.run().map(|_| ());
            if completed.is_err() || !matches!(self.run.exit(), Exit::Port { .. } | Exit::Memory { .. }) {
                break;
            }
        }
        self.kick.completed();
        Ok(())
    }

    /// RDMSR of a register that KVM does not have: the emulator's processor may.
    fn read_msr(&mut self, index: u32) {
        self.counters.msr_exits += 1;
        let value = match self.beside.read_msr(&self.cpuid, index) {
            MsrRead::Value(value) => Some(value),
            MsrRead::Refused | MsrRead::Platform => None,
        };
        self.run.answer_msr(value);
    }

    /// WRMSR of a register that KVM does not have.
    fn write_msr(&mut self, index: u32, value: u64) {
        self.counters.msr_exits += 1;
        let taken = match self.beside.write_msr(&self.cpuid, index, value) {
            MsrWrite::Done | MsrWrite::Flush => Some(value),
            MsrWrite::Refused | MsrWrite::Platform => None,
        };
        self.run.answer_msr(taken);
    }

    fn unexpected(&self, exit: &Exit) -> KvmVcpuError {
        let rip = self.run.registers().rip;
        match *exit {
            Exit::Internal { suberror, length, data } => KvmVcpuError::Internal {
                rip,
                mode: failure::mode(&self.registers()).0,
                bytes: self.code(),
                suberror,
                data: data[..length].to_vec(),
            },
            Exit::FailEntry { reason } => KvmVcpuError::FailEntry {
                rip,
                mode: failure::mode(&self.registers()).0,
                bytes: self.code(),
                reason,
            },
            Exit::Other(reason) => KvmVcpuError::UnknownExit { rip, reason },
            _ => KvmVcpuError::UnknownExit { rip, reason: 0 },
        }
    }
}

impl KvmVcpu {
    /// Registers as KVM_RUN left them, system and segment registers among them as far as they can be had.
    fn registers(&self) -> kvm_sync_regs {
        let mut came = self.fd.sync_regs();
        if let Ok(system) = self.fd.get_sregs() {
            came.sregs = system;
        }
        came
    }

    /// What is in memory under RIP, as far as that can be had.
    fn code(&self) -> Vec<u8> {
        let came = self.registers();
        let start = came.sregs.cs.base.wrapping_add(came.regs.rip);
        let byte = |linear| {
            let place = self.fd.translate_gva(linear).ok().filter(|place| place.valid != 0)?;
            Some(self.machine.ram.read(place.physical_address, 1)? as u8)
        };
        (0..15).map_while(|i| byte(start.wrapping_add(i))).collect()
    }
}

impl Vcpu for KvmVcpu {
    fn run(&mut self, entry: VmEntry) -> Result<VmExit, VcpuError> {
        if self.is_rescuing() {
            if let Some(exit) = self.go_on_in_software(entry)? {
                return Ok(exit);
            }
        } else if let VmEntry::Answer(answer) = entry
            && let Some(next) = self.answer(answer)
        {
            return Ok(next);
        }
        if let Some(request) = self.waiting() {
            return Err(VcpuError::AnswerOwed { waiting: request.id });
        }
        self.start_counters()?;
        self.tell_of_pauses();
        loop {
            if self.shutdown {
                return Ok(VmExit::Shutdown);
            }
            if let Some(exit) = self.enter()? {
                return Ok(exit);
            }
        }
    }

    fn cpu(&self) -> Result<Box<Cpu>, VcpuError> {
        self.complete_writes();
        let mut cpu = cpu::read(&self.fd, &self.shape, &self.beside)?;
        if let Some(rescuer) = self.rescuer.as_ref().filter(|rescuer| rescuer.is_busy()) {
            rescuer.overlay(&mut cpu);
        }
        if self.shutdown {
            cpu.activity = Activity::Shutdown;
        }
        Ok(cpu)
    }

    fn set_cpu(&mut self, cpu: &Cpu) -> Result<(), VcpuError> {
        cpu.check(&self.cpuid).map_err(StateError::from)?;
        self.cancel()?;
        self.replace(cpu)?;
        Ok(())
    }

    fn state(&self) -> Result<VcpuState, VcpuError> {
        self.save()
    }

    fn restore(&mut self, state: VcpuState) -> Result<(), VcpuError> {
        self.go_on_from(state)
    }

    fn waiting(&self) -> Option<IoRequest> {
        let rescued = self.rescuer.as_ref().and_then(|rescuer| rescuer.waiting());
        rescued.or_else(|| self.exchange.as_ref().map(|exchange| *exchange.request()))
    }

    /// Nothing ends the wait here: the local APIC is the kernel's, and it serves an INIT when the vCPU runs.
    fn on_call(&self, _call: Arc<dyn Fn() + Send + Sync>) {}

    fn kick(&self) -> Arc<dyn Kick> {
        Arc::clone(&self.kick) as Arc<dyn Kick>
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let own = &self.counters;
        let mut figures = vec![
            ("kvm_entries", own.entries),
            ("device_accesses", own.device_accesses),
            ("stale_answers", own.stale_answers),
            ("cancellations", own.cancellations),
            ("msr_exits", own.msr_exits),
            ("emulation_failures", own.emulation_failures),
        ];
        figures.extend(self.rescuer.iter().flat_map(|rescuer| rescuer.figures()));
        figures
    }
}

#[cfg(test)]
mod tests;

//! A vCPU as plain data, and back.
//!
//! # In flight
//! While KVM waits for a read, the processor is as before the instruction, and KVM has no record of what that has read. The
//! emulator makes one: it executes the instruction as far as to the read that is owed, with the answers that devices have
//! given before. While KVM waits for a write to be taken, the instruction has retired, and KVM completes it; the stores that
//! are left of it are asked for afterwards, here or in another machine.
//! # When
//! KVM's time-stamp counter and its deadline count from the moment on that they are set, so that is when the vCPU first runs.
//! The counts of the local APIC's timer begin when the state is restored.

use std::collections::VecDeque;
use std::sync::Arc;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, KVM_VCPUEVENT_VALID_NMI_PENDING};
use reprise_emulator::cpuid::CpuidTable;
use reprise_emulator::{Answer, Cpu, Direction, Entry, Exit, InFlight, Reply, Request, Space};

use super::super::error::{KvmVcpuError, Named};
use super::super::exchange::Exchange;
use super::super::local_apic::{self, Beside};
use super::super::{cpuid, msrs, software, sys};
use super::{KvmVcpu, MOST_EXITS, Restored};
use crate::exit::IoRequest;
use crate::soft::lapic::Lapic;
use crate::state::{LocalApicState, PlatformMsrs};
use crate::tsc::TscRate;
use crate::{Access, RequestId, StateError, VcpuError, VcpuState, cpu_model};

const IA32_TIME_STAMP_COUNTER: u32 = 0x10;
const IA32_APIC_BASE: u32 = 0x1b;
const IA32_TSC_ADJUST: u32 = 0x3b;
const IA32_TSC_DEADLINE: u32 = 0x6e0;
const MSR_KVM_WALL_CLOCK_NEW: u32 = 0x4b56_4d00;
const MSR_KVM_SYSTEM_TIME_NEW: u32 = 0x4b56_4d01;
const MSR_KVM_STEAL_TIME: u32 = 0x4b56_4d03;

/// In nanoseconds; a counter that was just set is not so far from what it was set to.
const FAR: u64 = 100_000_000;

/// How far a counter may be from what the guest was told before it is scaled, in millionths, as in KVM.
const TOLERANCE: u32 = 250;

impl KvmVcpu {
    pub(super) fn save(&self) -> Result<VcpuState, VcpuError> {
        let (cpu, in_flight) = self.processor()?;
        let page = self.fd.get_lapic().of_vcpu("KVM_GET_LAPIC")?;
        let tsc = self.counter();
        let clock = self.kernel_clock()?;
        let tsc_adjust = self.msr(IA32_TSC_ADJUST);
        let start = tsc.wrapping_sub(tsc_adjust);
        let start = start.wrapping_sub(self.machine.counters.rate().ticks(clock));
        let Restored {
            tsc_start,
            tsc_adjust,
            tsc_deadline,
        } = self.restored.unwrap_or_else(|| Restored {
            tsc_start: self.machine.counters.start(start),
            tsc_adjust,
            tsc_deadline: self.msr(IA32_TSC_DEADLINE),
        });
        let events = self.fd.get_vcpu_events().of_vcpu("KVM_GET_VCPU_EVENTS")?;
        let beside = Beside {
            apic_base: self.msr(IA32_APIC_BASE),
            tsc_deadline,
            nmi: events.nmi.pending != 0,
            clock,
        };
        Ok(VcpuState {
            cpuid: self.cpuid.entries().to_vec(),
            cpu,
            in_flight,
            local_apic: local_apic::read(&page, beside),
            msrs: PlatformMsrs {
                tsc_adjust,
                tsc_start,
                ..self.paravirtual()
            },
            unhalted: false,
        })
    }

    pub(super) fn go_on_from(&mut self, state: VcpuState) -> Result<(), VcpuError> {
        let VcpuState {
            cpuid: saved,
            mut cpu,
            mut in_flight,
            local_apic: saved_apic,
            msrs: platform,
            unhalted: _,
        } = state;
        cpu_model::check(&saved, self.cpuid.entries())?;
        let other = (saved != self.cpuid.entries()).then(|| Arc::new(CpuidTable::new(saved)));
        cpu.check(other.as_ref().unwrap_or(&self.cpuid))
            .map_err(StateError::from)?;
        match in_flight.as_ref().and_then(InFlight::request) {
            // It is made again.
            Some(Request {
                space: Space::Hypercall,
                ..
            }) => in_flight = None,
            Some(Request { space, .. }) if !matches!(space, Space::Port | Space::Memory) => {
                return Err(StateError::NotADevice { space }.into());
            }
            _ => {}
        }
        let mut lapic = Lapic::new(self.index as usize);
        lapic.restore(&saved_apic)?;
        // KVM serves these when the vCPU runs, so they can be served now.
        if lapic.take_init() {
            lapic.init();
            cpu.init();
            if self.index != 0 {
                cpu.activity = reprise_emulator::cpu::Activity::WaitForSipi;
            }
            in_flight = None;
        }
        if let Some(page) = lapic.take_startup()
            && cpu.activity == reprise_emulator::cpu::Activity::WaitForSipi
        {
            cpu.start_up(page);
        }
        let lapic = lapic.state();
        self.check_rate()?;
        if let Some(in_flight) = &in_flight {
            let table = other.as_ref().unwrap_or(&self.cpuid);
            let mut emulator = software::emulator((*cpu).clone(), &self.machine.ram, table, 0);
            emulator
                .restore((*cpu).clone(), Some(in_flight))
                .map_err(StateError::from)?;
        }
        self.cancel()?;
        if let Some(table) = other {
            let kvm = cpuid::to_kvm(table.entries());
            self.fd.set_cpuid2(&kvm).of_vcpu("KVM_SET_CPUID2")?;
            let has = self.fd.get_cpuid2(KVM_MAX_CPUID_ENTRIES).of_vcpu("KVM_GET_CPUID2")?;
            let announced = cpuid::announced(table.entries().to_vec(), has.as_slice());
            self.cpuid = Arc::new(CpuidTable::new(announced));
            // It is for the other model.
            self.rescuer = None;
        }
        self.scale()?;
        msrs::set(&self.fd, &[(IA32_APIC_BASE, lapic.apic_base)])?;
        self.replace(&cpu)?;
        self.set_local_apic(&lapic)?;
        let mut events = self.fd.get_vcpu_events().of_vcpu("KVM_GET_VCPU_EVENTS")?;
        events.flags |= KVM_VCPUEVENT_VALID_NMI_PENDING;
        events.nmi.pending = u8::from(lapic.nmi);
        self.fd.set_vcpu_events(&events).of_vcpu("KVM_SET_VCPU_EVENTS")?;
        for (msr, value) in [
            (MSR_KVM_WALL_CLOCK_NEW, platform.kvm_wall_clock),
            (MSR_KVM_SYSTEM_TIME_NEW, platform.kvm_system_time),
            (MSR_KVM_STEAL_TIME, platform.kvm_steal_time),
        ] {
            // What KVM does not have, its guest was not told of, and did not write to.
            if value != self.msr(msr) {
                msrs::set(&self.fd, &[(msr, value)])?;
            }
        }
        self.restored = Some(Restored {
            tsc_start: platform.tsc_start,
            tsc_adjust: platform.tsc_adjust,
            tsc_deadline: lapic.timer.tsc_deadline,
        });
        if let Some(in_flight) = in_flight {
            let last = in_flight.request().map_or(0, |request| request.id);
            self.last_id = self.last_id.max(last);
            self.finish(*cpu, &in_flight)?;
        }
        Ok(())
    }

    /// Puts registers and interrupts into KVM's local APIC.
    pub(super) fn set_local_apic(&self, state: &LocalApicState) -> Result<(), KvmVcpuError> {
        let mut page = self.fd.get_lapic().of_vcpu("KVM_GET_LAPIC")?;
        local_apic::write(state, self.clock()?, &mut page);
        self.fd.set_lapic(&page).of_vcpu("KVM_SET_LAPIC")
    }

    /// The first time after a restore: sets what counts from now on.
    pub(super) fn start_counters(&mut self) -> Result<(), VcpuError> {
        let Some(Restored {
            tsc_start,
            tsc_adjust,
            tsc_deadline,
        }) = self.restored.take()
        else {
            return Ok(());
        };
        let rate = self.machine.counters.rate();
        let ticks = rate.ticks(self.clock()?);
        let tsc = ticks.wrapping_add(tsc_start).wrapping_add(tsc_adjust);
        msrs::set(&self.fd, &[(IA32_TIME_STAMP_COUNTER, tsc)])?;
        let mut tsc_deadline = tsc_deadline;
        let jump = self.counter().wrapping_sub(tsc);
        if (jump as i64).unsigned_abs() > rate.ticks(FAR) {
            // A KVM without hardware behind it may give its guests the host's counter as it is.
            tracing::warn!(
                jump,
                "this host's KVM does not set the time-stamp counter: the guest sees it jump"
            );
            tsc_deadline = if tsc_deadline == 0 {
                0
            } else {
                tsc_deadline.wrapping_add(jump)
            };
        }
        if tsc_adjust != self.msr(IA32_TSC_ADJUST) {
            msrs::set(&self.fd, &[(IA32_TSC_ADJUST, tsc_adjust)])?;
        }
        if tsc_deadline != 0 {
            msrs::set(&self.fd, &[(IA32_TSC_DEADLINE, tsc_deadline)])?;
        }
        Ok(())
    }

    /// The time-stamp counter.
    pub(in super::super) fn counter(&self) -> u64 {
        self.msr(IA32_TIME_STAMP_COUNTER)
    }

    /// The processor, and the instruction that it has begun.
    fn processor(&self) -> Result<(Box<Cpu>, Option<InFlight>), VcpuError> {
        use crate::Vcpu;
        // Completes stores.
        let cpu = self.cpu()?;
        if let Some(rescuer) = self.rescuer.as_ref().filter(|rescuer| rescuer.is_busy()) {
            return Ok((cpu, rescuer.in_flight()));
        }
        let Some(exchange) = &self.exchange else {
            return Ok((cpu, None));
        };
        let request = to_emulator(exchange.request());
        if !exchange.is_write() {
            return Ok(self.begun(cpu, &request));
        }
        let left = self.ahead.borrow();
        let left: Vec<_> = left.iter().flatten().map(to_emulator).collect();
        let store = |request: &Request| match request.direction {
            Direction::Write(value) => (request.space, request.address, request.size, value),
            _ => (request.space, request.address, request.size, 0),
        };
        let left: Vec<_> = left.iter().map(store).collect();
        Ok((cpu, InFlight::retired(request, &left)))
    }

    /// Has the emulator execute the instruction under RIP up to `pending`, with what devices have answered; the processor then,
    /// whose repeated instruction may have gone through some rounds, and the instruction. If it does not come there, guest
    /// memory is not any more what KVM saw, and the instruction begins anew.
    fn begun(&self, cpu: Box<Cpu>, pending: &Request) -> (Box<Cpu>, Option<InFlight>) {
        let mut emulator = software::emulator((*cpu).clone(), &self.machine.ram, &self.cpuid, self.counter());
        let mut obtained = self.obtained.iter();
        let mut entry = Entry::Resume;
        // Each answer may be that of a round of a repeated instruction, which is asked for as a batch first.
        for _ in 0..3 * (self.obtained.len() + 2) {
            let Ok(exit) = emulator.run_at_most(entry, 1) else {
                break;
            };
            entry = Entry::Resume;
            let request = match exit {
                Exit::Request(request) => request,
                Exit::Attention if emulator.cpu().rip == cpu.rip => continue,
                _ => break,
            };
            let same = (request.space, request.address, request.size) == (pending.space, pending.address, pending.size);
            let value = match request.direction {
                // Element by element, as KVM asks for them.
                Direction::ReadTo { .. } | Direction::WriteFrom { .. } => 0,
                Direction::Read => match obtained.next() {
                    Some(own) if (own.address, own.size) == (request.address, request.size) => own.value,
                    None if same => {
                        let in_flight = emulator.in_flight().map(|own| own.renamed(pending.id));
                        return (Box::new(emulator.cpu().clone()), in_flight);
                    }
                    _ => break,
                },
                Direction::Write(_) => break,
            };
            let reply = Reply::Value(value);
            entry = Entry::Answer(Answer { id: request.id, reply });
        }
        tracing::warn!(
            rip = cpu.rip,
            "an instruction that waits for a device is not the one in memory any more, and begins anew"
        );
        (cpu, None)
    }

    /// Has KVM complete an instruction whose store is under way, so that the processor is as behind it.
    pub(super) fn complete_writes(&self) {
        let Some(exchange) = self.exchange.as_ref().filter(|exchange| exchange.is_write()) else {
            return;
        };
        let mut ahead = self.ahead.borrow_mut();
        if ahead.is_some() {
            return;
        }
        let mut left = VecDeque::from(exchange.rest(&self.run));
        for _ in 0..MOST_EXITS {
            self.kick.complete_only();
            if sys::complete(&self.fd).is_err() {
                break;
            }
            let Some(Ok(next)) = Exchange::new(&self.run.exit(), &self.run, RequestId(0)) else {
                break;
            };
            left.push_back(*next.request());
            left.extend(next.rest(&self.run));
        }
        self.kick.completed();
        *ahead = Some(left);
    }

    /// Checks that the time-stamp counter can count as the machine's are to.
    fn check_rate(&self) -> Result<(), StateError> {
        let saved = self.machine.counters.rate();
        if close(saved, self.khz) || self.machine.scales {
            return Ok(());
        }
        Err(StateError::TscFrequency {
            saved: saved.khz(),
            own: self.khz,
        })
    }

    /// Has the time-stamp counter count as the machine's are to.
    fn scale(&self) -> Result<(), KvmVcpuError> {
        let rate = self.machine.counters.rate();
        if close(rate, self.khz) {
            return Ok(());
        }
        self.fd.set_tsc_khz(rate.khz()).of_vcpu("KVM_SET_TSC_KHZ")
    }

    /// The registers of KVM's own interface.
    fn paravirtual(&self) -> PlatformMsrs {
        let ram = &self.machine.ram;
        let word = |address: u64, size: u8| ram.read(address, size).unwrap_or(0);
        let (time, steal) = (self.msr(MSR_KVM_SYSTEM_TIME_NEW), self.msr(MSR_KVM_STEAL_TIME));
        let mut own = PlatformMsrs {
            kvm_wall_clock: self.msr(MSR_KVM_WALL_CLOCK_NEW),
            kvm_system_time: time,
            kvm_steal_time: steal,
            ..PlatformMsrs::default()
        };
        if time & 1 != 0 {
            own.kvm_clock_version = word(time & !3, 4) as u32 & !1;
        }
        if steal & 1 != 0 {
            let place = steal & !0x3f;
            own.kvm_stolen = word(place, 8);
            own.kvm_steal_version = word(place + 8, 4) as u32 & !1;
            own.kvm_preempted = word(place + 16, 1) != 0;
        }
        own
    }

    /// A register, or 0 if KVM does not have it.
    fn msr(&self, number: u32) -> u64 {
        msrs::get(&self.fd, &[number]).map_or(0, |values| values.first().copied().unwrap_or(0))
    }

    fn clock(&self) -> Result<u64, KvmVcpuError> {
        let failed = |source| KvmVcpuError::Clock {
            source: Box::new(source),
        };
        self.machine.clock.now().map_err(failed)
    }

    fn kernel_clock(&self) -> Result<u64, KvmVcpuError> {
        let failed = |source| KvmVcpuError::Clock {
            source: Box::new(source),
        };
        self.machine.clock.kernel().map_err(failed)
    }
}

/// Whether a counter at `khz` is as good as one at `rate`.
fn close(rate: TscRate, khz: u32) -> bool {
    let tolerance = u64::from(khz) * u64::from(TOLERANCE) / 1_000_000;
    u64::from(rate.khz().abs_diff(khz)) <= tolerance
}

/// The access as the emulator knows it.
fn to_emulator(request: &IoRequest) -> Request {
    Request {
        id: request.id.0,
        space: match request.space {
            crate::Space::Port => Space::Port,
            crate::Space::Memory => Space::Memory,
        },
        address: request.address,
        size: request.size,
        direction: match request.access {
            Access::Read => Direction::Read,
            Access::Write(value) => Direction::Write(value),
            Access::ReadTo { guest, count } => Direction::ReadTo { guest, count },
            Access::WriteFrom { guest, count } => Direction::WriteFrom { guest, count },
        },
    }
}

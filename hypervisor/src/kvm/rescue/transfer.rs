//! The processor's state between KVM and the emulator: as little of it as an instruction needs, and back what has changed.
//!
//! General-purpose, system and segment registers and events come with every exit, in the run structure, and go back there:
//! KVM takes them in its next KVM_RUN. The other parts cost a call each, which on a software KVM is more than half of what an
//! exit costs.

use kvm_bindings::{KVM_MP_STATE_HALTED, kvm_mp_state, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave};
use kvm_ioctls::{SyncReg, VcpuFd};
use reprise_emulator::cpu::{Activity, Fpu, Msrs};
use reprise_emulator::{Cpu, Emulator};

use super::super::cpu::Shape;
use super::super::error::{KvmVcpuError, Named};
use super::super::{events, registers, segments, sys, xsave};
use super::needs::Parts;

/// IA32_TIME_STAMP_COUNTER.
const TSC: u32 = 0x10;

/// What the emulator holds of KVM's processor, as it was.
#[derive(Debug)]
pub struct Held {
    /// The parts.
    pub parts: Parts,
    system: kvm_sregs,
    events: kvm_vcpu_events,
    fpu: Box<Fpu>,
    /// Vector registers as KVM gave them, with what the emulator does not know of.
    area: Box<kvm_xsave>,
    xcr0: u64,
    debug: [u64; 6],
    msrs: Box<Msrs>,
}

impl Held {
    /// Nothing.
    pub fn new() -> Self {
        Self {
            parts: Parts::NONE,
            system: kvm_sregs::default(),
            events: kvm_vcpu_events::default(),
            fpu: Box::default(),
            area: Box::default(),
            xcr0: 0,
            debug: [0; 6],
            msrs: Box::default(),
        }
    }

    /// Gives the emulator the processor as it came out of KVM_RUN, `parts` of it besides what came with the exit. The
    /// time-stamp counter, if it is among them.
    ///
    /// # Errors
    /// What KVM says.
    pub fn load(
        &mut self,
        vcpu: &VcpuFd,
        shape: &Shape,
        parts: Parts,
        emulator: &mut Emulator,
    ) -> Result<Option<u64>, KvmVcpuError> {
        let came = vcpu.sync_regs();
        let extended = self.fetch(vcpu, shape, parts)?;
        let debug = match parts.has(Parts::DEBUG) {
            true => Some(vcpu.get_debug_regs().of_vcpu("KVM_GET_DEBUGREGS")?),
            false => None,
        };
        let mut specific = emulator.cpu().msr.clone();
        let mut tsc = None;
        if parts.has(Parts::MSRS) {
            tsc = Some(shape.msrs.read_besides(vcpu, &mut specific, TSC)?);
        }
        emulator.change(|cpu| {
            registers::read_general(cpu, &came.regs);
            registers::read_control(cpu, &came.sregs);
            segments::read(cpu, &came.sregs);
            match &debug {
                Some(debug) => registers::read_debug(cpu, debug),
                // Breakpoints are KVM's business then, as those of instructions that it emulates are.
                None => (cpu.dr6, cpu.dr7) = (DR6_RESET, DR7_RESET),
            }
            self.put(shape, parts, extended.as_ref(), cpu);
            cpu.msr = specific;
            cpu.activity = Activity::Running;
            events::read(cpu, &came.events);
        });
        let cpu = emulator.cpu();
        self.parts = parts;
        (self.system, self.events) = translated(cpu, &came.sregs, &came.events);
        (self.xcr0, self.debug) = (cpu.xcr0, debug_registers(cpu));
        if parts.has(Parts::MSRS) {
            (*self.msrs).clone_from(&cpu.msr);
        }
        Ok(tsc)
    }

    /// Gives the emulator, which holds the processor, vector registers or XCR0 too.
    ///
    /// # Errors
    /// What KVM says.
    pub fn load_more(
        &mut self,
        vcpu: &VcpuFd,
        shape: &Shape,
        parts: Parts,
        emulator: &mut Emulator,
    ) -> Result<(), KvmVcpuError> {
        let extended = self.fetch(vcpu, shape, parts)?;
        emulator.change(|cpu| self.put(shape, parts, extended.as_ref(), cpu));
        if parts.has(Parts::EXTENDED) {
            self.xcr0 = emulator.cpu().xcr0;
        }
        self.parts = self.parts.with(parts);
        Ok(())
    }

    /// Gives KVM back what has changed. What came with the exit lies in the run structure then, for the next KVM_RUN.
    ///
    /// # Errors
    /// What KVM says.
    pub fn store(&mut self, vcpu: &mut VcpuFd, shape: &Shape, cpu: &Cpu) -> Result<(), KvmVcpuError> {
        let came = vcpu.sync_regs();
        let (system, pending) = translated(cpu, &came.sregs, &came.events);
        if self.parts.has(Parts::VECTORS) && *self.fpu != *cpu.fpu {
            xsave::write(&shape.layout, &cpu.fpu, &mut self.area);
            sys::set_xsave(vcpu, &self.area).of_vcpu("KVM_SET_XSAVE")?;
        }
        if self.parts.has(Parts::EXTENDED) && self.xcr0 != cpu.xcr0 {
            vcpu.set_xcrs(&registers::write_extended(cpu)).of_vcpu("KVM_SET_XCRS")?;
        }
        if self.parts.has(Parts::DEBUG) && self.debug != debug_registers(cpu) {
            vcpu.set_debug_regs(&registers::write_debug(cpu))
                .of_vcpu("KVM_SET_DEBUGREGS")?;
        }
        if self.parts.has(Parts::MSRS) && *self.msrs != cpu.msr {
            shape.msrs.write(vcpu, &cpu.msr)?;
        }
        if cpu.activity == Activity::Halted {
            let mp_state = KVM_MP_STATE_HALTED;
            vcpu.set_mp_state(kvm_mp_state { mp_state })
                .of_vcpu("KVM_SET_MP_STATE")?;
        }
        let place = vcpu.sync_regs_mut();
        place.regs = registers::write_general(cpu);
        (place.sregs, place.events) = (system, pending);
        vcpu.set_sync_dirty_reg(SyncReg::Register);
        if self.system != system {
            vcpu.set_sync_dirty_reg(SyncReg::SystemRegister);
        }
        if self.events != pending {
            vcpu.set_sync_dirty_reg(SyncReg::VcpuEvents);
        }
        self.parts = Parts::NONE;
        Ok(())
    }

    /// Has KVM take what lies in the run structure now, and not at the next KVM_RUN.
    ///
    /// # Errors
    /// What KVM says.
    pub fn settle(vcpu: &mut VcpuFd) -> Result<(), KvmVcpuError> {
        let came = vcpu.sync_regs();
        for part in [SyncReg::Register, SyncReg::SystemRegister, SyncReg::VcpuEvents] {
            vcpu.clear_sync_dirty_reg(part);
        }
        vcpu.set_regs(&came.regs).of_vcpu("KVM_SET_REGS")?;
        vcpu.set_sregs(&came.sregs).of_vcpu("KVM_SET_SREGS")?;
        vcpu.set_vcpu_events(&came.events).of_vcpu("KVM_SET_VCPU_EVENTS")
    }

    /// Fetches vector registers and XCR0, as far as they are among `parts`.
    fn fetch(&mut self, vcpu: &VcpuFd, shape: &Shape, parts: Parts) -> Result<Option<kvm_xcrs>, KvmVcpuError> {
        if parts.has(Parts::VECTORS) {
            sys::get_xsave(vcpu, &mut self.area).of_vcpu("KVM_GET_XSAVE")?;
        }
        Ok(match parts.has(Parts::EXTENDED) && shape.has_xsave {
            true => Some(vcpu.get_xcrs().of_vcpu("KVM_GET_XCRS")?),
            false => None,
        })
    }

    /// Gives the processor what was fetched.
    fn put(&mut self, shape: &Shape, parts: Parts, extended: Option<&kvm_xcrs>, cpu: &mut Cpu) {
        if let Some(extended) = extended {
            registers::read_extended(cpu, extended);
        }
        if parts.has(Parts::VECTORS) {
            xsave::read(&shape.layout, &self.area, &mut cpu.fpu);
            (*self.fpu).clone_from(&cpu.fpu);
        }
    }

    /// Puts what the emulator holds, in `from`, over what was read from KVM.
    pub fn overlay(&self, from: &Cpu, to: &mut Cpu) {
        to.gpr.clone_from(&from.gpr);
        (to.rip, to.flags) = (from.rip, from.flags);
        (to.segments, to.ldtr, to.tr) = (from.segments.clone(), from.ldtr, from.tr);
        (to.gdtr, to.idtr) = (from.gdtr, from.idtr);
        (to.cr0, to.cr2, to.cr3, to.cr4, to.efer) = (from.cr0, from.cr2, from.cr3, from.cr4, from.efer);
        (to.activity, to.shadow, to.nmi_blocked, to.event) = (from.activity, from.shadow, from.nmi_blocked, from.event);
        to.breakpoints = from.breakpoints;
        if self.parts.has(Parts::VECTORS) {
            (*to.fpu).clone_from(&from.fpu);
        }
        if self.parts.has(Parts::EXTENDED) {
            to.xcr0 = from.xcr0;
        }
        if self.parts.has(Parts::DEBUG) {
            (to.dr, to.dr6, to.dr7) = (from.dr, from.dr6, from.dr7);
        }
        if self.parts.has(Parts::MSRS) {
            to.msr = from.msr.clone();
        }
        to.refresh();
    }
}

/// Debug status and control after RESET: nothing is watched.
const DR6_RESET: u64 = 0xffff_0ff0;
const DR7_RESET: u64 = 0x400;

fn debug_registers(cpu: &Cpu) -> [u64; 6] {
    let [a, b, c, d] = cpu.dr;
    [a, b, c, d, cpu.dr6, cpu.dr7]
}

/// System registers and events as KVM takes them; what is not the processor's is as in `system` and `pending`.
fn translated(cpu: &Cpu, system: &kvm_sregs, pending: &kvm_vcpu_events) -> (kvm_sregs, kvm_vcpu_events) {
    let (mut system, mut pending) = (*system, *pending);
    registers::write_control(cpu, &mut system);
    segments::write(cpu, &mut system);
    // An interrupt that is being delivered is the events' business.
    system.interrupt_bitmap = [0; 4];
    events::write(cpu, &mut pending);
    (system, pending)
}

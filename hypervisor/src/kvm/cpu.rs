//! The whole processor: read from KVM, and put into it.

use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED, kvm_mp_state,
    kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use reprise_emulator::Cpu;
use reprise_emulator::cpu::Activity;

use super::error::{KvmVcpuError, Named};
use super::xsave::Layout;
use super::{events, msrs, registers, segments, sys, xsave};

/// What is the same for all vCPUs of a machine.
#[derive(Debug)]
pub struct Shape {
    /// The processor's own MSRs that KVM has.
    pub msrs: msrs::Known,
    /// Where KVM's XSAVE area has what.
    pub layout: Layout,
    /// The guest has XSAVE, and with it XCR0.
    pub has_xsave: bool,
    /// KVM leaves SYSCALL of ring 3 half done.
    pub halves_syscalls: bool,
}

/// Reads the processor. What KVM does not have is as in `beside`.
///
/// # Errors
/// What KVM says.
pub fn read(vcpu: &VcpuFd, shape: &Shape, beside: &Cpu) -> Result<Box<Cpu>, KvmVcpuError> {
    let mut cpu = Box::new(beside.clone());
    // First, as it is this that has KVM act upon an INIT or a start-up IPI that has come meanwhile.
    let state = vcpu.get_mp_state().of_vcpu("KVM_GET_MP_STATE")?.mp_state;
    cpu.activity = match state {
        KVM_MP_STATE_HALTED => Activity::Halted,
        KVM_MP_STATE_UNINITIALIZED | KVM_MP_STATE_INIT_RECEIVED => Activity::WaitForSipi,
        _ => Activity::Running,
    };
    registers::read_general(&mut cpu, &vcpu.get_regs().of_vcpu("KVM_GET_REGS")?);
    let system = vcpu.get_sregs().of_vcpu("KVM_GET_SREGS")?;
    registers::read_control(&mut cpu, &system);
    segments::read(&mut cpu, &system);
    registers::read_debug(&mut cpu, &vcpu.get_debug_regs().of_vcpu("KVM_GET_DEBUGREGS")?);
    if shape.has_xsave {
        registers::read_extended(&mut cpu, &vcpu.get_xcrs().of_vcpu("KVM_GET_XCRS")?);
    }
    let mut area = kvm_xsave::default();
    sys::get_xsave(vcpu, &mut area).of_vcpu("KVM_GET_XSAVE")?;
    xsave::read(&shape.layout, &area, &mut cpu.fpu);
    shape.msrs.read(vcpu, &mut cpu.msr)?;
    events::read(&mut cpu, &vcpu.get_vcpu_events().of_vcpu("KVM_GET_VCPU_EVENTS")?);
    cpu.refresh();
    Ok(cpu)
}

/// Replaces the processor. The local APIC stays, and what is pending there.
///
/// # Errors
/// What KVM says; the processor is in no particular state then.
pub fn write(vcpu: &VcpuFd, shape: &Shape, cpu: &Cpu) -> Result<(), KvmVcpuError> {
    let mut system = vcpu.get_sregs().of_vcpu("KVM_GET_SREGS")?;
    registers::write_control(cpu, &mut system);
    segments::write(cpu, &mut system);
    // An interrupt that is being delivered is the events' business.
    system.interrupt_bitmap = [0; 4];
    vcpu.set_sregs(&system).of_vcpu("KVM_SET_SREGS")?;
    vcpu.set_regs(&registers::write_general(cpu)).of_vcpu("KVM_SET_REGS")?;
    if shape.has_xsave {
        vcpu.set_xcrs(&registers::write_extended(cpu)).of_vcpu("KVM_SET_XCRS")?;
    }
    let mut area = kvm_xsave::default();
    xsave::write(&shape.layout, &cpu.fpu, &mut area);
    sys::set_xsave(vcpu, &area).of_vcpu("KVM_SET_XSAVE")?;
    vcpu.set_debug_regs(&registers::write_debug(cpu))
        .of_vcpu("KVM_SET_DEBUGREGS")?;
    shape.msrs.write(vcpu, &cpu.msr)?;
    let mut pending = vcpu.get_vcpu_events().of_vcpu("KVM_GET_VCPU_EVENTS")?;
    events::write(cpu, &mut pending);
    vcpu.set_vcpu_events(&pending).of_vcpu("KVM_SET_VCPU_EVENTS")?;
    let mp_state = match cpu.activity {
        Activity::Running | Activity::Shutdown => KVM_MP_STATE_RUNNABLE,
        Activity::Halted => KVM_MP_STATE_HALTED,
        Activity::WaitForSipi => KVM_MP_STATE_INIT_RECEIVED,
    };
    vcpu.set_mp_state(kvm_mp_state { mp_state }).of_vcpu("KVM_SET_MP_STATE")
}

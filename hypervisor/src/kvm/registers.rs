//! General-purpose, control and debug registers: the crate's own, and KVM's.

use kvm_bindings::{kvm_debugregs, kvm_regs, kvm_sregs, kvm_xcr, kvm_xcrs};
use reprise_emulator::Cpu;
use reprise_emulator::cpu::{Cr0, Cr4, Efer};

/// What KVM's general-purpose registers say.
pub fn read_general(cpu: &mut Cpu, from: &kvm_regs) {
    let values = [
        from.rax, from.rcx, from.rdx, from.rbx, from.rsp, from.rbp, from.rsi, from.rdi, from.r8, from.r9, from.r10,
        from.r11, from.r12, from.r13, from.r14, from.r15,
    ];
    for (number, value) in (0..).zip(values) {
        cpu.gpr.set(number, value);
    }
    cpu.rip = from.rip;
    cpu.flags.set_bits(from.rflags);
}

/// General-purpose registers as KVM takes them.
pub fn write_general(cpu: &Cpu) -> kvm_regs {
    let gpr = |number| cpu.gpr.get(number);
    kvm_regs {
        rax: gpr(0),
        rcx: gpr(1),
        rdx: gpr(2),
        rbx: gpr(3),
        rsp: gpr(4),
        rbp: gpr(5),
        rsi: gpr(6),
        rdi: gpr(7),
        r8: gpr(8),
        r9: gpr(9),
        r10: gpr(10),
        r11: gpr(11),
        r12: gpr(12),
        r13: gpr(13),
        r14: gpr(14),
        r15: gpr(15),
        rip: cpu.rip,
        rflags: cpu.flags.bits(),
    }
}

/// What KVM's control registers say; the local APIC's (CR8, IA32_APIC_BASE) are not the processor's.
pub fn read_control(cpu: &mut Cpu, from: &kvm_sregs) {
    cpu.cr0 = Cr0(from.cr0);
    cpu.cr2 = from.cr2;
    cpu.cr3 = from.cr3;
    cpu.cr4 = Cr4(from.cr4);
    cpu.efer = Efer(from.efer);
}

/// Puts control registers where KVM takes them; the local APIC's stay.
pub fn write_control(cpu: &Cpu, to: &mut kvm_sregs) {
    to.cr0 = cpu.cr0.0;
    to.cr2 = cpu.cr2;
    to.cr3 = cpu.cr3;
    to.cr4 = cpu.cr4.0;
    to.efer = cpu.efer.0;
}

/// What KVM's debug registers say.
pub fn read_debug(cpu: &mut Cpu, from: &kvm_debugregs) {
    cpu.dr = from.db;
    cpu.dr6 = from.dr6;
    cpu.dr7 = from.dr7;
}

/// Debug registers as KVM takes them.
pub fn write_debug(cpu: &Cpu) -> kvm_debugregs {
    kvm_debugregs {
        db: cpu.dr,
        dr6: cpu.dr6,
        dr7: cpu.dr7,
        ..kvm_debugregs::default()
    }
}

/// What KVM's extended control register says; without XSAVE there is none, and x87 is enabled.
pub fn read_extended(cpu: &mut Cpu, from: &kvm_xcrs) {
    let count = (from.nr_xcrs as usize).min(from.xcrs.len());
    let xcr0 = from.xcrs[..count].iter().find(|register| register.xcr == 0);
    cpu.xcr0 = xcr0.map_or(1, |register| register.value);
}

/// The extended control register as KVM takes it.
pub fn write_extended(cpu: &Cpu) -> kvm_xcrs {
    let mut to = kvm_xcrs {
        nr_xcrs: 1,
        ..kvm_xcrs::default()
    };
    to.xcrs[0] = kvm_xcr {
        xcr: 0,
        value: cpu.xcr0,
        ..kvm_xcr::default()
    };
    to
}

//! SYSCALL, SYSRET, SYSENTER, SYSEXIT, SWAPGS, the FS and GS base instructions, and hypercalls.
//!
//! As on the modelled processor (APM Vol. 3): SYSCALL works in every mode with EFER.SCE, SYSENTER and SYSEXIT are legacy
//! mode's, and SYSRET leaves a non-canonical RIP to be found by the fetch in user mode.

use crate::access::{Access, Outcome, Stop};
use crate::careful::Careful;
use crate::cpu::{Attributes, Cpu, Cr4, Efer, Mode, Seg, Segment, flags, gpr};
use crate::event::Exception;
use crate::op::Op;
use crate::paging::is_canonical;
use crate::table::Table;
use crate::word::Word;
use iced_x86::Code;

/// Flat 64-bit code: accessed, readable, present, L.
const CODE64: u16 = 0xa09b;
/// Flat 32-bit code: accessed, readable, present, D.
const CODE32: u16 = 0xc09b;
/// Flat stack: accessed, writable, present, B.
const STACK: u16 = 0xc093;
/// Flags that SYSRET restores from R11: all but RF and VM.
const SYSRET_FLAGS: u64 = flags::DEFINED & !(flags::RF | flags::VM);

pub(super) fn fill<M: Access>(table: &mut Table<M>) {
    table.end(Code::Syscall, syscall::<M>);
    table.end(Code::Sysretd, sysret::<M, u32>);
    table.end(Code::Sysretq, sysret::<M, u64>);
    table.end(Code::Sysenter, sysenter::<M>);
    table.end(Code::Sysexitd, sysexit::<M>);
    table.end(Code::Sysexitq, sysexit::<M>);
    table.plain(Code::Swapgs, swapgs::<M>);
    table.plain(Code::Rdfsbase_r32, read_base::<M, u32, 4>);
    table.plain(Code::Rdfsbase_r64, read_base::<M, u64, 4>);
    table.plain(Code::Rdgsbase_r32, read_base::<M, u32, 5>);
    table.plain(Code::Rdgsbase_r64, read_base::<M, u64, 5>);
    table.plain(Code::Wrfsbase_r32, write_base::<M, u32, 4>);
    table.plain(Code::Wrfsbase_r64, write_base::<M, u64, 4>);
    table.plain(Code::Wrgsbase_r32, write_base::<M, u32, 5>);
    table.plain(Code::Wrgsbase_r64, write_base::<M, u64, 5>);
    table.careful(Code::Vmcall, hypercall);
    table.careful(Code::Vmmcall, hypercall);
}

fn flat(selector: u16, attributes: u16, cpl: u8) -> Segment {
    Segment::flat(selector, Attributes(attributes).with_dpl(cpl))
}

fn syscall<M: Access>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    if !cpu.efer.any(Efer::SCE) {
        return Err(Exception::ud().into());
    }
    let selector = (cpu.msr.star >> 32) as u16 & !3;
    let next = op.next_ip(cpu);
    if cpu.view.is_ia32e() {
        let target = if cpu.view.is_long() {
            cpu.msr.lstar
        } else {
            cpu.msr.cstar
        };
        let image = cpu.flags.bits() & !flags::RF;
        cpu.gpr.set(gpr::RCX, next);
        cpu.gpr.set(gpr::R11, image);
        cpu.flags.set_bits(image & !cpu.msr.fmask);
        cpu.segments[Seg::Cs] = flat(selector, CODE64, 0);
        cpu.rip = target;
    } else {
        cpu.gpr.write::<u32>(gpr::RCX, next);
        cpu.flags.assign(flags::IF | flags::VM | flags::RF, false);
        cpu.segments[Seg::Cs] = flat(selector, CODE32, 0);
        cpu.rip = cpu.msr.star & 0xffff_ffff;
    }
    cpu.segments[Seg::Ss] = flat(selector.wrapping_add(8), STACK, 0);
    cpu.refresh();
    Err(Stop::Jumped)
}

fn sysret<M: Access, T: Word>(cpu: &mut Cpu, _: &mut M, _: &Op<M>) -> Outcome {
    if !cpu.efer.any(Efer::SCE) {
        return Err(Exception::ud().into());
    }
    if !cpu.view.has_descriptors() || cpu.cpl() != 0 {
        return Err(Exception::gp(0).into());
    }
    let star = (cpu.msr.star >> 48) as u16;
    let target = cpu.gpr.read::<T>(gpr::RCX);
    let (selector, attributes) = if T::SIZE == 8 {
        (star.wrapping_add(16), CODE64)
    } else {
        (star, CODE32)
    };
    if cpu.view.is_ia32e() {
        let image = cpu.gpr.get(gpr::R11) & SYSRET_FLAGS;
        cpu.flags.set_bits(image);
    } else {
        cpu.flags.assign(flags::IF, true);
    }
    cpu.segments[Seg::Cs] = flat(selector | 3, attributes, 3);
    // AMD keeps base, limit and attributes of the old SS, which compatibility mode then stumbles over; a flat segment is
    // what other processors load, and what every kernel means.
    cpu.segments[Seg::Ss] = flat(star.wrapping_add(8) | 3, STACK, 3);
    cpu.rip = target;
    cpu.refresh();
    Err(Stop::Jumped)
}

fn sysenter<M: Access>(cpu: &mut Cpu, _: &mut M, _: &Op<M>) -> Outcome {
    if cpu.efer.any(Efer::LMA) {
        return Err(Exception::ud().into());
    }
    let selector = cpu.msr.sysenter_cs as u16 & !3;
    if cpu.view.mode == Mode::Real || selector == 0 {
        return Err(Exception::gp(0).into());
    }
    cpu.flags.assign(flags::IF | flags::VM | flags::RF, false);
    cpu.segments[Seg::Cs] = flat(selector, CODE32, 0);
    cpu.segments[Seg::Ss] = flat(selector.wrapping_add(8), STACK, 0);
    cpu.gpr.write::<u32>(gpr::RSP, cpu.msr.sysenter_esp);
    cpu.rip = cpu.msr.sysenter_eip & 0xffff_ffff;
    cpu.refresh();
    Err(Stop::Jumped)
}

fn sysexit<M: Access>(cpu: &mut Cpu, _: &mut M, _: &Op<M>) -> Outcome {
    if cpu.view.mode == Mode::Real || cpu.cpl() != 0 {
        return Err(Exception::gp(0).into());
    }
    if cpu.efer.any(Efer::LMA) {
        return Err(Exception::ud().into());
    }
    let selector = cpu.msr.sysenter_cs as u16 & !3;
    if selector == 0 {
        return Err(Exception::gp(0).into());
    }
    cpu.segments[Seg::Cs] = flat(selector.wrapping_add(16) | 3, CODE32, 3);
    cpu.segments[Seg::Ss] = flat(selector.wrapping_add(24) | 3, STACK, 3);
    cpu.rip = cpu.gpr.read::<u32>(gpr::RDX);
    let stack = cpu.gpr.read::<u32>(gpr::RCX);
    cpu.gpr.write::<u32>(gpr::RSP, stack);
    cpu.refresh();
    Err(Stop::Jumped)
}

fn swapgs<M: Access>(cpu: &mut Cpu, _: &mut M, _: &Op<M>) -> Outcome {
    if cpu.cpl() != 0 {
        return Err(Exception::gp(0).into());
    }
    let base = core::mem::replace(&mut cpu.segments[Seg::Gs].base, cpu.msr.kernel_gs_base);
    cpu.msr.kernel_gs_base = base;
    cpu.refresh();
    Ok(())
}

fn read_base<M: Access, T: Word, const SEG: u8>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    if !cpu.cr4.any(Cr4::FSGSBASE) {
        return Err(Exception::ud().into());
    }
    let base = cpu.segments[Seg::from_number(SEG)].base;
    cpu.gpr.write::<T>(op.r1, base);
    Ok(())
}

fn write_base<M: Access, T: Word, const SEG: u8>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    if !cpu.cr4.any(Cr4::FSGSBASE) {
        return Err(Exception::ud().into());
    }
    let base = cpu.gpr.read::<T>(op.r1);
    if !is_canonical(cpu, base) {
        return Err(Exception::gp(0).into());
    }
    cpu.segments[Seg::from_number(SEG)].base = base;
    cpu.refresh();
    Ok(())
}

/// VMCALL and VMMCALL. Who may call for what is the platform's to say.
fn hypercall(cpu: &mut Cpu, m: &mut Careful, _: &Op<Careful>) -> Outcome {
    if cpu.view.is_long() {
        let result = m.hypercall(cpu.gpr.get(gpr::RAX))?;
        cpu.gpr.set(gpr::RAX, result);
    } else {
        let result = m.hypercall(cpu.gpr.read::<u32>(gpr::RAX))?;
        cpu.gpr.write::<u32>(gpr::RAX, result);
        cpu.gpr.write::<u32>(gpr::RDX, result >> 32);
    }
    Err(Stop::Next)
}

//! Whether x87, MMX, SSE and XSAVE instructions may run now: the checks that come before everything else.
//!
//! The order is that of the exception tables (SDM Vol. 2, Instruction Exception Specification): #UD for what is switched
//! off, then #NM for a task that does not own the registers, then #MF for an x87 exception that is still to be reported.

use crate::access::Outcome;
use crate::cpu::{Cpu, Cr0, Cr4, fpu};
use crate::event::{self, Exception};

/// An x87 instruction that does not wait for pending exceptions: FNINIT, FNSTSW and the like.
#[inline(always)]
pub(super) fn x87_control(cpu: &Cpu) -> Outcome {
    if cpu.cr0.any(Cr0::EM | Cr0::TS) {
        return Err(Exception::nm().into());
    }
    Ok(())
}

/// Any other x87 instruction.
#[inline(always)]
pub(super) fn x87(cpu: &Cpu) -> Outcome {
    x87_control(cpu)?;
    pending(cpu)
}

/// FWAIT: only CR0.MP lets it obey CR0.TS.
pub(super) fn wait(cpu: &Cpu) -> Outcome {
    if cpu.cr0.any(Cr0::MP) && cpu.cr0.any(Cr0::TS) {
        return Err(Exception::nm().into());
    }
    pending(cpu)
}

/// An instruction on MMX registers.
#[inline(always)]
pub(super) fn mmx(cpu: &Cpu) -> Outcome {
    if cpu.cr0.any(Cr0::EM) {
        return Err(Exception::ud().into());
    }
    if cpu.cr0.any(Cr0::TS) {
        return Err(Exception::nm().into());
    }
    pending(cpu)
}

/// An instruction on XMM registers or MXCSR.
#[inline(always)]
pub(super) fn sse(cpu: &Cpu) -> Outcome {
    if cpu.cr0.0 & (Cr0::EM | Cr0::TS) | !cpu.cr4.0 & Cr4::OSFXSR == 0 {
        return Ok(());
    }
    sse_unavailable(cpu)
}

#[cold]
fn sse_unavailable(cpu: &Cpu) -> Outcome {
    if cpu.cr0.any(Cr0::EM) || !cpu.cr4.any(Cr4::OSFXSR) {
        return Err(Exception::ud().into());
    }
    Err(Exception::nm().into())
}

/// An instruction with a VEX prefix on vector registers.
#[inline(always)]
pub(super) fn avx(cpu: &Cpu) -> Outcome {
    extended(cpu, fpu::SSE | fpu::AVX)
}

/// An instruction with an EVEX prefix, or on opmask registers.
#[inline(always)]
pub(super) fn avx512(cpu: &Cpu) -> Outcome {
    extended(cpu, fpu::SSE | fpu::AVX | fpu::AVX512)
}

#[inline(always)]
fn extended(cpu: &Cpu, components: u64) -> Outcome {
    let enabled = cpu.cr4.any(Cr4::OSXSAVE) && cpu.xcr0 & components == components;
    if enabled && cpu.view.has_descriptors() && !cpu.cr0.any(Cr0::TS) {
        return Ok(());
    }
    extended_unavailable(cpu, enabled)
}

#[cold]
fn extended_unavailable(cpu: &Cpu, enabled: bool) -> Outcome {
    if !enabled || !cpu.view.has_descriptors() {
        return Err(Exception::ud().into());
    }
    Err(Exception::nm().into())
}

/// An instruction on XMM and MMX registers.
#[inline(always)]
pub(super) fn sse_mmx(cpu: &Cpu) -> Outcome {
    sse(cpu)?;
    pending(cpu)
}

/// An instruction on general-purpose registers that has a VEX prefix.
#[inline(always)]
pub(super) fn vex_integer(cpu: &Cpu) -> Outcome {
    if cpu.view.has_descriptors() {
        return Ok(());
    }
    Err(Exception::ud().into())
}

/// FXSAVE and FXRSTOR.
pub(super) fn fxsave(cpu: &Cpu) -> Outcome {
    x87_control(cpu)
}

/// The XSAVE family.
pub(super) fn xsave(cpu: &Cpu) -> Outcome {
    if !cpu.cr4.any(Cr4::OSXSAVE) {
        return Err(Exception::ud().into());
    }
    if cpu.cr0.any(Cr0::TS) {
        return Err(Exception::nm().into());
    }
    Ok(())
}

/// Reports an unmasked x87 exception of an earlier instruction. With CR0.NE clear it would be an external interrupt
/// (FERR#), which no machine that we model wires up: it is then ignored.
#[inline(always)]
fn pending(cpu: &Cpu) -> Outcome {
    if cpu.fpu.is_pending() && cpu.cr0.any(Cr0::NE) {
        return Err(Exception::plain(event::MF).into());
    }
    Ok(())
}

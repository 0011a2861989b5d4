//! RDMSR, WRMSR, the time-stamp counter, and random numbers.

use crate::access::{Access, Outcome, Stop};
use crate::careful::{Careful, Flush};
use crate::cpu::msr::{MsrRead, MsrWrite};
use crate::cpu::{Cpu, Cr4, flags, gpr};
use crate::event::Exception;
use crate::op::Op;
use crate::table::Table;
use crate::word::Word;
use iced_x86::Code;

pub(super) fn fill<M: Access>(table: &mut Table<M>) {
    table.careful(Code::Rdmsr, rdmsr);
    table.careful(Code::Wrmsr, wrmsr);
    table.plain(Code::Rdtsc, rdtsc);
    table.plain(Code::Rdtscp, rdtscp);
    table.plain(Code::Rdpid_r32, rdpid);
    table.plain(Code::Rdpid_r64, rdpid);
    table.plain(Code::Rdpmc, rdpmc);
    for code in [Code::Rdrand_r16, Code::Rdseed_r16] {
        table.plain(code, random::<M, u16>);
    }
    for code in [Code::Rdrand_r32, Code::Rdseed_r32] {
        table.plain(code, random::<M, u32>);
    }
    for code in [Code::Rdrand_r64, Code::Rdseed_r64] {
        table.plain(code, random::<M, u64>);
    }
}

/// Puts the halves of `value` into EDX and EAX.
pub(super) fn set_edx_eax(cpu: &mut Cpu, value: u64) {
    cpu.gpr.write::<u32>(gpr::RAX, value & 0xffff_ffff);
    cpu.gpr.write::<u32>(gpr::RDX, value >> 32);
}

/// EDX:EAX.
pub(super) fn edx_eax(cpu: &Cpu) -> u64 {
    cpu.gpr.read::<u32>(gpr::RDX) << 32 | cpu.gpr.read::<u32>(gpr::RAX)
}

fn rdmsr(cpu: &mut Cpu, m: &mut Careful, _: &Op<Careful>) -> Outcome {
    if cpu.cpl() != 0 {
        return Err(Exception::gp(0).into());
    }
    let msr = cpu.gpr.read::<u32>(gpr::RCX) as u32;
    let value = match cpu.read_msr(&m.cpuid, msr) {
        MsrRead::Value(value) => value,
        MsrRead::Refused => return Err(Exception::gp(0).into()),
        MsrRead::Platform => m.msr_read(msr)?,
    };
    set_edx_eax(cpu, value);
    Ok(())
}

fn wrmsr(cpu: &mut Cpu, m: &mut Careful, _: &Op<Careful>) -> Outcome {
    if cpu.cpl() != 0 {
        return Err(Exception::gp(0).into());
    }
    let msr = cpu.gpr.read::<u32>(gpr::RCX) as u32;
    let value = edx_eax(cpu);
    match cpu.write_msr(&m.cpuid, msr, value) {
        MsrWrite::Done => {}
        MsrWrite::Flush => m.invalidate(Flush::All),
        MsrWrite::Refused => return Err(Exception::gp(0).into()),
        MsrWrite::Platform => m.msr_write(msr, value)?,
    }
    Err(Stop::Next)
}

fn may_read_clock(cpu: &Cpu) -> Result<(), Stop> {
    if cpu.cr4.any(Cr4::TSD) && cpu.cpl() != 0 {
        return Err(Exception::gp(0).into());
    }
    Ok(())
}

fn rdtsc<M: Access>(cpu: &mut Cpu, m: &mut M, _: &Op<M>) -> Outcome {
    may_read_clock(cpu)?;
    let tsc = m.tsc()?;
    set_edx_eax(cpu, tsc);
    Ok(())
}

fn rdtscp<M: Access>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    rdtsc(cpu, m, op)?;
    cpu.gpr.write::<u32>(gpr::RCX, cpu.msr.tsc_aux);
    Ok(())
}

fn rdpid<M: Access>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    cpu.gpr.set(op.r1, cpu.msr.tsc_aux);
    Ok(())
}

/// There are no performance counters, so no ECX names one.
fn rdpmc<M: Access>(_: &mut Cpu, _: &mut M, _: &Op<M>) -> Outcome {
    Err(Exception::gp(0).into())
}

/// RDRAND and RDSEED: chance never runs out, so CF is always set; the other status flags are clear.
fn random<M: Access, T: Word>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    let value = m.random()?;
    cpu.gpr.write::<T>(op.r1, value);
    cpu.flags.set_status(flags::CF);
    Ok(())
}

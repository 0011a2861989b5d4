//! Single flags (CLC to STD, LAHF, SAHF), fences, cache hints and instructions that do nothing.

use core::sync::atomic::{Ordering, fence};

use iced_x86::Code;

use crate::access::{Access, Outcome};
use crate::cpu::{Cpu, flags, gpr};
use crate::event::Exception;
use crate::op::Op;
use crate::operand::{Addressing, General, Use};
use crate::table::Table;

/// What SAHF takes and LAHF gives.
const LOW_FLAGS: u64 = flags::SF | flags::ZF | flags::AF | flags::PF | flags::CF;

fn nop<M: Access>(_: &mut Cpu, _: &mut M, _: &Op<M>) -> Outcome {
    Ok(())
}

fn clc<M: Access>(cpu: &mut Cpu, _: &mut M, _: &Op<M>) -> Outcome {
    cpu.flags.set_carry(false);
    Ok(())
}

fn stc<M: Access>(cpu: &mut Cpu, _: &mut M, _: &Op<M>) -> Outcome {
    cpu.flags.set_carry(true);
    Ok(())
}

fn cmc<M: Access>(cpu: &mut Cpu, _: &mut M, _: &Op<M>) -> Outcome {
    let carry = cpu.flags.carry();
    cpu.flags.set_carry(!carry);
    Ok(())
}

fn cld<M: Access>(cpu: &mut Cpu, _: &mut M, _: &Op<M>) -> Outcome {
    cpu.flags.assign(flags::DF, false);
    Ok(())
}

fn std<M: Access>(cpu: &mut Cpu, _: &mut M, _: &Op<M>) -> Outcome {
    cpu.flags.assign(flags::DF, true);
    Ok(())
}

fn lahf<M: Access>(cpu: &mut Cpu, _: &mut M, _: &Op<M>) -> Outcome {
    let low = cpu.flags.status() & LOW_FLAGS | flags::RESERVED_ONE;
    cpu.gpr.write::<u8>(gpr::RAX | gpr::HIGH, low);
    Ok(())
}

fn sahf<M: Access>(cpu: &mut Cpu, _: &mut M, _: &Op<M>) -> Outcome {
    let low = cpu.gpr.read::<u8>(gpr::RAX | gpr::HIGH) & LOW_FLAGS;
    let status = cpu.flags.status() & !LOW_FLAGS | low;
    cpu.flags.set_status(status);
    Ok(())
}

/// MFENCE. The host orders loads among loads and stores among stores as the guest's processor would, so LFENCE and
/// SFENCE need nothing; only a load that passes an earlier store has to be held back.
fn mfence<M: Access>(_: &mut Cpu, _: &mut M, _: &Op<M>) -> Outcome {
    fence(Ordering::SeqCst);
    Ok(())
}

/// SERIALIZE. Instructions are executed one after the other here; like MFENCE it lets no load pass an earlier store.
fn serialize<M: Access>(_: &mut Cpu, _: &mut M, _: &Op<M>) -> Outcome {
    fence(Ordering::SeqCst);
    Ok(())
}

/// CLFLUSH and its kin: there is no cache, but the line's address must be one that may be read.
fn flush_line<M: Access>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    let at = General::linear(cpu, op, 1, Use::Read)?;
    m.check_read(cpu, at, 1)
}

/// Adds the rows of this family.
#[rustfmt::skip]
pub(super) fn fill<M: Access>(table: &mut Table<M>) {
    use Code::*;
    table.plain(Clc, clc::<M>);
    table.plain(Stc, stc::<M>);
    table.plain(Cmc, cmc::<M>);
    table.plain(Cld, cld::<M>);
    table.plain(Std, std::<M>);
    table.plain(Lahf, lahf::<M>);
    table.plain(Sahf, sahf::<M>);
    for code in [
        Nopw, Nopd, Nopq, Nop_rm16, Nop_rm32, Nop_rm64, Pause, Endbr32, Endbr64,
        // Shadow stacks are never on, so reading the pointer does nothing (SDM Vol. 2, RDSSPD/RDSSPQ).
        Rdsspd_r32, Rdsspq_r64,
        Prefetch_m8, Prefetchw_m8, Prefetchwt1_m8, Prefetchnta_m8, Prefetcht0_m8, Prefetcht1_m8, Prefetcht2_m8,
        Prefetchreserved3_m8, Prefetchreserved4_m8, Prefetchreserved5_m8, Prefetchreserved6_m8, Prefetchreserved7_m8,
        Prefetchit0_m8, Prefetchit1_m8, Cldemote_m8,
        Reservednop_rm16_r16_0F18, Reservednop_rm32_r32_0F18, Reservednop_rm64_r64_0F18,
        Reservednop_rm16_r16_0F19, Reservednop_rm32_r32_0F19, Reservednop_rm64_r64_0F19,
        Reservednop_rm16_r16_0F1A, Reservednop_rm32_r32_0F1A, Reservednop_rm64_r64_0F1A,
        Reservednop_rm16_r16_0F1B, Reservednop_rm32_r32_0F1B, Reservednop_rm64_r64_0F1B,
        Reservednop_rm16_r16_0F1C, Reservednop_rm32_r32_0F1C, Reservednop_rm64_r64_0F1C,
        Reservednop_rm16_r16_0F1D, Reservednop_rm32_r32_0F1D, Reservednop_rm64_r64_0F1D,
        Reservednop_rm16_r16_0F1E, Reservednop_rm32_r32_0F1E, Reservednop_rm64_r64_0F1E,
        Reservednop_rm16_r16_0F1F, Reservednop_rm32_r32_0F1F, Reservednop_rm64_r64_0F1F,
        Lfence, Lfence_E9, Lfence_EA, Lfence_EB, Lfence_EC, Lfence_ED, Lfence_EE, Lfence_EF,
        Sfence, Sfence_F9, Sfence_FA, Sfence_FB, Sfence_FC, Sfence_FD, Sfence_FE, Sfence_FF,
    ] {
        table.plain(code, nop::<M>);
    }
    // Prefetches exist with memory operands only (APM Vol. 3, PREFETCH).
    for code in [Reservednop_rm16_r16_0F0D, Reservednop_rm32_r32_0F0D, Reservednop_rm64_r64_0F0D] {
        table.rm(code, |_, _, _| Err(Exception::ud().into()), nop::<M>);
    }
    for code in [Mfence, Mfence_F1, Mfence_F2, Mfence_F3, Mfence_F4, Mfence_F5, Mfence_F6, Mfence_F7] {
        table.plain(code, mfence::<M>);
    }
    table.plain(Serialize, serialize::<M>);
    for code in [Clflush_m8, Clflushopt_m8, Clwb_m8] {
        table.plain(code, flush_line::<M>);
    }
}

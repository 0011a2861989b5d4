//! String instructions: MOVS, CMPS, SCAS, LODS, STOS, and the REP prefixes.
//!
//! Each iteration of a repeated instruction commits by itself: registers are exact wherever a fault, an interrupt or a
//! device stops it. The fast way commits many iterations before it looks for interrupts, and moves whole stretches of a
//! page at once where nobody could tell.

use iced_x86::Code;

use super::arith::set_difference_flags;
use crate::access::{Access, Linear, Outcome, Stop};
use crate::cpu::{Cpu, Seg, gpr};
use crate::op::{Attr, Handler, Op};
use crate::operand::Use;
use crate::table::Table;
use crate::word::Word;

/// What an iteration of a string instruction does, and how it may end the repetition.
trait Step<M: Access>: 'static {
    /// One element. Registers other than the index registers and flags stay.
    fn step<T: Word>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome;

    /// As many elements at once as possible, at most `count`, upwards; how many.
    fn run<T: Word>(_: &mut Cpu, _: &mut M, _: &Op<M>, _count: u64) -> Result<u64, Stop> {
        Ok(0)
    }

    /// REPE and REPNE stop on the comparison's result; without a comparison both are REP.
    const COMPARES: bool = false;
}

/// Executes one instruction with its repetitions.
fn string<M: Access, S: Step<M>, T: Word>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    if !op.attr.is_repeated() {
        return S::step::<T>(cpu, m, op);
    }
    let mask = op.attr.address_mask();
    for iteration in 0..M::ITERATIONS {
        let mut count = cpu.gpr.get(gpr::RCX) & mask;
        if count == 0 {
            return Ok(());
        }
        match iterate::<M, S, T>(cpu, m, op, count) {
            Ok(run) => count -= run,
            // Those before are over, and RF shows it while this one waits or faults.
            Err(_) if iteration > 0 => return Err(Stop::Stay),
            Err(stop) => return Err(stop),
        }
        set_masked(cpu, gpr::RCX, mask, count);
        if S::COMPARES && cpu.flags.zero() != op.attr.any(Attr::REP) {
            return Ok(());
        }
        if count == 0 {
            return Ok(());
        }
    }
    Err(Stop::Stay)
}

/// Executes as many of `count` iterations as go at once, at least one; how many.
#[inline(always)]
fn iterate<M: Access, S: Step<M>, T: Word>(cpu: &mut Cpu, m: &mut M, op: &Op<M>, count: u64) -> Result<u64, Stop> {
    if !cpu.flags.direction() {
        let run = S::run::<T>(cpu, m, op, count)?;
        if run > 0 {
            return Ok(run);
        }
    }
    S::step::<T>(cpu, m, op)?;
    Ok(1)
}

/// Counts `done` iterations of an instruction that repeats without comparing; the instruction stays while more are
/// left.
pub(super) fn count_repetitions<M>(cpu: &mut Cpu, op: &Op<M>, done: u64) -> Outcome {
    if !op.attr.is_repeated() {
        return Ok(());
    }
    let mask = op.attr.address_mask();
    let count = (cpu.gpr.get(gpr::RCX) & mask).wrapping_sub(done) & mask;
    set_masked(cpu, gpr::RCX, mask, count);
    if count == 0 { Ok(()) } else { Err(Stop::Stay) }
}

/// Sets as many bits of a count or index register as the address size has; 32-bit ones clear the upper half.
#[inline(always)]
fn set_masked(cpu: &mut Cpu, register: u8, mask: u64, value: u64) {
    match mask {
        0xffff => cpu.gpr.write::<u16>(register, value),
        mask => cpu.gpr.set(register, value & mask),
    }
}

/// Moves an index register on by `bytes`, in the direction of DF.
#[inline(always)]
pub(super) fn step_index<M>(cpu: &mut Cpu, op: &Op<M>, register: u8, bytes: u64) {
    let old = cpu.gpr.get(register);
    let new = if cpu.flags.direction() {
        old.wrapping_sub(bytes)
    } else {
        old.wrapping_add(bytes)
    };
    set_masked(cpu, register, op.attr.address_mask(), new);
}

/// The source element, at SI in DS or the prefix's segment.
#[inline(always)]
pub(super) fn source<M>(cpu: &Cpu, op: &Op<M>, size: u64) -> Result<Linear, Stop> {
    let offset = cpu.gpr.get(gpr::RSI) & op.attr.address_mask();
    cpu.linear(Seg::from_number(op.seg()), offset, size, Use::Read)
}

/// The destination element, at DI in ES.
#[inline(always)]
pub(super) fn destination<M>(cpu: &Cpu, op: &Op<M>, size: u64, usage: Use) -> Result<Linear, Stop> {
    let offset = cpu.gpr.get(gpr::RDI) & op.attr.address_mask();
    cpu.linear(Seg::Es, offset, size, usage)
}

/// Several elements can be moved at once: offsets do not wrap and segments have no limits.
#[inline(always)]
fn is_flat<M>(cpu: &Cpu, op: &Op<M>) -> bool {
    cpu.view.is_long() && op.attr.address_mask() == u64::MAX
}

/// MOVS.
struct Move;

impl<M: Access> Step<M> for Move {
    #[inline(always)]
    fn step<T: Word>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
        let size = T::SIZE as u64;
        let from = source(cpu, op, size)?;
        let to = destination(cpu, op, size, Use::Write);
        if to.is_err() {
            m.check_read(cpu, from, size)?;
        }
        let to = to?;
        m.check_move(cpu, from, to, size)?;
        let value = m.load::<T>(cpu, from)?;
        m.store::<T>(cpu, to, value)?;
        step_index(cpu, op, gpr::RSI, size);
        step_index(cpu, op, gpr::RDI, size);
        Ok(())
    }

    fn run<T: Word>(cpu: &mut Cpu, m: &mut M, op: &Op<M>, count: u64) -> Result<u64, Stop> {
        let size = T::SIZE as u64;
        if !is_flat(cpu, op) {
            return Ok(0);
        }
        let (Ok(from), Ok(to)) = (source(cpu, op, size), destination(cpu, op, size, Use::Write)) else {
            return Ok(0);
        };
        let to_page_end = |at: Linear| (4096 - at.address % 4096) / size;
        let elements = count.min(to_page_end(from)).min(to_page_end(to));
        if elements < 2 {
            return Ok(0);
        }
        let moved = m.copy_run(cpu, from, to, elements * size, T::SIZE as u8)?;
        step_index(cpu, op, gpr::RSI, moved);
        step_index(cpu, op, gpr::RDI, moved);
        Ok(moved / size)
    }
}

/// STOS.
struct Store;

impl<M: Access> Step<M> for Store {
    #[inline(always)]
    fn step<T: Word>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
        let to = destination(cpu, op, T::SIZE as u64, Use::Write)?;
        m.store::<T>(cpu, to, T::truncate(cpu.gpr.get(gpr::RAX)))?;
        step_index(cpu, op, gpr::RDI, T::SIZE as u64);
        Ok(())
    }

    fn run<T: Word>(cpu: &mut Cpu, m: &mut M, op: &Op<M>, count: u64) -> Result<u64, Stop> {
        if !is_flat(cpu, op) {
            return Ok(0);
        }
        let Ok(to) = destination(cpu, op, T::SIZE as u64, Use::Write) else {
            return Ok(0);
        };
        let stored = m.fill_run::<T>(cpu, to, T::truncate(cpu.gpr.get(gpr::RAX)), count);
        step_index(cpu, op, gpr::RDI, stored * T::SIZE as u64);
        Ok(stored)
    }
}

/// LODS.
struct Load;

impl<M: Access> Step<M> for Load {
    #[inline(always)]
    fn step<T: Word>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
        let from = source(cpu, op, T::SIZE as u64)?;
        let value = m.load::<T>(cpu, from)?.zero_extend();
        cpu.gpr.write::<T>(gpr::RAX, value);
        step_index(cpu, op, gpr::RSI, T::SIZE as u64);
        Ok(())
    }
}

/// SCAS.
struct Scan;

impl<M: Access> Step<M> for Scan {
    #[inline(always)]
    fn step<T: Word>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
        let at = destination(cpu, op, T::SIZE as u64, Use::Read)?;
        let value = m.load::<T>(cpu, at)?.zero_extend();
        set_difference_flags::<T>(cpu, cpu.gpr.read::<T>(gpr::RAX), value);
        step_index(cpu, op, gpr::RDI, T::SIZE as u64);
        Ok(())
    }

    const COMPARES: bool = true;
}

/// CMPS.
struct Compare;

impl<M: Access> Step<M> for Compare {
    #[inline(always)]
    fn step<T: Word>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
        let size = T::SIZE as u64;
        // The modelled processor checks the second operand first; what is asked first of two devices is the first.
        let second = destination(cpu, op, size, Use::Read)?;
        let first = source(cpu, op, size);
        if first.is_err() {
            m.check_read(cpu, second, size)?;
        }
        let first = first?;
        m.check_comparison(cpu, second, first, size)?;
        let a = match m.load::<T>(cpu, first) {
            // Only the fast way comes here: it checks by loading.
            Err(stop @ Stop::Fault(_)) => {
                m.check_read(cpu, second, size)?;
                return Err(stop);
            }
            a => a?.zero_extend(),
        };
        let b = m.load::<T>(cpu, second)?.zero_extend();
        set_difference_flags::<T>(cpu, a, b);
        step_index(cpu, op, gpr::RSI, size);
        step_index(cpu, op, gpr::RDI, size);
        Ok(())
    }

    const COMPARES: bool = true;
}

pub(super) fn fill<M: Access>(table: &mut Table<M>) {
    macro_rules! rows {
        ($($step:ident: $b:ident $w:ident $d:ident $q:ident;)*) => {
            [$(
                (Code::$b, string::<M, $step, u8> as Handler<M>),
                (Code::$w, string::<M, $step, u16>),
                (Code::$d, string::<M, $step, u32>),
                (Code::$q, string::<M, $step, u64>),
            )*]
        };
    }
    let rows = rows! {
        Move: Movsb_m8_m8 Movsw_m16_m16 Movsd_m32_m32 Movsq_m64_m64;
        Store: Stosb_m8_AL Stosw_m16_AX Stosd_m32_EAX Stosq_m64_RAX;
        Load: Lodsb_AL_m8 Lodsw_AX_m16 Lodsd_EAX_m32 Lodsq_RAX_m64;
        Scan: Scasb_AL_m8 Scasw_AX_m16 Scasd_EAX_m32 Scasq_RAX_m64;
        Compare: Cmpsb_m8_m8 Cmpsw_m16_m16 Cmpsd_m32_m32 Cmpsq_m64_m64;
    };
    for (code, handler) in rows {
        table.plain(code, handler);
    }
}

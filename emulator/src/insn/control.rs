//! Near control transfers: JMP, CALL, RET, Jcc, LOOP, JCXZ.
//!
//! The target is checked before anything commits: a transfer beyond the code segment's limit, or to a non-canonical
//! address, is a #GP of the transfer itself.

use iced_x86::Code;

use super::condition::holds;
use super::stack::{self, pop_slot, push_slot};
use crate::access::{Access, Outcome, Stop};
use crate::cpu::{Cpu, Seg, gpr};
use crate::event::Exception;
use crate::op::{Attr, Op};
use crate::operand::{Addressing, Flat, General, Use};
use crate::paging::is_canonical;
use crate::table::Table;
use crate::word::Word;

/// Checks a target of operand size `W`, and truncates it.
#[inline(always)]
fn target<W: Word>(cpu: &Cpu, target: u64) -> Result<u64, Stop> {
    let target = target & W::MASK;
    // What agrees with a canonical RIP in its upper bits is canonical, with four levels of paging or five.
    if W::SIZE == 8 && (target ^ cpu.rip) >> 47 == 0 {
        return Ok(target);
    }
    let inside = if W::SIZE == 8 || cpu.view.is_long() {
        is_canonical(cpu, target)
    } else {
        target <= u64::from(cpu.segments[Seg::Cs].limit)
    };
    if inside {
        Ok(target)
    } else {
        Err(Exception::gp(0).into())
    }
}

/// The target of a relative transfer of operand size `W`.
#[inline(always)]
fn relative<M, W: Word>(cpu: &Cpu, op: &Op<M>) -> Result<u64, Stop> {
    target::<W>(cpu, cpu.rip.wrapping_add(op.imm))
}

/// JMP rel.
fn jump<M: Access, W: Word>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    cpu.rip = relative::<M, W>(cpu, op)?;
    Ok(())
}

/// Ends a conditional transfer that is taken; one that is not simply retires.
#[inline(always)]
fn take<M, W: Word>(cpu: &mut Cpu, op: &Op<M>) -> Outcome {
    cpu.rip = relative::<M, W>(cpu, op)?;
    Err(Stop::Taken)
}

/// Jcc rel.
fn jump_if<M: Access, W: Word, const C: u8>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    if holds::<C>(&cpu.flags) {
        take::<M, W>(cpu, op)
    } else {
        Ok(())
    }
}

/// JMP r.
fn jump_register<M: Access, W: Word>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    cpu.rip = target::<W>(cpu, cpu.gpr.get(op.r1))?;
    Ok(())
}

/// JMP [m].
fn jump_memory<M: Access, W: Word, A: Addressing>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    let at = A::linear(cpu, op, W::SIZE as u64, Use::Read)?;
    let to = m.load::<W>(cpu, at)?.zero_extend();
    cpu.rip = target::<W>(cpu, to)?;
    Ok(())
}

/// Pushes the return address and goes to `to`, if that is a target; a fault of the push comes first.
#[inline(always)]
fn call_to<M: Access, W: Word>(cpu: &mut Cpu, m: &mut M, op: &Op<M>, to: Result<u64, Stop>) -> Outcome {
    let (at, sp) = push_slot::<W>(cpu)?;
    let to = match to {
        Ok(to) => to,
        Err(stop) => {
            m.check_write(cpu, at, W::SIZE as u64)?;
            return Err(stop);
        }
    };
    m.store::<W>(cpu, at, W::truncate(op.next_ip(cpu)))?;
    stack::set_pointer::<W>(cpu, sp);
    cpu.rip = to;
    Ok(())
}

/// CALL rel.
fn call<M: Access, W: Word>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    let to = relative::<M, W>(cpu, op);
    call_to::<M, W>(cpu, m, op, to)
}

/// CALL r.
fn call_register<M: Access, W: Word>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    let to = target::<W>(cpu, cpu.gpr.get(op.r1));
    call_to::<M, W>(cpu, m, op, to)
}

/// CALL [m].
fn call_memory<M: Access, W: Word, A: Addressing>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    let from = A::linear(cpu, op, W::SIZE as u64, Use::Read)?;
    let slot = push_slot::<W>(cpu);
    if slot.is_err() {
        m.check_read(cpu, from, W::SIZE as u64)?;
    }
    let (at, _) = slot?;
    m.check_move(cpu, from, at, W::SIZE as u64)?;
    let to = m.load::<W>(cpu, from)?.zero_extend();
    let to = target::<W>(cpu, to);
    call_to::<M, W>(cpu, m, op, to)
}

/// RET, and RET imm16, which releases parameters.
fn ret<M: Access, W: Word>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    let (at, sp) = pop_slot::<W>(cpu)?;
    let to = m.load::<W>(cpu, at)?.zero_extend();
    let to = target::<W>(cpu, to)?;
    stack::set_pointer::<W>(cpu, sp.wrapping_add(op.imm));
    cpu.rip = to;
    Ok(())
}

/// LOOP, LOOPE, LOOPNE (by `C`: 0 always, 1 while equal, 2 while not equal) with a counter of width `N`.
///
/// On the modelled processor a prefix F2 or F3 makes LOOPNE or LOOPE of either.
fn loop_<M: Access, W: Word, N: Word, const C: u8>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    let count = cpu.gpr.read::<N>(gpr::RCX).wrapping_sub(1) & N::MASK;
    let while_equal = if op.attr.is_repeated() {
        op.attr.any(Attr::REP)
    } else {
        C == 1
    };
    let goes_on = count != 0 && (C == 0 || cpu.flags.zero() == while_equal);
    let to = if goes_on {
        Some(relative::<M, W>(cpu, op)?)
    } else {
        None
    };
    cpu.gpr.write::<N>(gpr::RCX, count);
    let Some(to) = to else { return Ok(()) };
    cpu.rip = to;
    Err(Stop::Taken)
}

/// JCXZ, JECXZ, JRCXZ.
fn jump_if_zero<M: Access, W: Word, N: Word>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    if cpu.gpr.read::<N>(gpr::RCX) == 0 {
        take::<M, W>(cpu, op)
    } else {
        Ok(())
    }
}

pub(super) fn fill<M: Access>(table: &mut Table<M>) {
    macro_rules! conditions {
        ($($c:literal: $r8_16:ident $r8_32:ident $r8_64:ident $r16:ident $r32_32:ident $r32_64:ident;)*) => {$(
            table.plain(Code::$r8_16, jump_if::<M, u16, $c>);
            table.plain(Code::$r8_32, jump_if::<M, u32, $c>);
            table.plain(Code::$r8_64, jump_if::<M, u64, $c>);
            table.plain(Code::$r16, jump_if::<M, u16, $c>);
            table.plain(Code::$r32_32, jump_if::<M, u32, $c>);
            table.plain(Code::$r32_64, jump_if::<M, u64, $c>);
        )*};
    }
    conditions! {
        0: Jo_rel8_16 Jo_rel8_32 Jo_rel8_64 Jo_rel16 Jo_rel32_32 Jo_rel32_64;
        1: Jno_rel8_16 Jno_rel8_32 Jno_rel8_64 Jno_rel16 Jno_rel32_32 Jno_rel32_64;
        2: Jb_rel8_16 Jb_rel8_32 Jb_rel8_64 Jb_rel16 Jb_rel32_32 Jb_rel32_64;
        3: Jae_rel8_16 Jae_rel8_32 Jae_rel8_64 Jae_rel16 Jae_rel32_32 Jae_rel32_64;
        4: Je_rel8_16 Je_rel8_32 Je_rel8_64 Je_rel16 Je_rel32_32 Je_rel32_64;
        5: Jne_rel8_16 Jne_rel8_32 Jne_rel8_64 Jne_rel16 Jne_rel32_32 Jne_rel32_64;
        6: Jbe_rel8_16 Jbe_rel8_32 Jbe_rel8_64 Jbe_rel16 Jbe_rel32_32 Jbe_rel32_64;
        7: Ja_rel8_16 Ja_rel8_32 Ja_rel8_64 Ja_rel16 Ja_rel32_32 Ja_rel32_64;
        8: Js_rel8_16 Js_rel8_32 Js_rel8_64 Js_rel16 Js_rel32_32 Js_rel32_64;
        9: Jns_rel8_16 Jns_rel8_32 Jns_rel8_64 Jns_rel16 Jns_rel32_32 Jns_rel32_64;
        10: Jp_rel8_16 Jp_rel8_32 Jp_rel8_64 Jp_rel16 Jp_rel32_32 Jp_rel32_64;
        11: Jnp_rel8_16 Jnp_rel8_32 Jnp_rel8_64 Jnp_rel16 Jnp_rel32_32 Jnp_rel32_64;
        12: Jl_rel8_16 Jl_rel8_32 Jl_rel8_64 Jl_rel16 Jl_rel32_32 Jl_rel32_64;
        13: Jge_rel8_16 Jge_rel8_32 Jge_rel8_64 Jge_rel16 Jge_rel32_32 Jge_rel32_64;
        14: Jle_rel8_16 Jle_rel8_32 Jle_rel8_64 Jle_rel16 Jle_rel32_32 Jle_rel32_64;
        15: Jg_rel8_16 Jg_rel8_32 Jg_rel8_64 Jg_rel16 Jg_rel32_32 Jg_rel32_64;
    }
    macro_rules! rows {
        ($add:ident $handler:ident: $($code:ident $($t:ty),+;)*) => {$(
            table.$add(Code::$code, $handler::<M, $($t),+>);
        )*};
    }
    rows! { jump jump:
        Jmp_rel8_16 u16; Jmp_rel8_32 u32; Jmp_rel8_64 u64; Jmp_rel16 u16; Jmp_rel32_32 u32; Jmp_rel32_64 u64;
    }
    rows! { jump call: Call_rel16 u16; Call_rel32_32 u32; Call_rel32_64 u64; }
    rows! { jump ret:
        Retnw u16; Retnd u32; Retnq u64; Retnw_imm16 u16; Retnd_imm16 u32; Retnq_imm16 u64;
    }
    macro_rules! counted {
        ($($c:literal: $($code:ident $w:ty, $n:ty;)*)*) => {$($(
            table.plain(Code::$code, loop_::<M, $w, $n, $c>);
        )*)*};
    }
    counted! {
        0: Loop_rel8_16_CX u16, u16; Loop_rel8_32_CX u32, u16; Loop_rel8_16_ECX u16, u32; Loop_rel8_32_ECX u32, u32;
           Loop_rel8_64_ECX u64, u32; Loop_rel8_16_RCX u16, u64; Loop_rel8_64_RCX u64, u64;
        1: Loope_rel8_16_CX u16, u16; Loope_rel8_32_CX u32, u16; Loope_rel8_16_ECX u16, u32; Loope_rel8_32_ECX u32, u32;
           Loope_rel8_64_ECX u64, u32; Loope_rel8_16_RCX u16, u64; Loope_rel8_64_RCX u64, u64;
        2: Loopne_rel8_16_CX u16, u16; Loopne_rel8_32_CX u32, u16; Loopne_rel8_16_ECX u16, u32;
           Loopne_rel8_32_ECX u32, u32; Loopne_rel8_64_ECX u64, u32; Loopne_rel8_16_RCX u16, u64;
           Loopne_rel8_64_RCX u64, u64;
    }
    rows! { plain jump_if_zero:
        Jcxz_rel8_16 u16, u16; Jcxz_rel8_32 u32, u16; Jecxz_rel8_16 u16, u32; Jecxz_rel8_32 u32, u32;
        Jecxz_rel8_64 u64, u32; Jrcxz_rel8_16 u16, u64; Jrcxz_rel8_64 u64, u64;
    }
    macro_rules! indirect {
        ($($jmp:ident $call:ident $w:ty;)*) => {$(
            table.branch(
                Code::$jmp,
                jump_register::<M, $w>,
                jump_memory::<M, $w, General>,
                jump_memory::<M, $w, Flat>,
            );
            table.branch(
                Code::$call,
                call_register::<M, $w>,
                call_memory::<M, $w, General>,
                call_memory::<M, $w, Flat>,
            );
        )*};
    }
    indirect! { Jmp_rm16 Call_rm16 u16; Jmp_rm32 Call_rm32 u32; Jmp_rm64 Call_rm64 u64; }
}

//! The stack: PUSH, POP, PUSHA, POPA, PUSHF, ENTER, LEAVE.
//!
//! In 64-bit mode SS is flat, and operands are 64 bits wide unless a prefix makes them 16; these forms exist there only,
//! so they skip the segment. Elsewhere the width of SP and the limit of SS come from the segment.

use iced_x86::Code;

use super::virtual_8086::{self, Reach};
use crate::access::{Access, Linear, Outcome, Stop};
use crate::careful::Careful;
use crate::cpu::{Cpu, Seg, flags, gpr};
use crate::op::Op;
use crate::operand::{Addressing, Flat, General, Use};
use crate::table::Table;
use crate::word::Word;

/// Where an operand of width `W` is pushed, and the stack pointer after it.
#[inline(always)]
pub(super) fn push_slot<W: Word>(cpu: &Cpu) -> Result<(Linear, u64), Stop> {
    let sp = cpu.gpr.get(gpr::RSP).wrapping_sub(W::SIZE as u64);
    Ok((stack_slot::<W>(cpu, sp, Use::Write)?, sp))
}

/// Where an operand of width `W` is popped from, and the stack pointer after it.
#[inline(always)]
pub(super) fn pop_slot<W: Word>(cpu: &Cpu) -> Result<(Linear, u64), Stop> {
    let sp = cpu.gpr.get(gpr::RSP);
    Ok((stack_slot::<W>(cpu, sp, Use::Read)?, sp.wrapping_add(W::SIZE as u64)))
}

#[inline(always)]
fn stack_slot<W: Word>(cpu: &Cpu, sp: u64, usage: Use) -> Result<Linear, Stop> {
    if W::SIZE == 8 {
        // Only 64-bit mode has operands of 64 bits, and SS is flat there.
        return Ok(Linear::new(Seg::Ss, sp));
    }
    cpu.linear(Seg::Ss, sp & cpu.view.stack_mask, W::SIZE as u64, usage)
}

/// Commits a stack pointer: as many bits as the stack has.
#[inline(always)]
pub(super) fn set_pointer<W: Word>(cpu: &mut Cpu, sp: u64) {
    let value = if W::SIZE == 8 { sp } else { merge(cpu, sp) };
    cpu.gpr.set(gpr::RSP, value);
}

/// RSP with its stack-address bits replaced; a 32-bit stack pointer clears the upper half.
fn merge(cpu: &Cpu, sp: u64) -> u64 {
    match cpu.view.stack_mask {
        0xffff => cpu.gpr.get(gpr::RSP) & !0xffff | sp & 0xffff,
        mask => sp & mask,
    }
}

#[inline(always)]
fn push_value<M: Access, W: Word>(cpu: &mut Cpu, m: &mut M, value: u64) -> Outcome {
    let (at, sp) = push_slot::<W>(cpu)?;
    m.store::<W>(cpu, at, W::truncate(value))?;
    set_pointer::<W>(cpu, sp);
    Ok(())
}

/// PUSH r.
fn push_register<M: Access, W: Word>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    push_value::<M, W>(cpu, m, cpu.gpr.get(op.r1))
}

/// PUSH imm.
fn push_immediate<M: Access, W: Word>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    push_value::<M, W>(cpu, m, op.imm)
}

/// PUSH [m].
fn push_memory<M: Access, W: Word, A: Addressing>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    let from = A::linear(cpu, op, W::SIZE as u64, Use::Read)?;
    let slot = push_slot::<W>(cpu);
    if slot.is_err() {
        m.check_read(cpu, from, W::SIZE as u64)?;
    }
    let (at, _) = slot?;
    m.check_move(cpu, from, at, W::SIZE as u64)?;
    let value = m.load::<W>(cpu, from)?.zero_extend();
    push_value::<M, W>(cpu, m, value)
}

/// PUSH Sreg: the selector, zero-extended.
///
/// With a 32-bit operand, processors differ in whether the upper half is written; it is, here, with zeros, as on the
/// modelled processor.
fn push_segment<M: Access, W: Word>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    let selector = cpu.segments[Seg::from_number(op.r1)].selector;
    push_value::<M, W>(cpu, m, u64::from(selector))
}

/// POP r. POP RSP leaves what was popped.
fn pop_register<M: Access, W: Word>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    let (at, sp) = pop_slot::<W>(cpu)?;
    let value = m.load::<W>(cpu, at)?.zero_extend();
    set_pointer::<W>(cpu, sp);
    cpu.gpr.write::<W>(op.r1, value);
    Ok(())
}

/// POP [m]. The destination's address is formed with the stack pointer after the pop (SDM Vol. 2, POP).
fn pop_memory<M: Access, W: Word, A: Addressing>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    let (from, sp) = pop_slot::<W>(cpu)?;
    let old = cpu.gpr.get(gpr::RSP);
    // The address is a function of the registers, so RSP is changed for as long as it takes to form it.
    set_pointer::<W>(cpu, sp);
    let to = A::linear(cpu, op, W::SIZE as u64, Use::Write);
    cpu.gpr.set(gpr::RSP, old);
    if to.is_err() {
        m.check_read(cpu, from, W::SIZE as u64)?;
    }
    let to = to?;
    m.check_move(cpu, from, to, W::SIZE as u64)?;
    let value = m.load::<W>(cpu, from)?;
    m.store::<W>(cpu, to, value)?;
    set_pointer::<W>(cpu, sp);
    Ok(())
}

/// PUSHF: without VM and RF.
fn push_flags<M: Access, W: Word>(cpu: &mut Cpu, m: &mut M, _: &Op<M>) -> Outcome {
    let image = match virtual_8086::reach(cpu, W::SIZE)? {
        Reach::Own => cpu.flags.bits(),
        Reach::Virtual => virtual_8086::seen(cpu),
    };
    push_value::<M, W>(cpu, m, image & !(flags::VM | flags::RF))
}

/// LEAVE.
fn leave<M: Access, W: Word>(cpu: &mut Cpu, m: &mut M, _: &Op<M>) -> Outcome {
    let sp = cpu.gpr.get(gpr::RBP);
    let at = stack_slot::<W>(cpu, sp, Use::Read)?;
    let frame = m.load::<W>(cpu, at)?.zero_extend();
    set_pointer::<W>(cpu, sp.wrapping_add(W::SIZE as u64));
    cpu.gpr.write::<W>(gpr::RBP, frame);
    Ok(())
}

/// A stack pointer that moves while an instruction stores several times; the CPU's own moves when it retires.
struct Pointer(u64);

impl Pointer {
    fn push<W: Word>(&mut self, cpu: &Cpu, m: &mut Careful, value: u64) -> Outcome {
        self.0 = self.0.wrapping_sub(W::SIZE as u64);
        let at = stack_slot::<W>(cpu, self.0, Use::Write)?;
        m.store::<W>(cpu, at, W::truncate(value))
    }

    fn pop<W: Word>(&mut self, cpu: &Cpu, m: &mut Careful) -> Result<u64, Stop> {
        let at = stack_slot::<W>(cpu, self.0, Use::Read)?;
        self.0 = self.0.wrapping_add(W::SIZE as u64);
        Ok(m.load::<W>(cpu, at)?.zero_extend())
    }
}

/// PUSHA: the eight registers, with SP as it was before.
fn push_all<W: Word>(cpu: &mut Cpu, m: &mut Careful, _: &Op<Careful>) -> Outcome {
    let mut sp = Pointer(cpu.gpr.get(gpr::RSP));
    for register in 0..8 {
        sp.push::<W>(cpu, m, cpu.gpr.get(register))?;
    }
    set_pointer::<W>(cpu, sp.0);
    Err(Stop::Next)
}

/// POPA: the eight registers, but for SP, whose slot is skipped.
fn pop_all<W: Word>(cpu: &mut Cpu, m: &mut Careful, _: &Op<Careful>) -> Outcome {
    let mut sp = Pointer(cpu.gpr.get(gpr::RSP));
    let mut values = [0; 8];
    for value in values.iter_mut().rev() {
        *value = sp.pop::<W>(cpu, m)?;
    }
    for (register, value) in (0..8).zip(values).filter(|(register, _)| *register != gpr::RSP) {
        cpu.gpr.write::<W>(register, value);
    }
    set_pointer::<W>(cpu, sp.0);
    Err(Stop::Next)
}

/// ENTER: a frame for a procedure nested `level` deep, which copies the frame pointers of the enclosing ones.
fn enter<W: Word>(cpu: &mut Cpu, m: &mut Careful, op: &Op<Careful>) -> Outcome {
    let (size, level) = (op.imm & 0xffff, op.disp & 31);
    let mut sp = Pointer(cpu.gpr.get(gpr::RSP));
    let mut frame = cpu.gpr.get(gpr::RBP);
    sp.push::<W>(cpu, m, frame)?;
    let frame_pointer = sp.0;
    // All that is to be written must be writable before a frame pointer is read that may be in a device; the byte at the
    // new top, too (SDM Vol. 2, ENTER). Faults come in the order in which an instruction would find them that did not care.
    for slot in 1..=level {
        let distance = slot * W::SIZE as u64;
        if slot < level {
            let at = stack_slot::<W>(cpu, frame.wrapping_sub(distance), Use::Read)?;
            m.check_read(cpu, at, W::SIZE as u64)?;
        }
        let at = stack_slot::<W>(cpu, frame_pointer.wrapping_sub(distance), Use::Write)?;
        m.check_write(cpu, at, W::SIZE as u64)?;
    }
    let end = frame_pointer.wrapping_sub(level * W::SIZE as u64 + size);
    let at = stack_slot::<W>(cpu, end, Use::Write)?;
    m.check_write(cpu, at, W::SIZE as u64)?;
    for _ in 1..level {
        frame = frame.wrapping_sub(W::SIZE as u64);
        let at = stack_slot::<W>(cpu, frame, Use::Read)?;
        let enclosing = m.load::<W>(cpu, at)?.zero_extend();
        sp.push::<W>(cpu, m, enclosing)?;
    }
    if level > 0 {
        sp.push::<W>(cpu, m, frame_pointer)?;
    }
    cpu.gpr.write::<W>(
        gpr::RBP,
        if W::SIZE == 8 {
            frame_pointer
        } else {
            merge(cpu, frame_pointer)
        },
    );
    set_pointer::<W>(cpu, end);
    Err(Stop::Next)
}

pub(super) fn fill<M: Access>(table: &mut Table<M>) {
    macro_rules! rows {
        ($($handler:ident { $($code:ident $w:ty;)* })*) => {$($(
            table.plain(Code::$code, $handler::<M, $w>);
        )*)*};
    }
    rows! {
        push_register { Push_r16 u16; Push_r32 u32; Push_r64 u64; }
        pop_register { Pop_r16 u16; Pop_r32 u32; Pop_r64 u64; }
        push_immediate {
            Push_imm16 u16; Pushd_imm32 u32; Pushq_imm32 u64; Pushw_imm8 u16; Pushd_imm8 u32; Pushq_imm8 u64;
        }
        push_segment {
            Pushw_ES u16; Pushw_CS u16; Pushw_SS u16; Pushw_DS u16; Pushw_FS u16; Pushw_GS u16;
            Pushd_ES u32; Pushd_CS u32; Pushd_SS u32; Pushd_DS u32; Pushd_FS u32; Pushd_GS u32;
            Pushq_FS u64; Pushq_GS u64;
        }
        push_flags { Pushfw u16; Pushfd u32; Pushfq u64; }
        leave { Leavew u16; Leaved u32; Leaveq u64; }
    }
    macro_rules! rm {
        ($($push:ident $pop:ident $w:ty;)*) => {$(
            table.rm_flat(
                Code::$push,
                push_register::<M, $w>,
                push_memory::<M, $w, General>,
                push_memory::<M, $w, Flat>,
            );
            table.rm_flat(
                Code::$pop,
                pop_register::<M, $w>,
                pop_memory::<M, $w, General>,
                pop_memory::<M, $w, Flat>,
            );
        )*};
    }
    rm! { Push_rm16 Pop_rm16 u16; Push_rm32 Pop_rm32 u32; Push_rm64 Pop_rm64 u64; }
    for (code, handler) in [
        (Code::Pushaw, push_all::<u16> as crate::op::Handler<Careful>),
        (Code::Pushad, push_all::<u32>),
        (Code::Popaw, pop_all::<u16>),
        (Code::Popad, pop_all::<u32>),
        (Code::Enterw_imm16_imm8, enter::<u16>),
        (Code::Enterd_imm16_imm8, enter::<u32>),
        (Code::Enterq_imm16_imm8, enter::<u64>),
    ] {
        table.careful(code, handler);
    }
}

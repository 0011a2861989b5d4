//! Returns to other code segments: far RET and IRET, to outer privilege levels, virtual-8086 mode and other tasks too.

use super::{Pointer, arrive, check_present, enter, real_code, switch};
use crate::access::{Access, Outcome, Stop};
use crate::careful::Careful;
use crate::cpu::{Cpu, Mode, Seg, Segment, flags, gpr};
use crate::descriptor::{self, Descriptor, fault, is_null, rpl};
use crate::event::{self, Exception};
use crate::insn::virtual_8086::{self, Reach};
use crate::op::Op;
use crate::stack::Stack;
use crate::table::Table;
use crate::task::{self, Reason};
use crate::word::Word;
use iced_x86::Code;

#[rustfmt::skip]
pub(super) fn fill<M: Access>(table: &mut Table<M>) {
    use Code::*;
    for code in [Retfw, Retfw_imm16] {
        table.careful(code, ret::<u16>);
    }
    for code in [Retfd, Retfd_imm16] {
        table.careful(code, ret::<u32>);
    }
    for code in [Retfq, Retfq_imm16] {
        table.careful(code, ret::<u64>);
    }
    table.careful(Iretw, iret::<u16>);
    table.careful(Iretd, iret::<u32>);
    table.careful(Iretq, iret::<u64>);
}

/// Reads and checks the code segment that a return leads to, at the privilege level of the selector's RPL.
fn return_code(cpu: &Cpu, m: &mut Careful, selector: u16) -> Result<Descriptor, Stop> {
    if is_null(selector) {
        return Err(Exception::gp(0).into());
    }
    let code = descriptor::read(cpu, m, selector, event::GP)?;
    let (attributes, cpl) = (code.attributes(), rpl(selector));
    let privilege_fits = if attributes.is_conforming() {
        attributes.dpl() <= cpl
    } else {
        attributes.dpl() == cpl
    };
    let refused =
        !attributes.is_code() || cpl < cpu.cpl() || !privilege_fits || descriptor::is_bad_long_code(cpu, attributes);
    if refused {
        return Err(fault(event::GP, selector));
    }
    check_present(&code)?;
    Ok(code)
}

/// The stack that a return leads to: `selector` and `pointer` were on the old one.
fn return_stack(cpu: &Cpu, m: &mut Careful, code: &Descriptor, selector: u16, pointer: u64) -> Result<Stack, Stop> {
    let cpl = rpl(code.segment.selector);
    let long = descriptor::is_long_code(cpu, &code.segment);
    let segment = descriptor::load_stack(cpu, m, selector, cpl, long)?;
    // A 16-bit stack keeps the upper part of RSP.
    let old = cpu.gpr.get(gpr::RSP);
    let mut stack = if long {
        Stack::long(segment, old, cpl)
    } else {
        Stack::inner(segment, old, cpl)
    };
    stack.set_pointer(pointer);
    Ok(stack)
}

/// After a return to privilege level `cpl`: data segments that it may not use become null.
fn drop_segments(cpu: &mut Cpu, cpl: u8) {
    for seg in [Seg::Es, Seg::Ds, Seg::Fs, Seg::Gs] {
        let segment = &mut cpu.segments[seg];
        let attributes = segment.attributes;
        if attributes.is_present() && !attributes.is_conforming() && attributes.dpl() < cpl {
            segment.selector = 0;
            segment.attributes.0 = 0;
        }
    }
}

fn ret<T: Word>(cpu: &mut Cpu, m: &mut Careful, op: &Op<Careful>) -> Outcome {
    let size = T::SIZE as u8;
    let parameters = op.imm & 0xffff;
    let mut stack = Stack::current(cpu);
    // The selector is read first, as the modelled processor does.
    let selector = stack.peek(cpu, m, size, u64::from(size))? as u16;
    let offset = stack.pop(cpu, m, size)?;
    stack.release(u64::from(size) + parameters);
    if !cpu.view.has_descriptors() {
        let cs = real_code(cpu, Pointer { selector, offset })?;
        stack.commit(cpu);
        return arrive(cpu, cs, offset);
    }
    let cpl = rpl(selector);
    let outer = cpl > cpu.cpl();
    // The outer stack's pointer is read before the selector is looked at more closely.
    let outer_stack = if cpl == cpu.cpl() {
        None
    } else {
        let stack_selector = stack.peek(cpu, m, size, u64::from(size))? as u16;
        Some((stack.peek(cpu, m, size, 0)?, stack_selector))
    };
    let code = return_code(cpu, m, selector)?;
    if let Some((pointer, stack_selector)) = outer_stack {
        stack = return_stack(cpu, m, &code, stack_selector, pointer)?;
        stack.release(parameters);
    }
    let cs = enter(cpu, m, code, offset, cpl)?;
    stack.commit(cpu);
    if outer {
        drop_segments(cpu, cpl);
    }
    arrive(cpu, cs, offset)
}

fn iret<T: Word>(cpu: &mut Cpu, m: &mut Careful, op: &Op<Careful>) -> Outcome {
    let size = T::SIZE as u8;
    let outcome = match cpu.view.mode {
        Mode::Real => iret_real(cpu, m, size),
        Mode::Virtual8086 => match virtual_8086::reach(cpu, T::SIZE) {
            Ok(Reach::Own) => iret_real(cpu, m, size),
            Ok(Reach::Virtual) => iret_virtual(cpu, m),
            Err(stop) => Err(stop),
        },
        _ if cpu.flags.any(flags::NT) && cpu.view.is_ia32e() => Err(Exception::gp(0).into()),
        _ if cpu.flags.any(flags::NT) => iret_to_task(cpu, m, op),
        _ => iret_protected(cpu, m, size),
    };
    // IRET ends the blocking of NMIs even if it faults (SDM Vol. 3, Handling Multiple NMIs).
    if let Err(Stop::Jumped | Stop::Fault(_)) = outcome {
        cpu.nmi_blocked = false;
    }
    outcome
}

/// Returns to the task that this one is nested in.
fn iret_to_task(cpu: &mut Cpu, m: &mut Careful, op: &Op<Careful>) -> Outcome {
    let tss = task::back_link(cpu, m)?;
    let next_ip = op.next_ip(cpu);
    switch(cpu, m, tss, Reason::Return, next_ip)
}

/// The flags that IRET with operands of `size` bytes takes from the stack.
fn iret_flags(cpu: &Cpu, size: u8) -> u64 {
    let mut mask = flags::STATUS | flags::TF | flags::DF | flags::NT;
    if size > 2 {
        mask |= flags::RF | flags::AC | flags::ID;
    }
    if cpu.cpl() <= cpu.flags.iopl() {
        mask |= flags::IF;
    }
    if cpu.cpl() == 0 {
        mask |= flags::IOPL;
        if size > 2 && cpu.view.has_descriptors() {
            mask |= flags::VIF | flags::VIP;
        }
    }
    mask
}

fn iret_real(cpu: &mut Cpu, m: &mut Careful, size: u8) -> Outcome {
    let mut stack = Stack::current(cpu);
    let offset = stack.pop(cpu, m, size)?;
    let selector = stack.pop(cpu, m, size)? as u16;
    let image = stack.pop(cpu, m, size)?;
    let cs = real_code(cpu, Pointer { selector, offset })?;
    let mask = iret_flags(cpu, size);
    cpu.flags.replace(mask, image);
    stack.commit(cpu);
    arrive(cpu, cs, offset)
}

/// In virtual-8086 mode, with the virtual interrupt flag.
fn iret_virtual(cpu: &mut Cpu, m: &mut Careful) -> Outcome {
    let mut stack = Stack::current(cpu);
    let offset = stack.pop(cpu, m, 2)?;
    let selector = stack.pop(cpu, m, 2)? as u16;
    let image = stack.pop(cpu, m, 2)?;
    virtual_8086::check_taking(cpu, image)?;
    let cs = real_code(cpu, Pointer { selector, offset })?;
    virtual_8086::take(cpu, image);
    stack.commit(cpu);
    arrive(cpu, cs, offset)
}

fn iret_protected(cpu: &mut Cpu, m: &mut Careful, size: u8) -> Outcome {
    let mut stack = Stack::current(cpu);
    // From the top of the frame downwards, as the modelled processor does.
    let image = stack.peek(cpu, m, size, 2 * u64::from(size))?;
    let selector = stack.peek(cpu, m, size, u64::from(size))? as u16;
    let offset = stack.pop(cpu, m, size)?;
    stack.release(2 * u64::from(size));
    if image & flags::VM != 0 && size == 4 && cpu.cpl() == 0 && !cpu.view.is_ia32e() {
        return iret_to_virtual_8086(cpu, m, stack, Pointer { selector, offset }, image);
    }
    let cpl = rpl(selector);
    let outer = cpl > cpu.cpl();
    // 64-bit mode always has a stack pointer to return to. It is read before the selector is looked at more closely.
    let outer_stack = if cpl == cpu.cpl() && !cpu.view.is_long() {
        None
    } else {
        let stack_selector = stack.peek(cpu, m, size, u64::from(size))? as u16;
        Some((stack.peek(cpu, m, size, 0)?, stack_selector))
    };
    let code = return_code(cpu, m, selector)?;
    if let Some((pointer, stack_selector)) = outer_stack {
        stack = return_stack(cpu, m, &code, stack_selector, pointer)?;
    }
    let cs = enter(cpu, m, code, offset, cpl)?;
    let mask = iret_flags(cpu, size);
    cpu.flags.replace(mask, image);
    stack.commit(cpu);
    if outer {
        drop_segments(cpu, cpl);
    }
    arrive(cpu, cs, offset)
}

fn iret_to_virtual_8086(cpu: &mut Cpu, m: &mut Careful, mut stack: Stack, target: Pointer, image: u64) -> Outcome {
    let mut words = [0; 6];
    for word in &mut words {
        *word = stack.pop(cpu, m, 4)?;
    }
    if target.offset > 0xffff {
        return Err(Exception::gp(0).into());
    }
    let [pointer, ss, es, ds, fs, gs] = words;
    let segment = |selector| {
        let mut segment = Segment::real_mode(selector);
        segment.attributes = segment.attributes.with_dpl(3);
        segment
    };
    cpu.flags.set_bits(image);
    for (seg, selector) in [
        (Seg::Ss, ss),
        (Seg::Es, es),
        (Seg::Ds, ds),
        (Seg::Fs, fs),
        (Seg::Gs, gs),
    ] {
        cpu.segments[seg] = segment(selector as u16);
    }
    cpu.gpr.set(gpr::RSP, pointer);
    arrive(cpu, segment(target.selector), target.offset)
}

//! Transfers to other code segments: far JMP and CALL, and call gates. `returns`: far RET and IRET.
//!
//! A TSS or a task gate as target, and IRET with NT set, switch tasks; in IA-32e mode they are #GP.

mod returns;

use crate::access::{Access, Outcome, Stop};
use crate::careful::Careful;
use crate::cpu::segment::{TSS16_AVAILABLE, TSS32_AVAILABLE};
use crate::cpu::{Cpu, Seg, Segment, gpr};
use crate::descriptor::{self, Descriptor, fault, is_null, rpl};
use crate::event::{self, Exception};
use crate::op::Op;
use crate::operand::{Use, of_fields};
use crate::stack::Stack;
use crate::table::Table;
use crate::task::{self, Reason};
use crate::word::Word;
use iced_x86::Code;

/// Descriptor types: call gates of 16 and of 32 (64) bits.
const CALL_GATE16: u16 = 4;
const CALL_GATE32: u16 = 12;
/// Descriptor type: task gate.
const TASK_GATE: u16 = 5;

#[rustfmt::skip]
pub(super) fn fill<M: Access>(table: &mut Table<M>) {
    use Code::*;
    table.careful(Jmp_ptr1616, jmp_direct);
    table.careful(Jmp_ptr1632, jmp_direct);
    table.careful(Jmp_m1616, jmp_indirect::<u16>);
    table.careful(Jmp_m1632, jmp_indirect::<u32>);
    table.careful(Jmp_m1664, jmp_indirect::<u64>);
    table.careful(Call_ptr1616, call_direct::<u16>);
    table.careful(Call_ptr1632, call_direct::<u32>);
    table.careful(Call_m1616, call_indirect::<u16>);
    table.careful(Call_m1632, call_indirect::<u32>);
    table.careful(Call_m1664, call_indirect::<u64>);
    returns::fill(table);
}

/// A far pointer.
#[derive(Clone, Copy)]
struct Pointer {
    selector: u16,
    offset: u64,
}

fn direct(op: &Op<Careful>) -> Pointer {
    Pointer {
        selector: op.disp as u16,
        offset: op.imm,
    }
}

fn indirect<T: Word>(cpu: &Cpu, m: &mut Careful, op: &Op<Careful>) -> Result<Pointer, Stop> {
    let size = T::SIZE as u64;
    let at = of_fields(cpu, m, op, size, size + 2, Use::Read)?;
    let offset = m.load::<T>(cpu, at)?.zero_extend();
    let selector = m.load::<u16>(cpu, at.offset(size))?;
    Ok(Pointer { selector, offset })
}

/// What a far pointer names in protected mode.
enum Target {
    Code(Descriptor),
    Gate(Gate),
    /// A task state segment.
    Task(Descriptor),
}

/// A call gate.
struct Gate {
    target: Pointer,
    /// Words to copy to an inner stack.
    parameters: u64,
    /// Bytes of each push.
    size: u8,
}

impl Target {
    fn read(cpu: &Cpu, m: &mut Careful, selector: u16, reason: Reason) -> Result<Target, Stop> {
        if is_null(selector) {
            return Err(Exception::gp(0).into());
        }
        let read = descriptor::read(cpu, m, selector, event::GP)?;
        let attributes = read.attributes();
        if attributes.is_code() {
            return Ok(Target::Code(read));
        }
        let ia32e = cpu.view.is_ia32e();
        let kind = attributes.kind();
        let size = match kind {
            TASK_GATE | TSS16_AVAILABLE | TSS32_AVAILABLE if !ia32e => 0,
            CALL_GATE16 if !ia32e => 2,
            CALL_GATE32 if ia32e => 8,
            CALL_GATE32 => 4,
            _ => return Err(fault(event::GP, selector)),
        };
        if attributes.dpl() < cpu.cpl().max(rpl(selector)) {
            return Err(fault(event::GP, selector));
        }
        if !attributes.is_present() {
            return Err(fault(event::NP, selector));
        }
        match kind {
            // A selector in a gate needs no privilege of its own.
            TASK_GATE => return Ok(Target::Task(task::target(cpu, m, (read.raw >> 16) as u16, reason)?)),
            TSS16_AVAILABLE | TSS32_AVAILABLE if !ia32e => {
                return Ok(Target::Task(task::target(cpu, m, selector, reason)?));
            }
            _ => {}
        }
        let high = if ia32e {
            descriptor::read_upper(cpu, m, &read)?
        } else {
            0
        };
        let offset = read.raw & 0xffff | read.raw >> 32 & 0xffff_0000 | high << 32;
        Ok(Target::Gate(Gate {
            target: Pointer {
                selector: (read.raw >> 16) as u16,
                offset: if size == 2 { offset & 0xffff } else { offset },
            },
            parameters: read.raw >> 32 & 0x1f,
            size,
        }))
    }
}

impl Gate {
    /// Reads and checks the code segment behind the gate.
    fn code(&self, cpu: &Cpu, m: &mut Careful) -> Result<Descriptor, Stop> {
        let selector = self.target.selector;
        if is_null(selector) {
            return Err(Exception::gp(0).into());
        }
        let code = descriptor::read(cpu, m, selector, event::GP)?;
        let attributes = code.attributes();
        let is_wrong_size = cpu.view.is_ia32e() && (!attributes.is_long() || attributes.is_big());
        if !attributes.is_code() || attributes.dpl() > cpu.cpl() || is_wrong_size {
            return Err(fault(event::GP, selector));
        }
        Ok(code)
    }
}

/// # Errors
/// #NP(selector).
fn check_present(code: &Descriptor) -> Result<(), Stop> {
    if code.attributes().is_present() {
        Ok(())
    } else {
        Err(fault(event::NP, code.segment.selector))
    }
}

/// Checks a code segment that a far JMP or CALL names itself.
fn check_direct(cpu: &Cpu, code: &Descriptor) -> Result<(), Stop> {
    let (attributes, selector, cpl) = (code.attributes(), code.segment.selector, cpu.cpl());
    let allowed = if attributes.is_conforming() {
        attributes.dpl() <= cpl
    } else {
        rpl(selector) <= cpl && attributes.dpl() == cpl
    };
    if !allowed || descriptor::is_bad_long_code(cpu, attributes) {
        return Err(fault(event::GP, selector));
    }
    check_present(code)
}

/// Checks the target offset, and makes the segment that CS will hold at privilege level `cpl`.
fn enter(cpu: &Cpu, m: &mut Careful, mut code: Descriptor, offset: u64, cpl: u8) -> Result<Segment, Stop> {
    descriptor::check_target(cpu, &code.segment, offset)?;
    code.mark_accessed(cpu, m)?;
    let mut segment = code.segment;
    segment.selector = segment.selector & !3 | u16::from(cpl);
    Ok(segment)
}

/// Goes on at `offset` in `cs`.
fn arrive(cpu: &mut Cpu, cs: Segment, offset: u64) -> Outcome {
    cpu.segments[Seg::Cs] = cs;
    cpu.rip = offset;
    cpu.refresh();
    Err(Stop::Jumped)
}

/// Goes on in another task.
fn switch(cpu: &mut Cpu, m: &mut Careful, tss: Descriptor, reason: Reason, next_ip: u64) -> Outcome {
    task::switch(cpu, m, tss, reason, next_ip)?;
    Err(Stop::Jumped)
}

/// A code segment in real or virtual-8086 mode.
fn real_code(cpu: &Cpu, target: Pointer) -> Result<Segment, Stop> {
    let cs = descriptor::real_segment(cpu, Seg::Cs, target.selector);
    descriptor::check_target(cpu, &cs, target.offset)?;
    Ok(cs)
}

// JMP.

fn jmp_direct(cpu: &mut Cpu, m: &mut Careful, op: &Op<Careful>) -> Outcome {
    jmp(cpu, m, op, direct(op))
}

fn jmp_indirect<T: Word>(cpu: &mut Cpu, m: &mut Careful, op: &Op<Careful>) -> Outcome {
    let target = indirect::<T>(cpu, m, op)?;
    jmp(cpu, m, op, target)
}

fn jmp(cpu: &mut Cpu, m: &mut Careful, op: &Op<Careful>, target: Pointer) -> Outcome {
    if !cpu.view.has_descriptors() {
        let cs = real_code(cpu, target)?;
        return arrive(cpu, cs, target.offset);
    }
    let (code, offset) = match Target::read(cpu, m, target.selector, Reason::Jump)? {
        Target::Code(code) => {
            check_direct(cpu, &code)?;
            (code, target.offset)
        }
        Target::Gate(gate) => {
            let code = gate.code(cpu, m)?;
            // A jump does not change privilege.
            if !code.attributes().is_conforming() && code.attributes().dpl() != cpu.cpl() {
                return Err(fault(event::GP, gate.target.selector));
            }
            check_present(&code)?;
            (code, gate.target.offset)
        }
        Target::Task(tss) => {
            let next_ip = op.next_ip(cpu);
            return switch(cpu, m, tss, Reason::Jump, next_ip);
        }
    };
    let mut stack_pointer = cpu.gpr.get(gpr::RSP);
    // The modelled processor clears what 16- and 32-bit code cannot see of RSP, and of no other register.
    if cpu.view.is_long() && !descriptor::is_long_code(cpu, &code.segment) {
        stack_pointer &= 0xffff_ffff;
    }
    let cs = enter(cpu, m, code, offset, cpu.cpl())?;
    cpu.gpr.set(gpr::RSP, stack_pointer);
    arrive(cpu, cs, offset)
}

// CALL.

fn call_direct<T: Word>(cpu: &mut Cpu, m: &mut Careful, op: &Op<Careful>) -> Outcome {
    call(cpu, m, op, direct(op), T::SIZE as u8)
}

fn call_indirect<T: Word>(cpu: &mut Cpu, m: &mut Careful, op: &Op<Careful>) -> Outcome {
    let target = indirect::<T>(cpu, m, op)?;
    // With REX.W the modelled processor reads no longer a pointer, but pushes quadwords.
    call(cpu, m, op, target, op.attr.operand_size().max(T::SIZE as u8))
}

fn call(cpu: &mut Cpu, m: &mut Careful, op: &Op<Careful>, target: Pointer, size: u8) -> Outcome {
    let return_address = [u64::from(cpu.segments[Seg::Cs].selector), op.next_ip(cpu)];
    let mut stack = Stack::current(cpu);
    let push = |stack: &mut Stack, cpu: &Cpu, m: &mut Careful, size| {
        return_address
            .into_iter()
            .try_for_each(|value| stack.push(cpu, m, size, value))
    };
    if !cpu.view.has_descriptors() {
        push(&mut stack, cpu, m, size)?;
        let cs = real_code(cpu, target)?;
        stack.commit(cpu);
        return arrive(cpu, cs, target.offset);
    }
    let (cs, offset) = match Target::read(cpu, m, target.selector, Reason::Call)? {
        Target::Code(code) => {
            check_direct(cpu, &code)?;
            // The pushes are already the called code's: from 64-bit code to 32-bit code they are made with ESP.
            if cpu.view.is_ia32e() {
                stack = stack.seen_from(descriptor::is_long_code(cpu, &code.segment));
            }
            push(&mut stack, cpu, m, size)?;
            (enter(cpu, m, code, target.offset, cpu.cpl())?, target.offset)
        }
        Target::Gate(gate) => {
            let code = gate.code(cpu, m)?;
            check_present(&code)?;
            let dpl = code.attributes().dpl();
            let cpl = if code.attributes().is_conforming() {
                cpu.cpl()
            } else {
                dpl
            };
            if cpl != cpu.cpl() {
                stack = inner_stack(cpu, m, &gate, cpl)?;
            } else if gate.size == 8 {
                stack = Stack::current_long(cpu);
            }
            push(&mut stack, cpu, m, gate.size)?;
            let offset = gate.target.offset;
            (enter(cpu, m, code, offset, cpl)?, offset)
        }
        Target::Task(tss) => {
            let next_ip = op.next_ip(cpu);
            return switch(cpu, m, tss, Reason::Call, next_ip);
        }
    };
    stack.commit(cpu);
    arrive(cpu, cs, offset)
}

/// The stack of privilege level `cpl` with the old one's pointer on it, and its parameters.
fn inner_stack(cpu: &Cpu, m: &mut Careful, gate: &Gate, cpl: u8) -> Result<Stack, Stop> {
    let outer = Stack::current(cpu);
    let (mut stack, parameters) = if cpu.view.is_ia32e() {
        let pointer = descriptor::tss_stack_pointer(cpu, m, cpl)?;
        (Stack::long(descriptor::null_stack(cpl), pointer, cpl), 0)
    } else {
        let (pointer, selector) = descriptor::tss_stack(cpu, m, cpl)?;
        if is_null(selector) {
            return Err(Exception::with_code(event::TS, 0).into());
        }
        let segment = descriptor::stack_descriptor(cpu, m, selector, cpl, event::TS)?;
        (Stack::inner(segment, pointer, cpl), gate.parameters)
    };
    stack.push(cpu, m, gate.size, u64::from(outer.segment.selector))?;
    stack.push(cpu, m, gate.size, outer.rsp)?;
    for i in (0..parameters).rev() {
        let parameter = outer.peek(cpu, m, gate.size, i * u64::from(gate.size))?;
        stack.push(cpu, m, gate.size, parameter)?;
    }
    Ok(stack)
}

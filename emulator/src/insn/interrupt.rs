//! Software interrupts, the interrupt flag, POPF, and HLT.

use super::virtual_8086::{self, Reach};
use crate::access::{Access, Outcome, Stop};
use crate::cpu::{Activity, Cpu, Cr4, Mode, Shadow, flags};
use crate::event::{self, Event, Exception, Source};
use crate::insn::stack::{pop_slot, set_pointer};
use crate::op::Op;
use crate::table::Table;
use crate::word::Word;
use iced_x86::Code;

pub(super) fn fill<M: Access>(table: &mut Table<M>) {
    table.end(Code::Int_imm8, int);
    table.end(Code::Int3, int3);
    table.end(Code::Int1, int1);
    table.end(Code::Into, into);
    table.plain(Code::Cli, cli);
    table.end(Code::Sti, sti);
    table.end(Code::Popfw, popf::<M, u16>);
    table.end(Code::Popfd, popf::<M, u32>);
    table.end(Code::Popfq, popf::<M, u64>);
    table.end(Code::Hlt, hlt);
    table.plain(Code::Stac, stac);
    table.plain(Code::Clac, clac);
}

/// Raises a software event; RIP stays until it is delivered.
fn raise<M>(cpu: &mut Cpu, op: &Op<M>, vector: u8, source: Source) -> Outcome {
    cpu.event = Some(Event {
        vector,
        source,
        error_code: None,
        cr2: None,
        length: op.len,
    });
    Err(Stop::Stay)
}

fn int<M: Access>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    if cpu.view.mode == Mode::Virtual8086 && cpu.cr4.any(Cr4::VME) {
        return (M::careful(virtual_8086::int))(cpu, m, op);
    }
    virtual_8086::reach(cpu, 4)?;
    raise(cpu, op, op.imm as u8, Source::Software)
}

fn int3<M: Access>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    raise(cpu, op, event::BP, Source::Software)
}

fn int1<M: Access>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    raise(cpu, op, event::DB, Source::Privileged)
}

fn into<M: Access>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    if !cpu.flags.overflow() {
        return Err(Stop::Next);
    }
    raise(cpu, op, event::OF, Source::Software)
}

/// Which flag CLI and STI change.
enum Interrupts {
    Real,
    /// VIF: protected-mode virtual interrupts.
    Virtual,
}

/// # Errors
/// #GP(0) if the program may not change IF.
fn interrupts(cpu: &Cpu) -> Result<Interrupts, Stop> {
    if cpu.cpl() <= cpu.flags.iopl() {
        return Ok(Interrupts::Real);
    }
    let extension = if cpu.view.has_descriptors() { Cr4::PVI } else { Cr4::VME };
    if cpu.cpl() == 3 && cpu.cr4.any(extension) {
        return Ok(Interrupts::Virtual);
    }
    Err(Exception::gp(0).into())
}

fn cli<M: Access>(cpu: &mut Cpu, _: &mut M, _: &Op<M>) -> Outcome {
    match interrupts(cpu)? {
        Interrupts::Real => cpu.flags.assign(flags::IF, false),
        Interrupts::Virtual => cpu.flags.assign(flags::VIF, false),
    }
    Ok(())
}

fn sti<M: Access>(cpu: &mut Cpu, _: &mut M, _: &Op<M>) -> Outcome {
    match interrupts(cpu)? {
        Interrupts::Real => {
            // Interrupts wait for one more instruction, if this is the one that lets them in.
            if !cpu.flags.interrupt() {
                cpu.shadow = Shadow::Sti;
            }
            cpu.flags.assign(flags::IF, true);
        }
        Interrupts::Virtual if cpu.flags.any(flags::VIP) => return Err(Exception::gp(0).into()),
        Interrupts::Virtual => cpu.flags.assign(flags::VIF, true),
    }
    Err(Stop::Next)
}

/// POPF: which flags it changes depends on privilege (SDM Vol. 2, POPF).
fn popf<M: Access, W: Word>(cpu: &mut Cpu, m: &mut M, _: &Op<M>) -> Outcome {
    let reach = virtual_8086::reach(cpu, W::SIZE)?;
    let (at, sp) = pop_slot::<W>(cpu)?;
    let image = m.load::<W>(cpu, at)?.zero_extend();
    if reach == Reach::Virtual {
        virtual_8086::check_taking(cpu, image)?;
        virtual_8086::take(cpu, image);
        set_pointer::<W>(cpu, sp);
        return Err(Stop::Next);
    }
    let mut mask = flags::STATUS | flags::TF | flags::DF | flags::NT;
    if W::SIZE > 2 {
        mask |= flags::AC | flags::ID;
    }
    if cpu.cpl() <= cpu.flags.iopl() {
        mask |= flags::IF;
    }
    if cpu.cpl() == 0 {
        mask |= flags::IOPL;
    }
    cpu.flags.replace(mask, image);
    cpu.flags.assign(flags::RF, false);
    set_pointer::<W>(cpu, sp);
    cpu.refresh();
    Err(Stop::Next)
}

fn hlt<M: Access>(cpu: &mut Cpu, _: &mut M, _: &Op<M>) -> Outcome {
    if cpu.cpl() != 0 {
        return Err(Exception::gp(0).into());
    }
    cpu.activity = Activity::Halted;
    Err(Stop::Next)
}

/// STAC and CLAC: AC decides which translations hold, and the view follows it.
fn set_ac(cpu: &mut Cpu, value: bool) -> Outcome {
    if cpu.cpl() != 0 {
        return Err(Exception::ud().into());
    }
    cpu.flags.assign(flags::AC, value);
    cpu.refresh();
    Ok(())
}

fn stac<M: Access>(cpu: &mut Cpu, _: &mut M, _: &Op<M>) -> Outcome {
    set_ac(cpu, true)
}

fn clac<M: Access>(cpu: &mut Cpu, _: &mut M, _: &Op<M>) -> Outcome {
    set_ac(cpu, false)
}

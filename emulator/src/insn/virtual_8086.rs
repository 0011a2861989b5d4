//! The virtual-8086 mode extensions, CR4.VME: software interrupts that stay in the program, and its virtual interrupt flag
//! (SDM Vol. 3, Interrupt and Exception Handling in Virtual-8086 Mode).
//!
//! With IOPL below 3, the program's IF is VIF: what pushes flags pushes VIF in its place, with an IOPL of 3, and what pops
//! them pops into VIF.

use crate::access::{Access, Linear, Outcome, Stop};
use crate::careful::Careful;
use crate::cpu::{Cpu, Cr4, Mode, Seg, flags};
use crate::descriptor;
use crate::event::{Event, Exception, Source};
use crate::op::Op;
use crate::stack::Stack;

/// Where a TSS says where its I/O map begins; the interrupt redirection map ends there.
const IO_MAP_BASE: u64 = 102;
/// Bytes of the interrupt redirection map.
const REDIRECTION_MAP: u64 = 32;

/// What a program in virtual-8086 mode may do with flags and interrupts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// All of it, itself: it is another mode, or IOPL is 3.
    Own,
    /// Its virtual interrupt flag, with 16-bit operands.
    Virtual,
}

/// What the program may do with operands of `size` bytes.
///
/// # Errors
/// #GP(0): nothing.
pub(super) fn reach(cpu: &Cpu, size: usize) -> Result<Reach, Stop> {
    if cpu.view.mode != Mode::Virtual8086 || cpu.flags.iopl() == 3 {
        return Ok(Reach::Own);
    }
    if cpu.cr4.any(Cr4::VME) && size == 2 {
        return Ok(Reach::Virtual);
    }
    Err(Exception::gp(0).into())
}

/// The flags as the program sees them.
pub(super) fn seen(cpu: &Cpu) -> u64 {
    let interrupt = if cpu.flags.any(flags::VIF) { flags::IF } else { 0 };
    cpu.flags.bits() & !flags::IF | interrupt | flags::IOPL
}

/// Takes the 16 bits of `image` as the program's flags, once nothing else can fail.
///
/// # Errors
/// #GP(0): it wants to single-step, or to be interrupted when an interrupt waits for that.
pub(super) fn check_taking(cpu: &Cpu, image: u64) -> Result<(), Stop> {
    let waits = image & flags::IF != 0 && cpu.flags.any(flags::VIP);
    if image & flags::TF != 0 || waits {
        return Err(Exception::gp(0).into());
    }
    Ok(())
}

/// As [`check_taking`] has allowed.
pub(super) fn take(cpu: &mut Cpu, image: u64) {
    cpu.flags.replace(flags::STATUS | flags::DF | flags::NT, image);
    cpu.flags.assign(flags::TF, false);
    cpu.flags.assign(flags::VIF, image & flags::IF != 0);
}

/// INT n in virtual-8086 mode with the extensions: the redirection map says whose handler it is.
pub(super) fn int(cpu: &mut Cpu, m: &mut Careful, op: &Op<Careful>) -> Outcome {
    let vector = op.imm as u8;
    if is_handled_outside(cpu, m, vector)? {
        if cpu.flags.iopl() < 3 {
            return Err(Exception::gp(0).into());
        }
        cpu.event = Some(Event {
            vector,
            source: Source::Software,
            error_code: None,
            cr2: None,
            length: op.len,
        });
        return Err(Stop::Stay);
    }
    let own = cpu.flags.iopl() == 3;
    let image = if own { cpu.flags.bits() } else { seen(cpu) };
    let pointer = u64::from(vector) * 4;
    let entry = m.load::<u32>(cpu, Linear::new(Seg::Ds, pointer))?;
    let (ip, cs) = (u64::from(entry & 0xffff), (entry >> 16) as u16);
    let mut stack = Stack::current(cpu);
    for value in [image, u64::from(cpu.segments[Seg::Cs].selector), op.next_ip(cpu)] {
        stack.push(cpu, m, 2, value)?;
    }
    let cs = descriptor::real_segment(cpu, Seg::Cs, cs);
    descriptor::check_target(cpu, &cs, ip)?;
    stack.commit(cpu);
    cpu.flags
        .assign(flags::TF | if own { flags::IF } else { flags::VIF }, false);
    cpu.segments[Seg::Cs] = cs;
    cpu.rip = ip;
    cpu.refresh();
    Err(Stop::Jumped)
}

/// The bit of `vector` in the redirection map is set.
fn is_handled_outside(cpu: &Cpu, m: &mut Careful, vector: u8) -> Result<bool, Stop> {
    let (base, limit) = (cpu.tr.base, u64::from(cpu.tr.limit));
    let refused = Err(Exception::gp(0).into());
    if IO_MAP_BASE + 1 > limit {
        return refused;
    }
    let map = u64::from(m.load_system::<u16>(cpu, base.wrapping_add(IO_MAP_BASE))?);
    let Some(offset) = map
        .checked_sub(REDIRECTION_MAP)
        .map(|start| start + u64::from(vector / 8))
    else {
        return refused;
    };
    if offset > limit {
        return refused;
    }
    let bits = m.load_system::<u8>(cpu, base.wrapping_add(offset))?;
    Ok(bits >> (vector % 8) & 1 != 0)
}

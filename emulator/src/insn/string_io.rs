//! INS and OUTS: string instructions whose other end is a port.
//!
//! What memory and segments may refuse is refused before the port is touched: a device is not asked for what cannot be
//! stored, and is not told what could not be read.

use iced_x86::Code;

use super::io::io_permitted;
use super::string::{count_repetitions, destination, source, step_index};
use crate::access::{Access, Linear, Outcome, Stop};
use crate::careful::{Careful, Elements, Way};
use crate::cpu::{Cpu, gpr};
use crate::debug::{self, Watched};
use crate::op::{Handler, Op};
use crate::operand::Use;
use crate::ram::PAGE_SIZE;
use crate::table::Table;
use crate::word::Word;

fn ins<T: Word>(cpu: &mut Cpu, m: &mut Careful, op: &Op<Careful>) -> Outcome {
    let (port, size) = (cpu.gpr.get(gpr::RDX) as u16, T::SIZE as u64);
    io_permitted(cpu, m, port, T::SIZE as u8)?;
    if is_over(cpu, op) {
        return Ok(());
    }
    m.watch(cpu, u64::from(port), size, Watched::Port);
    let to = destination(cpu, op, size, Use::Write)?;
    m.check_write(cpu, to, size)?;
    let elements = at_once::<T>(cpu, op, gpr::RDI, |size| destination(cpu, op, size, Use::Write));
    let mut moved = m.port_batch(cpu, port, to, elements, Way::In)?;
    if moved == 0 {
        let value = m.port_read(port, T::SIZE as u8)?;
        m.store(cpu, to, T::truncate(value))?;
        moved = 1;
    }
    step_index(cpu, op, gpr::RDI, moved * size);
    count_repetitions(cpu, op, moved)
}

fn outs<T: Word>(cpu: &mut Cpu, m: &mut Careful, op: &Op<Careful>) -> Outcome {
    let (port, size) = (cpu.gpr.get(gpr::RDX) as u16, T::SIZE as u64);
    io_permitted(cpu, m, port, T::SIZE as u8)?;
    if is_over(cpu, op) {
        return Ok(());
    }
    m.watch(cpu, u64::from(port), size, Watched::Port);
    let from = source(cpu, op, size)?;
    let elements = at_once::<T>(cpu, op, gpr::RSI, |size| source(cpu, op, size));
    let mut moved = m.port_batch(cpu, port, from, elements, Way::Out)?;
    if moved == 0 {
        let value = m.load::<T>(cpu, from)?;
        m.port_write(port, T::SIZE as u8, value.zero_extend())?;
        moved = 1;
    }
    step_index(cpu, op, gpr::RSI, moved * size);
    count_repetitions(cpu, op, moved)
}

/// The elements that may be moved at once: those left of an upward repetition that lie, as `segment` says of their
/// bytes in all, within the segment, in the page of the first; one if there is no such repetition.
fn at_once<T: Word>(
    cpu: &Cpu,
    op: &Op<Careful>,
    index: u8,
    segment: impl FnOnce(u64) -> Result<Linear, Stop>,
) -> Elements {
    let (mask, size) = (op.attr.address_mask(), T::SIZE as u64);
    let one = Elements {
        size: T::SIZE as u8,
        count: 1,
    };
    if !op.attr.is_repeated() || cpu.flags.direction() || debug::is_armed(cpu) {
        return one;
    }
    let offset = cpu.gpr.get(index) & mask;
    // The offset must not wrap: a segment that does not begin at a page boundary may end, or begin anew, within a page.
    let left = (mask - offset).saturating_add(1).min(PAGE_SIZE) / size;
    let count = (cpu.gpr.get(gpr::RCX) & mask).min(left);
    if count < 2 || segment(count * size).is_err() {
        return one;
    }
    Elements { count, ..one }
}

/// Nothing is left of a repetition. The modelled processor asks for the permission all the same.
fn is_over(cpu: &Cpu, op: &Op<Careful>) -> bool {
    op.attr.is_repeated() && cpu.gpr.get(gpr::RCX) & op.attr.address_mask() == 0
}

/// Adds the rows of this family.
pub(super) fn fill<M: Access>(table: &mut Table<M>) {
    for (code, handler) in [
        (Code::Insb_m8_DX, ins::<u8> as Handler<Careful>),
        (Code::Insw_m16_DX, ins::<u16>),
        (Code::Insd_m32_DX, ins::<u32>),
        (Code::Outsb_DX_m8, outs::<u8>),
        (Code::Outsw_DX_m16, outs::<u16>),
        (Code::Outsd_DX_m32, outs::<u32>),
    ] {
        table.careful(code, handler);
    }
}

//! INS and OUTS: string instructions whose other end is a port.
//!
//! What memory and segments may refuse is refused before the port is touched: a device is not asked for what cannot be
//! stored, and is not told what could not be read.

use iced_x86::Code;

use super::io::io_permitted;
use super::string::{count_repetition, destination, source, step_index};
use crate::access::{Access, Outcome};
use crate::careful::Careful;
use crate::cpu::{Cpu, gpr};
use crate::op::{Handler, Op};
use crate::operand::Use;
use crate::table::Table;
use crate::word::Word;

fn ins<T: Word>(cpu: &mut Cpu, m: &mut Careful, op: &Op<Careful>) -> Outcome {
    if is_over(cpu, op) {
        return Ok(());
    }
    let (port, size) = (cpu.gpr.get(gpr::RDX) as u16, T::SIZE as u64);
    io_permitted(cpu, m, port, T::SIZE as u8)?;
    let to = destination(cpu, op, size, Use::Write)?;
    m.check_write(cpu, to, size)?;
    let value = m.port_read(port, T::SIZE as u8)?;
    m.store(cpu, to, T::truncate(value))?;
    step_index(cpu, op, gpr::RDI, size);
    count_repetition(cpu, op)
}

fn outs<T: Word>(cpu: &mut Cpu, m: &mut Careful, op: &Op<Careful>) -> Outcome {
    if is_over(cpu, op) {
        return Ok(());
    }
    let (port, size) = (cpu.gpr.get(gpr::RDX) as u16, T::SIZE as u64);
    io_permitted(cpu, m, port, T::SIZE as u8)?;
    let from = source(cpu, op, size)?;
    let value = m.load::<T>(cpu, from)?;
    m.port_write(port, T::SIZE as u8, value.zero_extend())?;
    step_index(cpu, op, gpr::RSI, size);
    count_repetition(cpu, op)
}

/// Nothing is left of a repetition: not even the permission is asked for.
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

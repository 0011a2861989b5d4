//! Direct stores: MOVDIRI and MOVDIR64B.
//!
//! There are no caches that they could go around, so MOVDIRI is a MOV. The 64 bytes of MOVDIR64B are read before the first is
//! written, and all checked before either; a device gets them as eight writes in a row, the widest that there are.

use iced_x86::Code;

use crate::access::{Access, Outcome};
use crate::cpu::{Cpu, Seg};
use crate::event::Exception;
use crate::op::Op;
use crate::operand::{Addressing, Flat, General, Use};
use crate::table::Table;
use crate::word::Word;

/// Bytes that MOVDIR64B moves, and how they must be aligned.
const LINE: u64 = 64;

fn store<M: Access, T: Word, A: Addressing>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    let at = A::linear(cpu, op, T::SIZE as u64, Use::Write)?;
    m.store(cpu, at, T::truncate(cpu.gpr.read::<T>(op.r1)))
}

/// The destination is an offset in ES, whatever the source's segment is.
fn store_line<M: Access>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    let offset = cpu.gpr.get(op.r1) & op.attr.address_mask();
    let from = General::linear(cpu, op, LINE, Use::Read)?;
    let to = cpu.linear(Seg::Es, offset, LINE, Use::Write)?;
    if !to.address.is_multiple_of(LINE) {
        return Err(Exception::gp(0).into());
    }
    m.check_move(cpu, from, to, LINE)?;
    let line: [u8; LINE as usize] = m.load_array(cpu, from)?;
    m.store_bytes(cpu, to, &line)
}

/// Adds the rows of this family.
pub(super) fn fill<M: Access>(table: &mut Table<M>) {
    use Code::*;
    let (general, flat) = (store::<M, u32, General>, store::<M, u32, Flat>);
    table.rm_flat(Movdiri_m32_r32, general, general, flat);
    let (general, flat) = (store::<M, u64, General>, store::<M, u64, Flat>);
    table.rm_flat(Movdiri_m64_r64, general, general, flat);
    for code in [Movdir64b_r16_m512, Movdir64b_r32_m512, Movdir64b_r64_m512] {
        table.plain(code, store_line::<M>);
    }
}

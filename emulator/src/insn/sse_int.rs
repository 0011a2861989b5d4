//! SSE2 integer instructions, and the SSE instructions that shuffle or combine bits without regard to what they mean.

use iced_x86::Code::{self, *};

use super::shuffle::{self, Lane, PackedImmediate, sign_mask};
use super::{available, sse_mov};
use crate::access::{Access, Outcome, Stop};
use crate::cpu::Cpu;
use crate::native::packed::{self, Packed};
use crate::op::Op;
use crate::operand::{Addressing, Flat, General, Use};
use crate::table::Table;

pub(super) fn fill<M: Access>(table: &mut Table<M>) {
    macro_rules! rows {
        ($row:ident($from:ident): $($op:ident $code:ident,)*) => { $($row::<M, $from::$op>(table, $code);)* };
    }
    rows! { row_flat(packed):
        Pand Pand_xmm_xmmm128, Por Por_xmm_xmmm128, Pxor Pxor_xmm_xmmm128, Pandn Pandn_xmm_xmmm128,
        Pand Andps_xmm_xmmm128, Por Orps_xmm_xmmm128, Pxor Xorps_xmm_xmmm128, Pandn Andnps_xmm_xmmm128,
        Pand Andpd_xmm_xmmm128, Por Orpd_xmm_xmmm128, Pxor Xorpd_xmm_xmmm128, Pandn Andnpd_xmm_xmmm128,
        Pcmpeqb Pcmpeqb_xmm_xmmm128, Pcmpeqw Pcmpeqw_xmm_xmmm128, Pcmpeqd Pcmpeqd_xmm_xmmm128,
        Pminub Pminub_xmm_xmmm128, Paddd Paddd_xmm_xmmm128, Paddq Paddq_xmm_xmmm128,
    }
    rows! { row(packed):
        Paddb Paddb_xmm_xmmm128, Paddw Paddw_xmm_xmmm128, Paddsb Paddsb_xmm_xmmm128, Paddsw Paddsw_xmm_xmmm128,
        Paddusb Paddusb_xmm_xmmm128, Paddusw Paddusw_xmm_xmmm128,
        Psubb Psubb_xmm_xmmm128, Psubw Psubw_xmm_xmmm128, Psubd Psubd_xmm_xmmm128, Psubq Psubq_xmm_xmmm128,
        Psubsb Psubsb_xmm_xmmm128, Psubsw Psubsw_xmm_xmmm128, Psubusb Psubusb_xmm_xmmm128, Psubusw Psubusw_xmm_xmmm128,
        Pmullw Pmullw_xmm_xmmm128, Pmulhw Pmulhw_xmm_xmmm128, Pmulhuw Pmulhuw_xmm_xmmm128,
        Pmuludq Pmuludq_xmm_xmmm128, Pmaddwd Pmaddwd_xmm_xmmm128, Psadbw Psadbw_xmm_xmmm128,
        Pavgb Pavgb_xmm_xmmm128, Pavgw Pavgw_xmm_xmmm128,
        Pmaxub Pmaxub_xmm_xmmm128, Pminsw Pminsw_xmm_xmmm128, Pmaxsw Pmaxsw_xmm_xmmm128,
        Pcmpgtb Pcmpgtb_xmm_xmmm128, Pcmpgtw Pcmpgtw_xmm_xmmm128, Pcmpgtd Pcmpgtd_xmm_xmmm128,
        Packsswb Packsswb_xmm_xmmm128, Packssdw Packssdw_xmm_xmmm128, Packuswb Packuswb_xmm_xmmm128,
        Punpcklbw Punpcklbw_xmm_xmmm128, Punpcklwd Punpcklwd_xmm_xmmm128, Punpckldq Punpckldq_xmm_xmmm128,
        Punpcklqdq Punpcklqdq_xmm_xmmm128,
        Punpckhbw Punpckhbw_xmm_xmmm128, Punpckhwd Punpckhwd_xmm_xmmm128, Punpckhdq Punpckhdq_xmm_xmmm128,
        Punpckhqdq Punpckhqdq_xmm_xmmm128,
        Punpckldq Unpcklps_xmm_xmmm128, Punpcklqdq Unpcklpd_xmm_xmmm128,
        Punpckhdq Unpckhps_xmm_xmmm128, Punpckhqdq Unpckhpd_xmm_xmmm128,
        Psllw Psllw_xmm_xmmm128, Pslld Pslld_xmm_xmmm128, Psllq Psllq_xmm_xmmm128,
        Psrlw Psrlw_xmm_xmmm128, Psrld Psrld_xmm_xmmm128, Psrlq Psrlq_xmm_xmmm128,
        Psraw Psraw_xmm_xmmm128, Psrad Psrad_xmm_xmmm128,
    }
    rows! { by_count(packed):
        Psllw Psllw_xmm_imm8, Pslld Pslld_xmm_imm8, Psllq Psllq_xmm_imm8,
        Psrlw Psrlw_xmm_imm8, Psrld Psrld_xmm_imm8, Psrlq Psrlq_xmm_imm8,
        Psraw Psraw_xmm_imm8, Psrad Psrad_xmm_imm8, Pslldq Pslldq_xmm_imm8, Psrldq Psrldq_xmm_imm8,
    }
    rows! { with_immediate(shuffle):
        Pshufd Pshufd_xmm_xmmm128_imm8, Pshuflw Pshuflw_xmm_xmmm128_imm8, Pshufhw Pshufhw_xmm_xmmm128_imm8,
        Shufps Shufps_xmm_xmmm128_imm8, Shufpd Shufpd_xmm_xmmm128_imm8,
    }
    table.plain(Pmovmskb_r32_xmm, mask_to_general::<M, 1>);
    table.plain(Pmovmskb_r64_xmm, mask_to_general::<M, 1>);
    table.plain(Movmskps_r32_xmm, mask_to_general::<M, 4>);
    table.plain(Movmskps_r64_xmm, mask_to_general::<M, 4>);
    table.plain(Movmskpd_r32_xmm, mask_to_general::<M, 8>);
    table.plain(Movmskpd_r64_xmm, mask_to_general::<M, 8>);
    table.rm(Pinsrw_xmm_r32m16_imm8, insert, insert_memory);
    table.rm(Pinsrw_xmm_r64m16_imm8, insert, insert_memory);
    table.plain(Pextrw_r32_xmm_imm8, extract);
    table.plain(Pextrw_r64_xmm_imm8, extract);
}

fn row_flat<M: Access, O: Packed>(table: &mut Table<M>, code: Code) {
    table.rm_flat(code, registers::<M, O>, memory::<M, O, General>, memory::<M, O, Flat>);
}

fn row<M: Access, O: Packed>(table: &mut Table<M>, code: Code) {
    table.rm(code, registers::<M, O>, memory::<M, O, General>);
}

fn by_count<M: Access, O: Packed>(table: &mut Table<M>, code: Code) {
    table.plain(code, count::<M, O>);
}

pub(super) fn with_immediate<M: Access, O: PackedImmediate>(table: &mut Table<M>, code: Code) {
    table.rm(code, immediate::<M, O>, immediate_memory::<M, O>);
}

/// The aligned 16-byte memory operand.
#[inline(always)]
pub(super) fn operand<M: Access, A: Addressing>(cpu: &Cpu, m: &mut M, op: &Op<M>) -> Result<[u8; 16], Stop> {
    let at = sse_mov::address16::<M, A, true>(cpu, op, Use::Read)?;
    m.load_array(cpu, at)
}

fn registers<M: Access, O: Packed>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    available::sse(cpu)?;
    let value = O::xmm(cpu.fpu.xmm(op.r1), cpu.fpu.xmm(op.r2));
    cpu.fpu.set_xmm(op.r1, value);
    Ok(())
}

fn memory<M: Access, O: Packed, A: Addressing>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    available::sse(cpu)?;
    let source = operand::<M, A>(cpu, m, op)?;
    let value = O::xmm(cpu.fpu.xmm(op.r1), source);
    cpu.fpu.set_xmm(op.r1, value);
    Ok(())
}

/// A shift by an immediate count.
fn count<M: Access, O: Packed>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    available::sse(cpu)?;
    let count = u128::from(op.imm as u8).to_le_bytes();
    let value = O::xmm(cpu.fpu.xmm(op.r1), count);
    cpu.fpu.set_xmm(op.r1, value);
    Ok(())
}

pub(super) fn immediate<M: Access, O: PackedImmediate>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    available::sse(cpu)?;
    let value = O::apply(cpu.fpu.xmm(op.r1), cpu.fpu.xmm(op.r2), op.imm as u8);
    cpu.fpu.set_xmm(op.r1, value);
    Ok(())
}

/// As [`with_immediate`], with a memory operand that need not be aligned.
pub(super) fn with_immediate_unaligned<M: Access, O: PackedImmediate>(table: &mut Table<M>, code: Code) {
    table.rm(code, immediate::<M, O>, |cpu, m, op| {
        available::sse(cpu)?;
        let at = sse_mov::address16::<M, General, false>(cpu, op, Use::Read)?;
        let source = m.load_array(cpu, at)?;
        let value = O::apply(cpu.fpu.xmm(op.r1), source, op.imm as u8);
        cpu.fpu.set_xmm(op.r1, value);
        Ok(())
    });
}

fn immediate_memory<M: Access, O: PackedImmediate>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    available::sse(cpu)?;
    let source = operand::<M, General>(cpu, m, op)?;
    let value = O::apply(cpu.fpu.xmm(op.r1), source, op.imm as u8);
    cpu.fpu.set_xmm(op.r1, value);
    Ok(())
}

/// The sign bits of lanes of `LANE` bytes into a general-purpose register, zero-extended.
fn mask_to_general<M: Access, const LANE: usize>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    available::sse(cpu)?;
    cpu.gpr.set(op.r1, sign_mask::<LANE>(&cpu.fpu.xmm(op.r2)));
    Ok(())
}

/// PINSRW: the word goes to the place that the low three bits of the immediate name.
fn insert<M: Access>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    available::sse(cpu)?;
    let word = cpu.gpr.get(op.r2) as u16;
    insert_word(cpu, op, word);
    Ok(())
}

fn insert_memory<M: Access>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    available::sse(cpu)?;
    let at = General::linear(cpu, op, 2, Use::Read)?;
    let word = m.load(cpu, at)?;
    insert_word(cpu, op, word);
    Ok(())
}

fn insert_word<M>(cpu: &mut Cpu, op: &Op<M>, word: u16) {
    let mut value = cpu.fpu.xmm(op.r1);
    word.put(&mut value, usize::from(op.imm as u8 & 7));
    cpu.fpu.set_xmm(op.r1, value);
}

/// PEXTRW.
fn extract<M: Access>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    available::sse(cpu)?;
    let word = u16::get(&cpu.fpu.xmm(op.r2), usize::from(op.imm as u8 & 7));
    cpu.gpr.set(op.r1, u64::from(word));
    Ok(())
}

//! MMX, with what SSE, SSE2 and SSSE3 added for MMX registers.
//!
//! MMi is the significand of x87 register i. Every instruction here makes the x87 stack "full and valid" with TOP
//! at 0, and a written register's exponent all ones (SDM Vol. 1, The MMX State and the x87 FPU); EMMS then
//! empties it. Conversions between
//! MMX and XMM registers are among the SSE floating-point instructions.

use iced_x86::Code::{self, *};

use super::shuffle::{self, Lane, PackedImmediate, sign_mask};
use super::{available, sse_mov, ssse3};
use crate::access::{Access, Outcome, Stop};
use crate::cpu::Cpu;
use crate::native::packed::{self, Packed};
use crate::op::Op;
use crate::operand::{Addressing, General, Use};
use crate::table::Table;
use crate::word::Word;

pub(super) fn fill<M: Access>(table: &mut Table<M>) {
    macro_rules! rows {
        ($row:ident($from:ident): $($op:ident $code:ident,)*) => { $($row::<M, $from::$op>(table, $code);)* };
    }
    rows! { row(packed):
        Pand Pand_mm_mmm64, Por Por_mm_mmm64, Pxor Pxor_mm_mmm64, Pandn Pandn_mm_mmm64,
        Pcmpeqb Pcmpeqb_mm_mmm64, Pcmpeqw Pcmpeqw_mm_mmm64, Pcmpeqd Pcmpeqd_mm_mmm64,
        Pcmpgtb Pcmpgtb_mm_mmm64, Pcmpgtw Pcmpgtw_mm_mmm64, Pcmpgtd Pcmpgtd_mm_mmm64,
        Paddb Paddb_mm_mmm64, Paddw Paddw_mm_mmm64, Paddd Paddd_mm_mmm64, Paddq Paddq_mm_mmm64,
        Paddsb Paddsb_mm_mmm64, Paddsw Paddsw_mm_mmm64, Paddusb Paddusb_mm_mmm64, Paddusw Paddusw_mm_mmm64,
        Psubb Psubb_mm_mmm64, Psubw Psubw_mm_mmm64, Psubd Psubd_mm_mmm64, Psubq Psubq_mm_mmm64,
        Psubsb Psubsb_mm_mmm64, Psubsw Psubsw_mm_mmm64, Psubusb Psubusb_mm_mmm64, Psubusw Psubusw_mm_mmm64,
        Pmullw Pmullw_mm_mmm64, Pmulhw Pmulhw_mm_mmm64, Pmulhuw Pmulhuw_mm_mmm64, Pmuludq Pmuludq_mm_mmm64,
        Pmaddwd Pmaddwd_mm_mmm64, Psadbw Psadbw_mm_mmm64, Pavgb Pavgb_mm_mmm64, Pavgw Pavgw_mm_mmm64,
        Pminub Pminub_mm_mmm64, Pmaxub Pmaxub_mm_mmm64, Pminsw Pminsw_mm_mmm64, Pmaxsw Pmaxsw_mm_mmm64,
        Packsswb Packsswb_mm_mmm64, Packssdw Packssdw_mm_mmm64, Packuswb Packuswb_mm_mmm64,
        Punpckhbw Punpckhbw_mm_mmm64, Punpckhwd Punpckhwd_mm_mmm64, Punpckhdq Punpckhdq_mm_mmm64,
        Psllw Psllw_mm_mmm64, Pslld Pslld_mm_mmm64, Psllq Psllq_mm_mmm64,
        Psrlw Psrlw_mm_mmm64, Psrld Psrld_mm_mmm64, Psrlq Psrlq_mm_mmm64,
        Psraw Psraw_mm_mmm64, Psrad Psrad_mm_mmm64,
    }
    rows! { row_low(packed):
        Punpcklbw Punpcklbw_mm_mmm32, Punpcklwd Punpcklwd_mm_mmm32, Punpckldq Punpckldq_mm_mmm32,
    }
    rows! { by_count(packed):
        Psllw Psllw_mm_imm8, Pslld Pslld_mm_imm8, Psllq Psllq_mm_imm8,
        Psrlw Psrlw_mm_imm8, Psrld Psrld_mm_imm8, Psrlq Psrlq_mm_imm8,
        Psraw Psraw_mm_imm8, Psrad Psrad_mm_imm8,
    }
    rows! { with_immediate(shuffle): Pshufw Pshufw_mm_mmm64_imm8, }
    rows! { with_immediate(ssse3):
        Pshufb Pshufb_mm_mmm64, Palignr Palignr_mm_mmm64_imm8,
        Phaddw Phaddw_mm_mmm64, Phaddd Phaddd_mm_mmm64, Phaddsw Phaddsw_mm_mmm64,
        Phsubw Phsubw_mm_mmm64, Phsubd Phsubd_mm_mmm64, Phsubsw Phsubsw_mm_mmm64,
        Psignb Psignb_mm_mmm64, Psignw Psignw_mm_mmm64, Psignd Psignd_mm_mmm64,
        Pabsb Pabsb_mm_mmm64, Pabsw Pabsw_mm_mmm64, Pabsd Pabsd_mm_mmm64,
        Pmulhrsw Pmulhrsw_mm_mmm64, Pmaddubsw Pmaddubsw_mm_mmm64,
    }
    moves(table);
    table.plain(Emms, |cpu, _, _| {
        available::mmx(cpu)?;
        // TOP becomes 0 as with the others (the processor at hand).
        cpu.fpu.enter_mmx();
        cpu.fpu.tags = 0;
        Ok(())
    });
}

fn moves<M: Access>(table: &mut Table<M>) {
    table.rm(Movd_mm_rm32, from_general::<M, u32>, load::<M, u32>);
    table.rm(Movq_mm_rm64, from_general::<M, u64>, load::<M, u64>);
    table.rm(Movd_rm32_mm, to_general::<M, u32>, store::<M, u32>);
    table.rm(Movq_rm64_mm, to_general::<M, u64>, store::<M, u64>);
    table.rm(Movq_mm_mmm64, copy, load::<M, u64>);
    table.rm(Movq_mmm64_mm, copy, store::<M, u64>);
    table.plain(Movntq_m64_mm, store::<M, u64>);
    table.plain(Movq2dq_xmm_mm, |cpu, _, op| {
        available::sse_mmx(cpu)?;
        cpu.fpu.enter_mmx();
        let value = u128::from(cpu.fpu.mm(op.r2));
        cpu.fpu.set_xmm(op.r1, value.to_le_bytes());
        Ok(())
    });
    table.plain(Movdq2q_mm_xmm, |cpu, _, op| {
        available::sse_mmx(cpu)?;
        cpu.fpu.enter_mmx();
        let value = cpu.fpu.xmm_low(op.r2);
        cpu.fpu.set_mm(op.r1, value);
        Ok(())
    });
    for code in [Pmovmskb_r32_mm, Pmovmskb_r64_mm] {
        table.plain(code, |cpu, _, op| {
            available::mmx(cpu)?;
            cpu.fpu.enter_mmx();
            cpu.gpr.set(op.r1, sign_mask::<1>(&cpu.fpu.mm(op.r2).to_le_bytes()));
            Ok(())
        });
    }
    for code in [Pextrw_r32_mm_imm8, Pextrw_r64_mm_imm8] {
        table.plain(code, |cpu, _, op| {
            available::mmx(cpu)?;
            cpu.fpu.enter_mmx();
            let word = u16::get(&cpu.fpu.mm(op.r2).to_le_bytes(), usize::from(op.imm as u8 & 3));
            cpu.gpr.set(op.r1, u64::from(word));
            Ok(())
        });
    }
    for code in [Pinsrw_mm_r32m16_imm8, Pinsrw_mm_r64m16_imm8] {
        table.rm(code, insert, insert_memory);
    }
    table.careful(Maskmovq_rDI_mm_mm, |cpu, m, op| {
        available::mmx(cpu)?;
        let (bytes, mask) = (cpu.fpu.mm(op.r1).to_le_bytes(), cpu.fpu.mm(op.r2).to_le_bytes());
        sse_mov::store_masked(cpu, m, op, &bytes, &mask)?;
        cpu.fpu.enter_mmx();
        Ok(())
    });
}

fn row<M: Access, O: Packed>(table: &mut Table<M>, code: Code) {
    table.rm(code, registers::<M, O>, memory::<M, O, u64>);
}

/// The low unpacks, whose memory operand is only the half that they use.
fn row_low<M: Access, O: Packed>(table: &mut Table<M>, code: Code) {
    table.rm(code, registers::<M, O>, memory::<M, O, u32>);
}

fn by_count<M: Access, O: Packed>(table: &mut Table<M>, code: Code) {
    table.plain(code, count::<M, O>);
}

fn with_immediate<M: Access, O: PackedImmediate>(table: &mut Table<M>, code: Code) {
    table.rm(code, immediate::<M, O>, immediate_memory::<M, O>);
}

fn operand<M: Access, T: Word>(cpu: &Cpu, m: &mut M, op: &Op<M>) -> Result<u64, Stop> {
    let at = General::linear(cpu, op, T::SIZE as u64, Use::Read)?;
    Ok(m.load::<T>(cpu, at)?.zero_extend())
}

/// Writes the destination; the last thing an instruction does.
fn finish(cpu: &mut Cpu, register: u8, value: u64) -> Outcome {
    cpu.fpu.enter_mmx();
    cpu.fpu.set_mm(register, value);
    Ok(())
}

fn registers<M: Access, O: Packed>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    available::mmx(cpu)?;
    let value = O::mm(cpu.fpu.mm(op.r1), cpu.fpu.mm(op.r2));
    finish(cpu, op.r1, value)
}

fn memory<M: Access, O: Packed, T: Word>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    available::mmx(cpu)?;
    let source = operand::<M, T>(cpu, m, op)?;
    let value = O::mm(cpu.fpu.mm(op.r1), source);
    finish(cpu, op.r1, value)
}

fn count<M: Access, O: Packed>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    available::mmx(cpu)?;
    let value = O::mm(cpu.fpu.mm(op.r1), u64::from(op.imm as u8));
    finish(cpu, op.r1, value)
}

fn immediate<M: Access, O: PackedImmediate>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    available::mmx(cpu)?;
    let (a, b) = (cpu.fpu.mm(op.r1), cpu.fpu.mm(op.r2));
    let value = O::apply(a.to_le_bytes(), b.to_le_bytes(), op.imm as u8);
    finish(cpu, op.r1, u64::from_le_bytes(value))
}

fn immediate_memory<M: Access, O: PackedImmediate>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    available::mmx(cpu)?;
    let b = operand::<M, u64>(cpu, m, op)?;
    let a = cpu.fpu.mm(op.r1);
    let value = O::apply(a.to_le_bytes(), b.to_le_bytes(), op.imm as u8);
    finish(cpu, op.r1, u64::from_le_bytes(value))
}

fn from_general<M: Access, T: Word>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    available::mmx(cpu)?;
    let value = cpu.gpr.read::<T>(op.r2);
    finish(cpu, op.r1, value)
}

fn load<M: Access, T: Word>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    available::mmx(cpu)?;
    let value = operand::<M, T>(cpu, m, op)?;
    finish(cpu, op.r1, value)
}

fn to_general<M: Access, T: Word>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    available::mmx(cpu)?;
    cpu.fpu.enter_mmx();
    cpu.gpr.write::<T>(op.r1, cpu.fpu.mm(op.r2));
    Ok(())
}

fn store<M: Access, T: Word>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    available::mmx(cpu)?;
    let at = General::linear(cpu, op, T::SIZE as u64, Use::Write)?;
    m.store(cpu, at, T::truncate(cpu.fpu.mm(op.r1)))?;
    cpu.fpu.enter_mmx();
    Ok(())
}

fn copy<M: Access>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    available::mmx(cpu)?;
    let value = cpu.fpu.mm(op.r2);
    finish(cpu, op.r1, value)
}

fn insert<M: Access>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    available::mmx(cpu)?;
    let word = cpu.gpr.get(op.r2) as u16;
    insert_word(cpu, op, word)
}

fn insert_memory<M: Access>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    available::mmx(cpu)?;
    let word = operand::<M, u16>(cpu, m, op)? as u16;
    insert_word(cpu, op, word)
}

fn insert_word<M>(cpu: &mut Cpu, op: &Op<M>, word: u16) -> Outcome {
    let mut value = cpu.fpu.mm(op.r1).to_le_bytes();
    word.put(&mut value, usize::from(op.imm as u8 & 3));
    finish(cpu, op.r1, u64::from_le_bytes(value))
}

//! SSE and SSE2 instructions that move data unchanged between XMM registers, general-purpose registers and memory.
//!
//! 16-byte operands must be aligned unless the instruction's name says otherwise; 4- and 8-byte ones need not be.
//! Non-temporal stores are stores: there is no cache to spare.

use iced_x86::Code;

use super::{available, unreachable_form};
use crate::access::{Access, Linear, Outcome, Stop};
use crate::careful::Careful;
use crate::cpu::{Cpu, Seg, gpr};
use crate::op::Op;
use crate::operand::{Addressing, Flat, General, Use, aligned};
use crate::table::Table;
use crate::word::Word;

pub(super) fn fill<M: Access>(table: &mut Table<M>) {
    for code in [
        Code::Movups_xmm_xmmm128,
        Code::Movupd_xmm_xmmm128,
        Code::Movdqu_xmm_xmmm128,
    ] {
        table.rm_flat(code, copy::<M>, load::<M, General, false>, load::<M, Flat, false>);
    }
    for code in [
        Code::Movaps_xmm_xmmm128,
        Code::Movapd_xmm_xmmm128,
        Code::Movdqa_xmm_xmmm128,
    ] {
        table.rm_flat(code, copy::<M>, load::<M, General, true>, load::<M, Flat, true>);
    }
    for code in [
        Code::Movups_xmmm128_xmm,
        Code::Movupd_xmmm128_xmm,
        Code::Movdqu_xmmm128_xmm,
    ] {
        table.rm_flat(code, copy::<M>, store::<M, General, false>, store::<M, Flat, false>);
    }
    for code in [
        Code::Movaps_xmmm128_xmm,
        Code::Movapd_xmmm128_xmm,
        Code::Movdqa_xmmm128_xmm,
        Code::Movntps_m128_xmm,
        Code::Movntpd_m128_xmm,
        Code::Movntdq_m128_xmm,
    ] {
        table.rm_flat(code, copy::<M>, store::<M, General, true>, store::<M, Flat, true>);
    }
    scalars(table);
    halves(table);
    general_registers(table);
    table.careful(Code::Maskmovdqu_rDI_xmm_xmm, |cpu, m, op| {
        available::sse(cpu)?;
        store_masked(cpu, m, op, &cpu.fpu.xmm(op.r1), &cpu.fpu.xmm(op.r2))
    });
}

fn scalars<M: Access>(table: &mut Table<M>) {
    table.rm_flat(
        Code::Movss_xmm_xmmm32,
        merge_low::<M, u32>,
        load_low::<M, General, u32>,
        load_low::<M, Flat, u32>,
    );
    table.rm_flat(
        Code::Movsd_xmm_xmmm64,
        merge_low::<M, u64>,
        load_low::<M, General, u64>,
        load_low::<M, Flat, u64>,
    );
    table.rm_flat(
        Code::Movq_xmm_xmmm64,
        copy_low::<M>,
        load_low::<M, General, u64>,
        load_low::<M, Flat, u64>,
    );
    table.rm_flat(
        Code::Movss_xmmm32_xmm,
        merge_low::<M, u32>,
        store_low::<M, General, u32>,
        store_low::<M, Flat, u32>,
    );
    table.rm_flat(
        Code::Movsd_xmmm64_xmm,
        merge_low::<M, u64>,
        store_low::<M, General, u64>,
        store_low::<M, Flat, u64>,
    );
    table.rm_flat(
        Code::Movq_xmmm64_xmm,
        copy_low::<M>,
        store_low::<M, General, u64>,
        store_low::<M, Flat, u64>,
    );
}

/// MOVLPS, MOVHPS and their kin: one half of the register.
fn halves<M: Access>(table: &mut Table<M>) {
    for code in [Code::Movlps_xmm_m64, Code::Movlpd_xmm_m64] {
        table.rm_flat(
            code,
            unreachable_form,
            load_half::<M, General, 0>,
            load_half::<M, Flat, 0>,
        );
    }
    for code in [Code::Movhps_xmm_m64, Code::Movhpd_xmm_m64] {
        table.rm_flat(
            code,
            unreachable_form,
            load_half::<M, General, 1>,
            load_half::<M, Flat, 1>,
        );
    }
    for code in [Code::Movlps_m64_xmm, Code::Movlpd_m64_xmm] {
        table.rm_flat(
            code,
            unreachable_form,
            store_half::<M, General, 0>,
            store_half::<M, Flat, 0>,
        );
    }
    for code in [Code::Movhps_m64_xmm, Code::Movhpd_m64_xmm] {
        table.rm_flat(
            code,
            unreachable_form,
            store_half::<M, General, 1>,
            store_half::<M, Flat, 1>,
        );
    }
    table.plain(Code::Movhlps_xmm_xmm, move_half::<M, 1, 0>);
    table.plain(Code::Movlhps_xmm_xmm, move_half::<M, 0, 1>);
}

fn general_registers<M: Access>(table: &mut Table<M>) {
    table.rm_flat(
        Code::Movd_xmm_rm32,
        from_general::<M, u32>,
        load_low::<M, General, u32>,
        load_low::<M, Flat, u32>,
    );
    table.rm_flat(
        Code::Movq_xmm_rm64,
        from_general::<M, u64>,
        load_low::<M, General, u64>,
        load_low::<M, Flat, u64>,
    );
    table.rm_flat(
        Code::Movd_rm32_xmm,
        to_general::<M, u32>,
        store_low::<M, General, u32>,
        store_low::<M, Flat, u32>,
    );
    table.rm_flat(
        Code::Movq_rm64_xmm,
        to_general::<M, u64>,
        store_low::<M, General, u64>,
        store_low::<M, Flat, u64>,
    );
}

/// The address of a 16-byte memory operand; #GP(0) if it must be aligned and is not.
#[inline(always)]
pub(super) fn address16<M, A: Addressing, const ALIGNED: bool>(
    cpu: &Cpu,
    op: &Op<M>,
    usage: Use,
) -> Result<Linear, Stop> {
    match ALIGNED {
        true => aligned::<M, A>(cpu, op, 16, 16, usage),
        false => A::linear(cpu, op, 16, usage),
    }
}

/// Register to register, all 16 bytes.
fn copy<M: Access>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    available::sse(cpu)?;
    let value = cpu.fpu.xmm(op.r2);
    cpu.fpu.set_xmm(op.r1, value);
    Ok(())
}

pub(super) fn load<M: Access, A: Addressing, const ALIGNED: bool>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    available::sse(cpu)?;
    let at = address16::<M, A, ALIGNED>(cpu, op, Use::Read)?;
    let value = m.load_array(cpu, at)?;
    cpu.fpu.set_xmm(op.r1, value);
    Ok(())
}

fn store<M: Access, A: Addressing, const ALIGNED: bool>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    available::sse(cpu)?;
    let at = address16::<M, A, ALIGNED>(cpu, op, Use::Write)?;
    m.store_bytes(cpu, at, &cpu.fpu.xmm(op.r1))
}

/// The low element of the source over that of the destination; the rest stays.
fn merge_low<M: Access, T: Word>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    available::sse(cpu)?;
    let value = cpu.fpu.xmm_low(op.r1) & !T::MASK | cpu.fpu.xmm_low(op.r2) & T::MASK;
    cpu.fpu.set_xmm_low(op.r1, value);
    Ok(())
}

/// The low 8 bytes of the source; the rest of the destination becomes zero.
fn copy_low<M: Access>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    available::sse(cpu)?;
    set_zero_extended(cpu, op.r1, cpu.fpu.xmm_low(op.r2));
    Ok(())
}

#[inline(always)]
fn set_zero_extended(cpu: &mut Cpu, register: u8, value: u64) {
    cpu.fpu.set_xmm(register, u128::from(value).to_le_bytes());
}

/// An element from memory; the rest of the register becomes zero.
fn load_low<M: Access, A: Addressing, T: Word>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    available::sse(cpu)?;
    let at = A::linear(cpu, op, T::SIZE as u64, Use::Read)?;
    let value = m.load::<T>(cpu, at)?.zero_extend();
    set_zero_extended(cpu, op.r1, value);
    Ok(())
}

fn store_low<M: Access, A: Addressing, T: Word>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    available::sse(cpu)?;
    let at = A::linear(cpu, op, T::SIZE as u64, Use::Write)?;
    m.store(cpu, at, T::truncate(cpu.fpu.xmm_low(op.r1)))
}

fn from_general<M: Access, T: Word>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    available::sse(cpu)?;
    set_zero_extended(cpu, op.r1, cpu.gpr.read::<T>(op.r2));
    Ok(())
}

fn to_general<M: Access, T: Word>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    available::sse(cpu)?;
    cpu.gpr.write::<T>(op.r1, cpu.fpu.xmm_low(op.r2));
    Ok(())
}

/// 8 bytes from memory into half `H` (0 low, 1 high); the other half stays.
fn load_half<M: Access, A: Addressing, const H: usize>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    available::sse(cpu)?;
    let at = A::linear(cpu, op, 8, Use::Read)?;
    let value = m.load(cpu, at)?;
    cpu.fpu.vectors[usize::from(op.r1 & 31)][H] = value;
    Ok(())
}

fn store_half<M: Access, A: Addressing, const H: usize>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    available::sse(cpu)?;
    let at = A::linear(cpu, op, 8, Use::Write)?;
    m.store(cpu, at, cpu.fpu.vectors[usize::from(op.r1 & 31)][H])
}

/// Half `FROM` of the source into half `TO` of the destination.
fn move_half<M: Access, const FROM: usize, const TO: usize>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    available::sse(cpu)?;
    let value = cpu.fpu.vectors[usize::from(op.r2 & 31)][FROM];
    cpu.fpu.vectors[usize::from(op.r1 & 31)][TO] = value;
    Ok(())
}

/// MASKMOVDQU and MASKMOVQ: the bytes whose mask byte has its top bit set go to DS:rDI (or the segment override), each a
/// store of its own, neighbours together.
pub(super) fn store_masked(cpu: &Cpu, m: &mut Careful, op: &Op<Careful>, bytes: &[u8], mask: &[u8]) -> Outcome {
    let offset = cpu.gpr.get(gpr::RDI);
    // All of it must be writable, whatever the mask: the modelled processor makes use of this freedom (APM Vol. 4, MASKMOVDQU).
    // It looks at one quadword after the other, and at their alignment.
    for start in (0..bytes.len() as u64).step_by(8) {
        let offset = (offset & op.attr.address_mask()).wrapping_add(start);
        let at = cpu.linear(Seg::from_number(op.seg()), offset, 8, Use::Write)?;
        m.check_write(cpu, at, 8)?;
    }
    let selected = |i: usize| mask.get(i).is_some_and(|byte| byte & 0x80 != 0);
    let mut start = 0;
    while start < bytes.len() {
        let end = (start..).find(|i| !selected(*i)).unwrap_or(bytes.len());
        if end > start {
            let offset = offset.wrapping_add(start as u64) & op.attr.address_mask();
            let length = (end - start) as u64;
            let at = cpu.linear(Seg::from_number(op.seg()), offset, length, Use::Write)?;
            m.store_unaligned(cpu, at, &bytes[start..end])?;
        }
        start = end + 1;
    }
    Ok(())
}

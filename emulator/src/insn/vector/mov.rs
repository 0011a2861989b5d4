//! Moves. Those with VEX prefix that programs make all the time have functions of their own; the others are rows.

use iced_x86::Code::{self, *};
use iced_x86::Mnemonic::*;

use super::form::Row;
use super::lanes::{Lanes, chunk};
use crate::access::{Access, Linear, Outcome, Stop};
use crate::cpu::Cpu;
use crate::cpu::fpu::Vector;
use crate::insn::shuffle::Lane;
use crate::insn::{available, sse_mov};
use crate::op::Op;
use crate::operand::{Addressing, Flat, General, Use, aligned};
use crate::table::Table;
use crate::word::Word;

pub(super) fn rows() -> Vec<Row> {
    let mut rows = vec![
        Row::new(Vmovss, 4, over_first::<4>).scalar(),
        Row::new(Vmovsd, 8, over_first::<8>).scalar(),
        Row::new(Vmovd, 4, low::<4>),
        Row::new(Vmovq, 8, low::<8>),
        Row::new(Vmovlps, 8, low::<8>).to_memory(),
        Row::new(Vmovlpd, 8, low::<8>).to_memory(),
        Row::new(Vmovlps, 8, over_first::<8>).to_register(),
        Row::new(Vmovlpd, 8, over_first::<8>).to_register(),
        Row::new(Vmovhps, 8, high).to_memory(),
        Row::new(Vmovhpd, 8, high).to_memory(),
        Row::new(Vmovhps, 8, low_halves).to_register(),
        Row::new(Vmovhpd, 8, low_halves).to_register(),
        Row::new(Vmovlhps, 8, low_halves),
        Row::new(Vmovhlps, 8, |lanes| {
            low_half_from::<1>(lanes);
        }),
    ];
    for (mnemonic, element) in [
        (Vmovups, 4),
        (Vmovupd, 8),
        (Vmovdqu, 16),
        (Vlddqu, 16),
        (Vmovdqu8, 1),
        (Vmovdqu16, 2),
        (Vmovdqu32, 4),
        (Vmovdqu64, 8),
    ] {
        rows.push(Row::new(mnemonic, element, copy));
    }
    for (mnemonic, element) in [
        (Vmovaps, 4),
        (Vmovapd, 8),
        (Vmovdqa, 16),
        (Vmovdqa32, 4),
        (Vmovdqa64, 8),
        // There is no cache to spare.
        (Vmovntps, 4),
        (Vmovntpd, 8),
        (Vmovntdq, 16),
        (Vmovntdqa, 16),
    ] {
        rows.push(Row::new(mnemonic, element, copy).aligned());
    }
    rows
}

fn copy(lanes: &mut Lanes) {
    lanes.a = lanes.c;
}

/// The low bytes of the only source, zero-extended.
fn low<const SIZE: usize>(lanes: &mut Lanes) {
    lanes.a.fill(0);
    lanes.a[..SIZE].copy_from_slice(&lanes.c[..SIZE]);
}

/// The low bytes of the last source, then what is above them in the first: zero if there is no other source.
fn over_first<const SIZE: usize>(lanes: &mut Lanes) {
    lanes.a.fill(0);
    lanes.a[..16].copy_from_slice(&chunk(&lanes.b, 0));
    lanes.a[..SIZE].copy_from_slice(&lanes.c[..SIZE]);
}

/// The second quadword of the only source.
fn high(lanes: &mut Lanes) {
    lanes.a.fill(0);
    u64::get(&lanes.c, 1).put(&mut lanes.a, 0);
}

/// The low quadwords of both sources.
fn low_halves(lanes: &mut Lanes) {
    lanes.a.fill(0);
    u64::get(&lanes.b, 0).put(&mut lanes.a, 0);
    u64::get(&lanes.c, 0).put(&mut lanes.a, 1);
}

/// A quadword of the last source, then the high one of the first.
fn low_half_from<const QUADWORD: usize>(lanes: &mut Lanes) {
    lanes.a.fill(0);
    u64::get(&lanes.c, QUADWORD).put(&mut lanes.a, 0);
    u64::get(&lanes.b, 1).put(&mut lanes.a, 1);
}

pub(super) fn fill<M: Access>(table: &mut Table<M>) {
    for code in [
        VEX_Vmovups_xmm_xmmm128,
        VEX_Vmovupd_xmm_xmmm128,
        VEX_Vmovdqu_xmm_xmmm128,
    ] {
        load_row::<M, 16, false>(table, code);
    }
    for code in [
        VEX_Vmovups_ymm_ymmm256,
        VEX_Vmovupd_ymm_ymmm256,
        VEX_Vmovdqu_ymm_ymmm256,
    ] {
        load_row::<M, 32, false>(table, code);
    }
    for code in [
        VEX_Vmovaps_xmm_xmmm128,
        VEX_Vmovapd_xmm_xmmm128,
        VEX_Vmovdqa_xmm_xmmm128,
    ] {
        load_row::<M, 16, true>(table, code);
    }
    for code in [
        VEX_Vmovaps_ymm_ymmm256,
        VEX_Vmovapd_ymm_ymmm256,
        VEX_Vmovdqa_ymm_ymmm256,
    ] {
        load_row::<M, 32, true>(table, code);
    }
    for code in [
        VEX_Vmovups_xmmm128_xmm,
        VEX_Vmovupd_xmmm128_xmm,
        VEX_Vmovdqu_xmmm128_xmm,
    ] {
        store_row::<M, 16, false>(table, code);
    }
    for code in [
        VEX_Vmovups_ymmm256_ymm,
        VEX_Vmovupd_ymmm256_ymm,
        VEX_Vmovdqu_ymmm256_ymm,
    ] {
        store_row::<M, 32, false>(table, code);
    }
    for code in [
        VEX_Vmovaps_xmmm128_xmm,
        VEX_Vmovapd_xmmm128_xmm,
        VEX_Vmovdqa_xmmm128_xmm,
    ] {
        store_row::<M, 16, true>(table, code);
    }
    for code in [
        VEX_Vmovaps_ymmm256_ymm,
        VEX_Vmovapd_ymmm256_ymm,
        VEX_Vmovdqa_ymmm256_ymm,
    ] {
        store_row::<M, 32, true>(table, code);
    }
    low_rows(table);
    table.plain(VEX_Vzeroupper, |cpu, _, _| clear_from(cpu, 2));
    table.plain(VEX_Vzeroall, |cpu, _, _| clear_from(cpu, 0));
    table.careful(VEX_Vmaskmovdqu_rDI_xmm_xmm, |cpu, m, op| {
        available::avx(cpu)?;
        sse_mov::store_masked(cpu, m, op, &cpu.fpu.xmm(op.r1), &cpu.fpu.xmm(op.r2))
    });
}

fn load_row<M: Access, const SIZE: usize, const ALIGNED: bool>(table: &mut Table<M>, code: Code) {
    table.rm_flat(
        code,
        register::<M, SIZE>,
        load::<M, General, SIZE, ALIGNED>,
        load::<M, Flat, SIZE, ALIGNED>,
    );
}

fn store_row<M: Access, const SIZE: usize, const ALIGNED: bool>(table: &mut Table<M>, code: Code) {
    table.rm_flat(
        code,
        register::<M, SIZE>,
        store::<M, General, SIZE, ALIGNED>,
        store::<M, Flat, SIZE, ALIGNED>,
    );
}

/// VMOVD and VMOVQ.
fn low_rows<M: Access>(table: &mut Table<M>) {
    table.rm_flat(
        VEX_Vmovd_xmm_rm32,
        from_general::<M, u32>,
        load_low::<M, General, u32>,
        load_low::<M, Flat, u32>,
    );
    table.rm_flat(
        VEX_Vmovq_xmm_rm64,
        from_general::<M, u64>,
        load_low::<M, General, u64>,
        load_low::<M, Flat, u64>,
    );
    table.rm_flat(
        VEX_Vmovd_rm32_xmm,
        to_general::<M, u32>,
        store_low::<M, General, u32>,
        store_low::<M, Flat, u32>,
    );
    table.rm_flat(
        VEX_Vmovq_rm64_xmm,
        to_general::<M, u64>,
        store_low::<M, General, u64>,
        store_low::<M, Flat, u64>,
    );
    table.rm_flat(
        VEX_Vmovq_xmm_xmmm64,
        low_register::<M>,
        load_low::<M, General, u64>,
        load_low::<M, Flat, u64>,
    );
    table.rm_flat(
        VEX_Vmovq_xmmm64_xmm,
        low_register::<M>,
        store_low::<M, General, u64>,
        store_low::<M, Flat, u64>,
    );
}

/// The address of a whole vector in memory.
#[inline(always)]
fn address<M, A: Addressing, const SIZE: usize, const ALIGNED: bool>(
    cpu: &Cpu,
    op: &Op<M>,
    usage: Use,
) -> Result<Linear, Stop> {
    available::avx(cpu)?;
    match ALIGNED {
        true => aligned::<M, A>(cpu, op, SIZE as u64, SIZE as u64, usage),
        false => A::linear(cpu, op, SIZE as u64, usage),
    }
}

/// The low `SIZE` bytes; the others become zero.
fn register<M: Access, const SIZE: usize>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    available::avx(cpu)?;
    let mut value = cpu.fpu.vectors[usize::from(op.r2 & 31)];
    value[SIZE / 8..].fill(0);
    cpu.fpu.vectors[usize::from(op.r1 & 31)] = value;
    Ok(())
}

fn load<M: Access, A: Addressing, const SIZE: usize, const ALIGNED: bool>(
    cpu: &mut Cpu,
    m: &mut M,
    op: &Op<M>,
) -> Outcome {
    let at = address::<M, A, SIZE, ALIGNED>(cpu, op, Use::Read)?;
    let bytes: [u8; SIZE] = m.load_array(cpu, at)?;
    let register = &mut cpu.fpu.vectors[usize::from(op.r1 & 31)];
    for (i, quadword) in register.iter_mut().enumerate() {
        *quadword = if i < SIZE / 8 { u64::get(&bytes, i) } else { 0 };
    }
    Ok(())
}

fn store<M: Access, A: Addressing, const SIZE: usize, const ALIGNED: bool>(
    cpu: &mut Cpu,
    m: &mut M,
    op: &Op<M>,
) -> Outcome {
    let at = address::<M, A, SIZE, ALIGNED>(cpu, op, Use::Write)?;
    let register = &cpu.fpu.vectors[usize::from(op.r1 & 31)];
    let mut bytes = [0; SIZE];
    for (part, quadword) in bytes.chunks_exact_mut(8).zip(register) {
        part.copy_from_slice(&quadword.to_le_bytes());
    }
    m.store_bytes(cpu, at, &bytes)
}

#[inline(always)]
fn set_low(cpu: &mut Cpu, register: u8, value: u64) {
    let vector: Vector = [value, 0, 0, 0, 0, 0, 0, 0];
    cpu.fpu.vectors[usize::from(register & 31)] = vector;
}

fn low_register<M: Access>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    available::avx(cpu)?;
    set_low(cpu, op.r1, cpu.fpu.xmm_low(op.r2));
    Ok(())
}

fn from_general<M: Access, T: Word>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    available::avx(cpu)?;
    set_low(cpu, op.r1, cpu.gpr.read::<T>(op.r2));
    Ok(())
}

fn to_general<M: Access, T: Word>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    available::avx(cpu)?;
    cpu.gpr.write::<T>(op.r1, cpu.fpu.xmm_low(op.r2));
    Ok(())
}

fn load_low<M: Access, A: Addressing, T: Word>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    available::avx(cpu)?;
    let at = A::linear(cpu, op, T::SIZE as u64, Use::Read)?;
    let value = m.load::<T>(cpu, at)?.zero_extend();
    set_low(cpu, op.r1, value);
    Ok(())
}

fn store_low<M: Access, A: Addressing, T: Word>(cpu: &mut Cpu, m: &mut M, op: &Op<M>) -> Outcome {
    available::avx(cpu)?;
    let at = A::linear(cpu, op, T::SIZE as u64, Use::Write)?;
    m.store(cpu, at, T::truncate(cpu.fpu.xmm_low(op.r1)))
}

/// VZEROUPPER and VZEROALL: all quadwords from this one on, of the registers that the mode has and VEX can name.
fn clear_from(cpu: &mut Cpu, quadword: usize) -> Outcome {
    available::avx(cpu)?;
    let count = if cpu.view.is_long() { 16 } else { 8 };
    for vector in &mut cpu.fpu.vectors[..count] {
        vector[quadword..].fill(0);
    }
    Ok(())
}

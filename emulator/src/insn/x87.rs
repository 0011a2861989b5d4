//! x87 floating point.
//!
//! Instructions that compute or move registers run on the host, on the guest's own x87 state (see
//! [`native`](crate::native)): results, tags, condition codes, stack faults and the responses to masked and
//! unmasked exceptions are the processor's. Control instructions are in `control`, the layouts of what they store in
//! `environment`.

mod control;
mod environment;
mod rows;

use crate::access::{Access, Linear, Outcome, Stop};
use crate::cpu::fpu::status::{IE, OE, UE};
use crate::cpu::{Cpu, Seg};
use crate::native::x87::{self as host, Image, Operand};
use crate::op::Op;
use crate::operand::{Addressing, General, Use, effective_address, of_fields};
use crate::table::Table;

use super::available;
use environment::Layout;

pub(super) fn fill<M: Access>(table: &mut Table<M>) {
    control::fill(table);
    rows::fill(table);
}

fn image(cpu: &Cpu) -> Image {
    let head: [u8; 28] = environment::pack(&cpu.fpu, Layout::Protected);
    let mut image = [0; 108];
    image[..28].copy_from_slice(&head);
    environment::pack_registers(&cpu.fpu, &mut image[28..]);
    image
}

/// Takes over the state after an instruction. The control word is not among what these instructions change.
fn commit(cpu: &mut Cpu, image: &Image) {
    cpu.fpu.status = u16::from_le_bytes([image[4], image[5]]);
    cpu.fpu.set_full_tags(u16::from_le_bytes([image[8], image[9]]));
    environment::unpack_registers(&mut cpu.fpu, &image[28..]);
    cpu.fpu.update_summary();
}

/// Updates the exception pointers to this instruction.
fn point<M>(cpu: &mut Cpu, op: &Op<M>) {
    cpu.fpu.ip = cpu.truncate_ip(op.ip(cpu));
    cpu.fpu.cs = cpu.segments[Seg::Cs].selector;
    cpu.fpu.opcode = op.imm as u16 & 0x7ff;
}

/// Updates the pointers to this instruction and its memory operand.
fn point_at_data<M>(cpu: &mut Cpu, op: &Op<M>) {
    point(cpu, op);
    cpu.fpu.dp = effective_address(cpu, op);
    cpu.fpu.ds = cpu.segments[Seg::from_number(op.seg())].selector;
}

/// An instruction without operands.
fn plain<M: Access, const OPCODE: u8, const MODRM: u8>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    available::x87(cpu)?;
    let mut image = image(cpu);
    host::plain::<OPCODE, MODRM>(&mut image);
    commit(cpu, &image);
    point(cpu, op);
    Ok(())
}

/// An instruction on ST(i). One of its operands is ST(0), so the other's number is the sum.
fn register<M: Access, const OPCODE: u8, const MODRM: u8>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    available::x87(cpu)?;
    let mut image = image(cpu);
    // FCMOVcc looks at the flags.
    host::register::<OPCODE, MODRM>(&mut image, op.r1 | op.r2, cpu.flags.status() as u8);
    commit(cpu, &image);
    point(cpu, op);
    Ok(())
}

/// FCOMI and its kin, which leave their outcome in RFLAGS.
fn compare<M: Access, const OPCODE: u8, const MODRM: u8>(cpu: &mut Cpu, _: &mut M, op: &Op<M>) -> Outcome {
    available::x87(cpu)?;
    let mut image = image(cpu);
    let flags = host::register::<OPCODE, MODRM>(&mut image, op.r1 | op.r2, 0);
    commit(cpu, &image);
    point(cpu, op);
    // OF, which LAHF does not see, is cleared with SF and AF (the processor at hand does; SDM Vol. 2 clears OF and SF).
    cpu.flags.set_status(u64::from(flags));
    Ok(())
}

/// The address of a memory operand. Those of 10 bytes are two fields, the first of 8.
fn address<M: Access, const SIZE: u64>(cpu: &Cpu, m: &mut M, op: &Op<M>, usage: Use) -> Result<Linear, Stop> {
    match SIZE {
        10 => of_fields(cpu, m, op, 8, SIZE, usage),
        _ => General::linear(cpu, op, SIZE, usage),
    }
}

/// A memory operand of 2, 4, 8 or 10 bytes.
fn operand<M: Access, const SIZE: u64>(cpu: &Cpu, m: &mut M, op: &Op<M>) -> Result<Operand, Stop> {
    let at = address::<M, SIZE>(cpu, m, op, Use::Read)?;
    let mut operand = [0; 16];
    match SIZE {
        2 => operand[..2].copy_from_slice(&m.load::<u16>(cpu, at)?.to_le_bytes()),
        4 => operand[..4].copy_from_slice(&m.load::<u32>(cpu, at)?.to_le_bytes()),
        8 => operand[..8].copy_from_slice(&m.load::<u64>(cpu, at)?.to_le_bytes()),
        _ => m.load_bytes(cpu, at, &mut operand[..10])?,
    }
    Ok(operand)
}

/// An instruction that reads its memory operand.
fn load<M: Access, const OPCODE: u8, const DIGIT: u8, const SIZE: u64>(
    cpu: &mut Cpu,
    m: &mut M,
    op: &Op<M>,
) -> Outcome {
    available::x87(cpu)?;
    let mut operand = operand::<M, SIZE>(cpu, m, op)?;
    let mut image = image(cpu);
    host::memory::<OPCODE, DIGIT>(&mut image, &mut operand);
    commit(cpu, &image);
    point_at_data(cpu, op);
    Ok(())
}

/// An instruction that writes its memory operand. Invalid operation, overflow and underflow, if unmasked, keep it from
/// doing so (SDM Vol. 1, x87 Floating-Point Exception Conditions); inexact does not.
fn store<M: Access, const OPCODE: u8, const DIGIT: u8, const SIZE: u64>(
    cpu: &mut Cpu,
    m: &mut M,
    op: &Op<M>,
) -> Outcome {
    available::x87(cpu)?;
    let at = address::<M, SIZE>(cpu, m, op, Use::Write)?;
    let mut image = image(cpu);
    let mut operand = [0; 16];
    host::memory::<OPCODE, DIGIT>(&mut image, &mut operand);
    // Nothing unmasked was pending before, unless CR0.NE is clear; then the host has run with everything masked.
    let status = u16::from_le_bytes([image[4], image[5]]);
    let ran_under = u16::from_le_bytes([image[0], image[1]]);
    if status & !ran_under & (IE | OE | UE) == 0 {
        let [b0, b1, b2, b3, b4, b5, b6, b7, ..] = operand;
        match SIZE {
            2 => m.store(cpu, at, u16::from_le_bytes([b0, b1]))?,
            4 => m.store(cpu, at, u32::from_le_bytes([b0, b1, b2, b3]))?,
            8 => m.store(cpu, at, u64::from_le_bytes([b0, b1, b2, b3, b4, b5, b6, b7]))?,
            _ => m.store_bytes(cpu, at, &operand[..10])?,
        }
    } else {
        // The page is looked at all the same, and its fault comes first.
        m.check_write(cpu, at, SIZE)?;
    }
    commit(cpu, &image);
    point_at_data(cpu, op);
    Ok(())
}

//! From instruction bytes to [`Op`]s.

use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction, OpKind, Register};

use crate::access::{Access, Stop};
use crate::cpu::{CodeSize, Cpu, gpr};
use crate::event::Exception;
use crate::op::{Attr, Op};
use crate::table::{Flow, Table};

/// Processor-specific decoding, as the modelled processor (AMD) does it; and encodings of features that are not
/// announced, as they were before: hints (0F 0D and 0F 18 to 0F 1F) do nothing, TZCNT and LZCNT are BSF and BSR.
const OPTIONS: u32 = DecoderOptions::AMD
    | DecoderOptions::FORCE_RESERVED_NOP
    | DecoderOptions::NO_MPFX_0FBC
    | DecoderOptions::NO_MPFX_0FBD;

/// Bytes that an instruction can have.
const LONGEST: usize = 15;

/// One decoded instruction.
pub struct Decoded<M: 'static> {
    /// What to execute.
    pub op: Op<M>,
    /// How control continues.
    pub flow: Flow,
}

/// Why there is no instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Incomplete {
    /// The bytes end before the instruction does.
    MoreBytes,
}

/// Decodes the instruction at the start of `bytes`, which lies `off` bytes into its block.
///
/// An instruction that is invalid, unknown or not announced becomes one that raises #UD; one that is too long, #GP(0).
///
/// # Errors
/// [`Incomplete`] if the bytes end before the instruction does.
pub fn decode<M: Access>(table: &Table<M>, code: CodeSize, bytes: &[u8], off: u8) -> Result<Decoded<M>, Incomplete> {
    let mut decoder = Decoder::with_ip(code.bits(), bytes, u64::from(off), OPTIONS);
    let mut instruction = Instruction::default();
    decoder.decode_out(&mut instruction);
    if instruction.is_invalid() && decoder.last_error() == DecoderError::NoMoreBytes && bytes.len() < LONGEST {
        return Err(Incomplete::MoreBytes);
    }
    let form = if instruction.is_invalid() {
        None
    } else {
        table.form(instruction.code())
    };
    let Some(form) = form else {
        // The decoder stops behind the 15th byte and does not tell an instruction that would go on from an undefined
        // one that ends there; nobody writes the latter.
        let is_too_long = instruction.is_invalid() && instruction.len() == LONGEST;
        let op = Op {
            run: if is_too_long { too_long } else { undefined },
            len: instruction.len().clamp(1, 15) as u8,
            off,
            ..blank()
        };
        return Ok(Decoded { op, flow: Flow::End });
    };
    let mut op = lower(&instruction, code, bytes, off);
    op.run = if !has_memory_operand(&instruction) {
        form.register
    } else if code == CodeSize::Bits64 && op.attr.address_mask() == u64::MAX {
        form.flat
    } else {
        form.memory
    };
    Ok(Decoded { op, flow: form.flow })
}

fn undefined<M>(_: &mut Cpu, _: &mut M, _: &Op<M>) -> Result<(), Stop> {
    Err(Exception::ud().into())
}

/// An instruction that does not end within its 15 bytes (AMD64 APM Vol. 2, General-Protection Exception).
fn too_long<M>(_: &mut Cpu, _: &mut M, _: &Op<M>) -> Result<(), Stop> {
    Err(Exception::gp(0).into())
}

fn blank<M>() -> Op<M> {
    Op {
        run: undefined,
        imm: 0,
        disp: 0,
        base: gpr::ZERO,
        index: gpr::ZERO,
        seg_scale: 3 << 2,
        r1: 0,
        r2: 0,
        attr: Attr::default(),
        len: 0,
        off: 0,
    }
}

fn has_memory_operand(instruction: &Instruction) -> bool {
    instruction.op_kinds().any(|kind| {
        matches!(
            kind,
            OpKind::Memory
                | OpKind::MemorySegSI
                | OpKind::MemorySegESI
                | OpKind::MemorySegRSI
                | OpKind::MemorySegDI
                | OpKind::MemorySegEDI
                | OpKind::MemorySegRDI
                | OpKind::MemoryESDI
                | OpKind::MemoryESEDI
                | OpKind::MemoryESRDI
        )
    })
}

/// Fills the operand fields; see [`Op`].
fn lower<M>(instruction: &Instruction, code: CodeSize, bytes: &[u8], off: u8) -> Op<M> {
    let mut op = Op {
        attr: attributes(instruction, code, bytes),
        len: instruction.len() as u8,
        off,
        ..blank()
    };
    let mut registers = [0; 2];
    let mut count = 0;
    for (i, kind) in instruction.op_kinds().enumerate() {
        let i = i as u32;
        match kind {
            OpKind::Register if count < registers.len() => {
                registers[count] = number(instruction.op_register(i));
                count += 1;
            }
            OpKind::Register => {}
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
                op.imm = instruction.near_branch_target();
            }
            OpKind::FarBranch16 => {
                op.imm = u64::from(instruction.far_branch16());
                op.disp = u64::from(instruction.far_branch_selector());
            }
            OpKind::FarBranch32 => {
                op.imm = u64::from(instruction.far_branch32());
                op.disp = u64::from(instruction.far_branch_selector());
            }
            OpKind::Immediate8_2nd => op.disp = u64::from(instruction.immediate8_2nd()),
            OpKind::Memory => {
                op.disp = instruction.memory_displacement64();
                op.base = match instruction.memory_base() {
                    Register::None => gpr::ZERO,
                    Register::RIP | Register::EIP => gpr::BLOCK_IP,
                    register => number(register),
                };
                op.index = match instruction.memory_index() {
                    register if register.is_gpr() && !register.is_gpr8() => number(register),
                    _ => gpr::ZERO,
                };
                let scale = instruction.memory_index_scale().trailing_zeros() as u8;
                op.seg_scale = segment(instruction) << 2 | scale;
            }
            OpKind::MemoryESDI | OpKind::MemoryESEDI | OpKind::MemoryESRDI => {}
            OpKind::MemorySegSI
            | OpKind::MemorySegESI
            | OpKind::MemorySegRSI
            | OpKind::MemorySegDI
            | OpKind::MemorySegEDI
            | OpKind::MemorySegRDI => op.seg_scale = segment(instruction) << 2,
            _ => op.imm = instruction.immediate(i),
        }
    }
    [op.r1, op.r2] = registers;
    if let Some(opcode) = x87_opcode(instruction, bytes) {
        op.imm = opcode;
    }
    op
}

/// The opcode that the x87 state remembers: the low bits of the escape byte and the ModR/M byte. x87 instructions have
/// no immediate that could be in its way.
fn x87_opcode(instruction: &Instruction, bytes: &[u8]) -> Option<u64> {
    let is_prefix =
        |byte: u8| matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x40..=0x4f | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3);
    let at = bytes[..instruction.len()].iter().position(|byte| !is_prefix(*byte))?;
    match bytes[at..] {
        [escape @ 0xd8..=0xdf, modrm, ..] => Some(u64::from(escape & 7) << 8 | u64::from(modrm)),
        _ => None,
    }
}

fn segment(instruction: &Instruction) -> u8 {
    number(instruction.memory_segment())
}

/// A register as instructions number it; AH, CH, DH and BH as [`gpr::HIGH`] says.
fn number(register: Register) -> u8 {
    match register {
        Register::AH | Register::CH | Register::DH | Register::BH => (register as u8 - Register::AH as u8) + gpr::HIGH,
        register if register.is_gpr() => register.full_register().number() as u8,
        register => register.number() as u8,
    }
}

/// Prefixes and sizes, read off the bytes: the decoder folds them into its encodings.
fn attributes(instruction: &Instruction, code: CodeSize, bytes: &[u8]) -> Attr {
    let (mut operand, mut address, mut wide) = (false, false, false);
    for byte in bytes {
        match byte {
            0x66 => operand = true,
            0x67 => address = true,
            0xf0 | 0xf2 | 0xf3 | 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 => {}
            0x40..=0x4f if code == CodeSize::Bits64 => {
                // A REX prefix that another prefix follows counts for nothing; the last one is before the opcode.
                wide = byte & 8 != 0;
                continue;
            }
            _ => break,
        }
        wide = false;
    }
    let address_size = match (code, address) {
        (CodeSize::Bits16, false) | (CodeSize::Bits32, true) => 2,
        (CodeSize::Bits32, false) | (CodeSize::Bits16 | CodeSize::Bits64, true) => 4,
        (CodeSize::Bits64, false) => 8,
    };
    let mut flags = 0;
    if wide {
        flags |= Attr::OPERAND_64;
    } else if operand != (code == CodeSize::Bits16) {
        flags |= Attr::OPERAND_16;
    }
    if instruction.has_repne_prefix() {
        flags |= Attr::REPNE;
    } else if instruction.has_rep_prefix() {
        flags |= Attr::REP;
    }
    if instruction.has_lock_prefix() {
        flags |= Attr::LOCK;
    }
    Attr::new(address_size, flags)
}

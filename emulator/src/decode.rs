//! From instruction bytes to [`Op`]s.

mod undefined;

use iced_x86::{
    Code, Decoder, DecoderError, DecoderOptions, EncodingKind, Instruction, Mnemonic, OpKind, Register, RoundingControl,
};

use crate::access::{Access, Stop};
use crate::cpu::{CodeSize, Cpu, Seg, gpr};
use crate::elsewhere::Elsewhere;
use crate::event::Exception;
use crate::op::vex::Extra;
use crate::op::{Attr, Op};
use crate::table::{Flow, Form, Table};

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
/// One that is executed `elsewhere` becomes one that says so.
///
/// # Errors
/// [`Incomplete`] if the bytes end before the instruction does.
pub fn decode<M: Access>(
    elsewhere: Option<Elsewhere>,
    table: &Table<M>,
    code: CodeSize,
    bytes: &[u8],
    off: u8,
) -> Result<Decoded<M>, Incomplete> {
    let mut decoder = Decoder::with_ip(code.bits(), bytes, u64::from(off), table.options);
    let mut instruction = Instruction::default();
    decoder.decode_out(&mut instruction);
    // The end of what is undefined must be fetched, too. The decoder cannot tell it: where it knows of no instruction, it may
    // ask for more bytes than there would be, or for fewer.
    let is_evex = instruction.is_invalid() && table.has_evex && undefined::begins_evex(code, bytes);
    let is_truncated = if is_evex {
        decoder.last_error() == DecoderError::NoMoreBytes
    } else {
        (instruction.is_invalid() || is_foreign(&instruction, table)) && undefined::length(code, bytes) > bytes.len()
    };
    if is_truncated && bytes.len() < LONGEST {
        return Err(Incomplete::MoreBytes);
    }
    if instruction.code() == Code::Pause
        && let Some(exchange) = exchange(code, &bytes[..instruction.len()])
    {
        instruction = exchange;
    }
    let form = form(table, &instruction, code, &bytes[..instruction.len()]);
    if let Some(elsewhere) = elsewhere
        && (form.is_none() || elsewhere.leaves(&instruction))
    {
        let op = Op {
            run: left,
            len: instruction.len().clamp(1, 15) as u8,
            off,
            ..blank()
        };
        return Ok(Decoded { op, flow: Flow::End });
    }
    let Some(form) = form else {
        // An instruction that would go on behind the 15th byte.
        let is_too_long = is_truncated;
        let op = Op {
            run: if is_too_long { too_long } else { undefined },
            len: instruction.len().clamp(1, 15) as u8,
            off,
            ..blank()
        };
        return Ok(Decoded { op, flow: Flow::End });
    };
    let mut op = lower(&instruction, code, bytes, off);
    if has_vex(&instruction) {
        op.set_form(form.number);
    }
    op.run = if !has_memory_operand(&instruction) {
        form.register
    } else if code == CodeSize::Bits64 && op.attr.address_mask() == u64::MAX {
        form.flat
    } else {
        form.memory
    };
    Ok(Decoded { op, flow: form.flow })
}

/// How an instruction, of these bytes, is executed; `None` if it is undefined.
pub(crate) fn form<'a, M: Access>(
    table: &'a Table<M>,
    instruction: &Instruction,
    code: CodeSize,
    bytes: &[u8],
) -> Option<&'a Form<M>> {
    let is_undefined = instruction.is_invalid() || has_wide_element(instruction, code, bytes);
    table.form(instruction.code()).filter(|_| !is_undefined)
}

/// VPINSRD and VPEXTRD with VEX.W, which make them VPINSRQ and VPEXTRQ, outside 64-bit mode.
fn has_wide_element(instruction: &Instruction, code: CodeSize, bytes: &[u8]) -> bool {
    let is_element = matches!(
        instruction.code(),
        Code::VEX_Vpinsrd_xmm_xmm_rm32_imm8 | Code::VEX_Vpextrd_rm32_xmm_imm8
    );
    let prefix = bytes.iter().position(|byte| *byte == 0xc4);
    is_element
        && code != CodeSize::Bits64
        && prefix.is_some_and(|at| bytes.get(at + 2).is_some_and(|byte| byte & 0x80 != 0))
}

/// What F3 90 is with REX.B: no PAUSE, but an XCHG of R8 and RAX that has a prefix too many.
#[cold]
fn exchange(code: CodeSize, bytes: &[u8]) -> Option<Instruction> {
    let rex = bytes[bytes.len().checked_sub(2)?];
    if code != CodeSize::Bits64 || rex & 0xf1 != 0x41 {
        return None;
    }
    let mut plain = [0; LONGEST];
    for (to, from) in plain.iter_mut().zip(bytes) {
        *to = if *from == 0xf3 { 0x3e } else { *from };
    }
    Some(Decoder::with_ip(64, &plain[..bytes.len()], 0, DecoderOptions::AMD).decode())
}

/// What the decoder knows and the processor does not: an encoding with a prefix that is not there.
fn is_foreign<M: Access>(instruction: &Instruction, table: &Table<M>) -> bool {
    let encoding = instruction.code().encoding();
    encoding == EncodingKind::EVEX && !table.has_evex || matches!(instruction.mnemonic(), Mnemonic::Ud0 | Mnemonic::Ud1)
}

fn undefined<M>(_: &mut Cpu, _: &mut M, _: &Op<M>) -> Result<(), Stop> {
    Err(Exception::ud().into())
}

/// An instruction that somebody else executes.
fn left<M>(_: &mut Cpu, _: &mut M, _: &Op<M>) -> Result<(), Stop> {
    Err(Stop::Elsewhere)
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

/// The encoding has a VEX or EVEX prefix.
fn has_vex(instruction: &Instruction) -> bool {
    matches!(instruction.code().encoding(), EncodingKind::VEX | EncodingKind::EVEX)
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
    let mut registers = [0; 3];
    let mut count = 0;
    for (i, kind) in instruction.op_kinds().enumerate() {
        let i = i as u32;
        match kind {
            // The fourth operand is never the third register.
            OpKind::Register if count < registers.len() && i < 3 => {
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
                op.seg_scale = segment(instruction, code) << 2 | scale;
            }
            OpKind::MemoryESDI | OpKind::MemoryESEDI | OpKind::MemoryESRDI => {}
            OpKind::MemorySegSI
            | OpKind::MemorySegESI
            | OpKind::MemorySegRSI
            | OpKind::MemorySegDI
            | OpKind::MemorySegEDI
            | OpKind::MemorySegRDI => op.seg_scale = segment(instruction, code) << 2,
            _ => op.imm = instruction.immediate(i),
        }
    }
    [op.r1, op.r2, _] = registers;
    if has_vex(instruction) {
        op.imm = extra(instruction, op.imm as u8, registers[2]).bits();
    }
    if let Some(opcode) = x87_opcode(instruction, bytes) {
        op.imm = opcode;
    }
    op
}

/// What a VEX or EVEX prefix says beyond [`Op`]'s fields.
fn extra(instruction: &Instruction, imm8: u8, r3: u8) -> Extra {
    let fourth = match instruction.memory_index() {
        index if index.is_vector_register() => number(index),
        _ if instruction.op_count() > 3 && instruction.op3_kind() == OpKind::Register => {
            number(instruction.op3_register())
        }
        _ => 0,
    };
    let rounding = match instruction.rounding_control() {
        RoundingControl::None => None,
        RoundingControl::RoundToNearest => Some(0),
        RoundingControl::RoundDown => Some(1),
        RoundingControl::RoundUp => Some(2),
        RoundingControl::RoundTowardZero => Some(3),
    };
    Extra {
        imm8,
        r3,
        r4: fourth,
        opmask: number(instruction.op_mask()),
        zeroing: instruction.zeroing_masking(),
        broadcast: instruction.is_broadcast() || instruction.suppress_all_exceptions() || rounding.is_some(),
        rounding,
    }
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

/// The segment of a memory operand. In 64-bit mode the prefixes of ES, CS, SS and DS do nothing at all: the base register alone
/// tells whether a non-canonical address is #SS.
fn segment(instruction: &Instruction, code: CodeSize) -> u8 {
    match (code, instruction.segment_prefix()) {
        (CodeSize::Bits64, Register::ES | Register::CS | Register::SS | Register::DS) => {
            match instruction.memory_base() {
                Register::RSP | Register::RBP | Register::ESP | Register::EBP => Seg::Ss as u8,
                _ => Seg::Ds as u8,
            }
        }
        _ => number(instruction.memory_segment()),
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fast::Fast;
    use crate::table::decoder_options;
    use iced_x86::code_asm::*;

    fn lowered(bytes: &[u8]) -> Op<Fast> {
        let instruction = Decoder::new(64, bytes, decoder_options(|_| true)).decode();
        assert!(!instruction.is_invalid());
        lower(&instruction, CodeSize::Bits64, bytes, 0)
    }

    fn assembled(write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Op<Fast> {
        let mut assembler = CodeAssembler::new(64).expect("64 bits");
        write(&mut assembler).expect("operands");
        lowered(&assembler.assemble(0).expect("an instruction"))
    }

    #[test]
    fn an_op_takes_half_a_cache_line() {
        assert_eq!(size_of::<Op<Fast>>(), 32);
    }

    #[test]
    fn registers_of_a_vex_instruction_come_in_the_order_of_its_operands() {
        let op = assembled(|a| a.vpaddd(ymm9, ymm10, ymm11));
        assert_eq!((op.r1, op.r2, op.r3()), (9, 10, 11));
        let op = assembled(|a| a.shlx(rax, rcx, r15));
        assert_eq!((op.r1, op.r2, op.r3()), (0, 1, 15));
        let op = assembled(|a| a.vblendvps(xmm1, xmm2, xmm3, xmm14));
        assert_eq!((op.r1, op.r2, op.r3(), op.r4()), (1, 2, 3, 14));
    }

    #[test]
    fn with_a_memory_operand_the_registers_move_up_but_for_the_fourth() {
        let op = assembled(|a| a.shlx(rax, qword_ptr(rbx + 8), r15));
        assert_eq!((op.r1, op.r2, op.base, op.disp), (0, 15, gpr::RBX, 8));
        let op = assembled(|a| a.vblendvps(xmm1, xmm2, xmmword_ptr(rbx), xmm14));
        assert_eq!((op.r1, op.r2, op.r3(), op.r4()), (1, 2, 0, 14));
        let op = assembled(|a| a.vpsrldq(ymm1, ymm2, 7));
        assert_eq!((op.r1, op.r2, op.imm8()), (1, 2, 7));
    }

    #[test]
    fn an_index_vector_is_the_fourth_register() {
        // vpgatherdd ymm1, [rbx + ymm12 * 4], ymm3
        let op = lowered(&[0xc4, 0xa2, 0x65, 0x90, 0x0c, 0xa3]);
        assert_eq!((op.r1, op.r2, op.r4(), op.index, op.scale()), (1, 3, 12, gpr::ZERO, 2));
    }

    #[test]
    fn an_evex_prefix_says_which_elements_are_selected_and_what_becomes_of_the_others() {
        let op = assembled(|a| a.vpaddd(zmm17.k5().z(), zmm18, zmm31));
        assert_eq!((op.r1, op.r2, op.r3()), (17, 18, 31));
        assert_eq!((op.opmask(), op.is_zeroing(), op.is_broadcast()), (5, true, false));
        let op = assembled(|a| a.vpaddd(zmm1.k2(), zmm2, dword_bcst(rbx)));
        assert_eq!((op.opmask(), op.is_zeroing(), op.is_broadcast()), (2, false, true));
        assert_eq!(op.rounding(), None);
    }

    #[test]
    fn an_evex_prefix_can_round_and_silence() {
        for (register, rounding) in [
            (zmm3.rn_sae(), 0),
            (zmm3.rd_sae(), 1),
            (zmm3.ru_sae(), 2),
            (zmm3.rz_sae(), 3),
        ] {
            let op = assembled(|a| a.vaddps(zmm1, zmm2, register));
            assert_eq!((op.rounding(), op.is_broadcast()), (Some(rounding), true));
        }
        let op = assembled(|a| a.vmaxps(zmm1, zmm2, zmm3.sae()));
        assert_eq!((op.rounding(), op.is_broadcast()), (None, true));
    }

    #[test]
    fn the_displacement_of_an_evex_instruction_is_that_of_its_operand_not_of_its_bytes() {
        let op = assembled(|a| a.vpaddd(zmm1, zmm2, zmmword_ptr(rbx + 0x40)));
        assert_eq!((op.len, op.disp), (7, 0x40));
    }

    #[test]
    fn lock_66_f2_f3_and_rex_are_invalid_before_vex_and_evex() {
        for prefix in [0xf0, 0x66, 0xf2, 0xf3, 0x40] {
            for instruction in [
                &[0xc5, 0xf1, 0xfe, 0xc2][..],
                &[0xc4, 0xe1, 0x71, 0xfe, 0xc2],
                &[0x62, 0xf1, 0x75, 0x08, 0xfe, 0xc2],
            ] {
                assert!(
                    !Decoder::new(64, instruction, decoder_options(|_| true))
                        .decode()
                        .is_invalid()
                );
                let bytes = [&[prefix], instruction].concat();
                assert!(
                    Decoder::new(64, &bytes, decoder_options(|_| true))
                        .decode()
                        .is_invalid(),
                    "{bytes:02x?}"
                );
            }
        }
    }
}

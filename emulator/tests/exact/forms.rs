//! Every instruction form that the emulator knows, as bytes: found by decoding, so that none is forgotten.
//!
//! A form is an encoding (iced-x86 `Code`) in 64-, 32- or 16-bit code, with its r/m operand in memory or in a register, and
//! with LOCK or a repeat prefix where those mean something. Memory operands are at BX (16-bit code: `[bx]`), string ones
//! where string instructions have them.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, OpCodeOperandKind, OpKind};
use reprise_emulator::careful::Careful;
use reprise_emulator::model;
use reprise_emulator::table::{Table, decoder_options};

use crate::layout::{CODE, HANDLERS, M, Mode, gpa};

/// Prefixes that make another instruction of the same encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Prefix {
    None,
    Rep,
    Repne,
    Lock,
}

/// An instruction form and an instance of it.
#[derive(Debug, Clone)]
pub struct Form {
    pub bits: u32,
    pub code: Code,
    /// The r/m operand, or a string's, is in memory.
    pub memory: bool,
    pub prefix: Prefix,
    /// The instruction, without what follows it.
    pub bytes: Vec<u8>,
    /// Bytes of the memory operand; 0 if it is of no fixed size, or there is none.
    pub size: usize,
}

impl std::fmt::Display for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let place = if self.memory { "memory" } else { "register" };
        write!(
            f,
            "{:?} {:?} ({place}, {} bits) {:02x?}",
            self.code, self.prefix, self.bits, self.bytes
        )
    }
}

/// As the emulator's own decoder.
fn options() -> u32 {
    decoder_options(model::executes)
}

/// What the emulator executes.
pub fn supported() -> &'static [Code] {
    static SUPPORTED: OnceLock<Vec<Code>> = OnceLock::new();
    SUPPORTED.get_or_init(|| {
        let table = Table::<Careful>::new(model::executes);
        Code::values().filter(|code| table.form(*code).is_some()).collect()
    })
}

/// An instruction, and what another decoder makes of it.
pub type Shadowed = (Code, Code);

/// Encodings that the emulator's decoder reads as others, as the modelled processor does: far pointers with 64 bits of
/// offset, hints of features that are not announced. Each with what it is read as.
pub fn shadowed() -> Vec<Shadowed> {
    let mut found = BTreeMap::new();
    for bits in [64, 32, 16] {
        templates(bits, |bytes| {
            let plain = Decoder::with_ip(bits, bytes, 0, DecoderOptions::NONE).decode().code();
            let ours = Decoder::with_ip(bits, bytes, 0, options()).decode().code();
            if plain != ours {
                found.entry(plain as usize).or_insert((plain, ours));
            }
        });
    }
    found.into_values().collect()
}

/// All forms.
pub fn forms() -> &'static [Form] {
    static FORMS: OnceLock<Vec<Form>> = OnceLock::new();
    FORMS.get_or_init(|| {
        let mut found = BTreeMap::new();
        let mut is_supported = vec![false; Code::values().len()];
        for code in supported() {
            is_supported[*code as usize] = true;
        }
        for bits in [64, 32, 16] {
            templates(bits, |bytes| {
                let mut decoder = Decoder::with_ip(bits, bytes, 0, options());
                let instruction = decoder.decode();
                if instruction.is_invalid() || !is_supported[instruction.code() as usize] {
                    return;
                }
                let Some(prefix) = prefix(&instruction, bytes) else {
                    return;
                };
                let memory = has_memory_operand(&instruction);
                let key = (bits, instruction.code() as usize, memory, prefix);
                found.entry(key).or_insert_with(|| {
                    let mut bytes = bytes[..instruction.len()].to_vec();
                    let constants = decoder.get_constant_offsets(&instruction);
                    aim(&instruction, &constants, bits, &mut bytes);
                    Form {
                        bits,
                        code: instruction.code(),
                        memory,
                        prefix,
                        bytes,
                        size: if memory { instruction.memory_size().size() } else { 0 },
                    }
                });
            });
        }
        found.into_values().collect()
    })
}

/// Calls `with` for every opcode with all prefixes that select one: first those without ModR/M byte, then with some of them.
fn templates(bits: u32, mut with: impl FnMut(&[u8])) {
    let base = if bits == 16 { 7 } else { 3 };
    // An operand at BX; CX as first choice of a register; then all others, which some opcodes are told apart by.
    let mut modrms: Vec<u8> = (0..8).map(|reg| reg << 3 | base).collect();
    for rm in [1, 0, 2, 3, 4, 5, 6, 7] {
        modrms.extend([1, 0, 2, 3, 4, 5, 6, 7].map(|reg| 0xc0 | reg << 3 | rm));
    }
    if bits != 16 {
        extended_templates(&mut with);
    }
    opcodes(bits, |opcode| {
        let bytes = [opcode, &CONSTANT].concat();
        let one = Decoder::with_ip(bits, &bytes, 0, options()).decode();
        let other = [opcode, &[0xc1], &CONSTANT[1..]].concat();
        let other = Decoder::with_ip(bits, &other, 0, options()).decode();
        // A ModR/M byte of 05 and one of C1 mean different things.
        if one.code() == other.code() && one.len() == other.len() && one.op_kinds().eq(other.op_kinds()) {
            with(&bytes);
        }
    });
    opcodes(bits, |opcode| {
        for modrm in &modrms {
            with(&[opcode, &[*modrm], &CONSTANT].concat());
        }
    });
}

/// Calls `with` for every opcode with a VEX or EVEX prefix, of the latter with an opmask if one may be there; CX, BX and
/// XMM2 as above, and the first source is register 0. The 16-bit modes of this world do not have them.
fn extended_templates(mut with: impl FnMut(&[u8])) {
    let mut vex = Vec::new();
    for (map, pp, wide, length) in iproduct(3, 4, 2, 2) {
        vex.push(vec![0xc4, 0xe1 + map, wide << 7 | 0x78 | length << 2 | pp]);
    }
    for (map, pp, wide, length) in iproduct(3, 4, 2, 3) {
        for opmask in [1, 0] {
            vex.push(vec![0x62, 0xf1 + map, wide << 7 | 0x7c | pp, length << 5 | 8 | opmask]);
        }
    }
    for prefix in vex {
        let mut bytes = prefix.clone();
        bytes.resize(prefix.len() + 12, 0);
        for opcode in 0..=255 {
            for reg in 0..8 {
                for rest in [[reg << 3 | 3, 5, 0], [0xc1 | reg << 3, 5, 0], [4 | reg << 3, 0x13, 5]] {
                    bytes[prefix.len()] = opcode;
                    bytes[prefix.len() + 1..prefix.len() + 4].copy_from_slice(&rest);
                    with(&bytes);
                }
            }
        }
    }
}

/// All combinations of numbers below these.
fn iproduct(a: u8, b: u8, c: u8, d: u8) -> impl Iterator<Item = (u8, u8, u8, u8)> {
    (0..a).flat_map(move |i| (0..b).flat_map(move |j| (0..c).flat_map(move |k| (0..d).map(move |l| (i, j, k, l)))))
}

/// Immediates, distances and displacements: 5.
const CONSTANT: [u8; 10] = [0x05, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Calls `with` for every opcode, with its prefixes.
fn opcodes(bits: u32, mut with: impl FnMut(&[u8])) {
    let maps: [&[u8]; 4] = [&[], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]];
    let sizes: [&[u8]; 4] = [&[], &[0x66], &[0x67], &[0x66, 0x67]];
    let prefixes: [&[u8]; 4] = [&[], &[0xf3], &[0xf2], &[0xf0]];
    let wides: &[&[u8]] = if bits == 64 { &[&[], &[0x48]] } else { &[&[]] };
    for map in maps {
        for size in sizes {
            for prefix in prefixes {
                for wide in wides {
                    for opcode in 0..=255u8 {
                        let is_prefix = match opcode {
                            0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3 | 0x0f => true,
                            0x40..=0x4f => bits == 64,
                            _ => false,
                        };
                        if !(map.is_empty() && is_prefix) {
                            with(&[size, prefix, wide, map, &[opcode]].concat());
                        }
                    }
                }
            }
        }
    }
}

/// The prefix that makes this a form of its own; `None` if it is there and means nothing.
fn prefix(instruction: &Instruction, bytes: &[u8]) -> Option<Prefix> {
    let string = instruction.is_string_instruction();
    let before = bytes
        .iter()
        .take_while(|byte| matches!(byte, 0x66 | 0x67 | 0xf0 | 0xf2 | 0xf3));
    let has = before.copied().find(|byte| *byte >= 0xf0);
    match has {
        Some(0xf0) => Some(Prefix::Lock),
        Some(0xf3) if string => Some(Prefix::Rep),
        Some(0xf2) if string => Some(Prefix::Repne),
        // Part of the opcode, or of no effect.
        _ => Some(Prefix::None),
    }
}

fn has_memory_operand(instruction: &Instruction) -> bool {
    instruction.op_kinds().any(|kind| {
        !matches!(
            kind,
            OpKind::Register
                | OpKind::NearBranch16
                | OpKind::NearBranch32
                | OpKind::NearBranch64
                | OpKind::FarBranch16
                | OpKind::FarBranch32
                | OpKind::Immediate8
                | OpKind::Immediate8_2nd
                | OpKind::Immediate16
                | OpKind::Immediate32
                | OpKind::Immediate64
                | OpKind::Immediate8to16
                | OpKind::Immediate8to32
                | OpKind::Immediate8to64
                | OpKind::Immediate32to64
        )
    })
}

/// Makes constants of the instruction lead somewhere.
fn aim(instruction: &Instruction, constants: &iced_x86::ConstantOffsets, bits: u32, bytes: &mut [u8]) {
    let kinds = instruction.code().op_code().op_kinds();
    let mut put =
        |at: usize, size: usize, value: u64| bytes[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
    if kinds.contains(&OpCodeOperandKind::mem_offs) {
        let at = if bits == 16 { 0x100 } else { M + 0x100 };
        put(constants.displacement_offset(), constants.displacement_size(), at);
    }
    if matches!(instruction.op0_kind(), OpKind::FarBranch16 | OpKind::FarBranch32) {
        let (offset, selector) = match (bits, instruction.op0_kind()) {
            (16, _) => (0x100, gpa(Mode::Real, CODE) >> 4),
            // Sixteen bits of offset reach no handler; the limit check is what there is to see.
            (_, OpKind::FarBranch16) => (0x100, 0x08),
            _ => (HANDLERS, 0x08),
        };
        put(constants.immediate_offset(), constants.immediate_size(), offset);
        put(constants.immediate_offset2(), constants.immediate_size2(), selector);
    }
    if matches!(
        instruction.code(),
        Code::Enterw_imm16_imm8 | Code::Enterd_imm16_imm8 | Code::Enterq_imm16_imm8
    ) {
        put(constants.immediate_offset(), 2, 0x10);
        put(constants.immediate_offset2(), 1, 3);
    }
}

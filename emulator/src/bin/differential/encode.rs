//! Random bytes of one encoding: every addressing form, redundant prefixes, and sometimes something else altogether.

use iced_x86::{Code, EncodingKind, MandatoryPrefix, OpCodeInfo, OpCodeOperandKind, OpCodeTableKind};

use crate::dice::Dice;

/// Prefixes that say which segment.
const SEGMENTS: [u8; 6] = [0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65];

/// Bytes under construction.
#[derive(Debug, Clone, Copy, Default)]
pub struct Bytes {
    /// The bytes.
    pub bytes: [u8; 32],
    /// How many there are.
    pub length: usize,
}

impl Bytes {
    /// Adds a byte, if there is room.
    pub fn push(&mut self, byte: u8) {
        if self.length < self.bytes.len() {
            self.bytes[self.length] = byte;
            self.length += 1;
        }
    }
}

/// Bytes that are likely to be an instruction of `code`, with more random bytes behind them.
pub fn encode(dice: &mut Dice, code: Code, bits: u32) -> Bytes {
    let info = code.op_code();
    let mut bytes = Bytes::default();
    match info.encoding() {
        EncodingKind::VEX => vex(dice, &mut bytes, info, bits),
        _ => legacy(dice, &mut bytes, info, bits),
    }
    let op_code = info.op_code() | (u32::from(has_register_in_opcode(info)) * dice.below(8) as u32);
    if info.op_code_len() == 2 {
        bytes.push((op_code >> 8) as u8);
    }
    bytes.push(op_code as u8);
    if info.op_code_len() == 1 || info.is_group() {
        bytes.push(modrm(dice, info));
    }
    while bytes.length < 24 {
        // Small displacements and immediates, and any.
        let byte = match dice.below(8) {
            0 => 0,
            1 => 0xff,
            2 => dice.below(16) as u8,
            _ => dice.next() as u8,
        };
        bytes.push(byte);
    }
    if dice.percent(2) {
        let at = dice.below(8) as usize;
        bytes.bytes[at] = dice.next() as u8;
    }
    bytes
}

fn modrm(dice: &mut Dice, info: &OpCodeInfo) -> u8 {
    let mut modrm = dice.next() as u8;
    let memory_only = info.op_kinds().iter().any(|kind| {
        use OpCodeOperandKind::*;
        matches!(
            kind,
            mem | mem_mib | mem_vsib32x | mem_vsib32y | mem_vsib64x | mem_vsib64y
        )
    });
    if memory_only && modrm >= 0xc0 {
        modrm &= 0x3f | (dice.below(3) as u8) << 6;
    } else if !memory_only && dice.percent(30) {
        modrm |= 0xc0;
    }
    let vsib = info.op_kinds().iter().any(|kind| {
        use OpCodeOperandKind::*;
        matches!(kind, mem_vsib32x | mem_vsib32y | mem_vsib64x | mem_vsib64y)
    });
    if vsib {
        modrm = modrm & 0xf8 | 4;
    }
    if info.is_group() {
        modrm = modrm & !0x38 | (info.group_index() as u8) << 3;
    }
    if info.is_rm_group() {
        modrm = 0xc0 | modrm & 0x38 | info.rm_group_index() as u8;
    }
    modrm
}

fn has_register_in_opcode(info: &OpCodeInfo) -> bool {
    use OpCodeOperandKind::*;
    info.op_kinds()
        .iter()
        .any(|kind| matches!(kind, r8_opcode | r16_opcode | r32_opcode | r64_opcode | sti_opcode))
}

fn legacy(dice: &mut Dice, bytes: &mut Bytes, info: &OpCodeInfo, bits: u32) {
    let mut prefixes = Vec::new();
    let mandatory = match info.mandatory_prefix() {
        MandatoryPrefix::P66 => Some(0x66),
        MandatoryPrefix::PF3 => Some(0xf3),
        MandatoryPrefix::PF2 => Some(0xf2),
        _ => None,
    };
    prefixes.extend(mandatory);
    let default_size = if bits == 16 { 16 } else { 32 };
    let other_operand_size = matches!(info.operand_size(), 16 | 32) && info.operand_size() != default_size;
    let any_operand_size = info.mandatory_prefix() == MandatoryPrefix::None && info.operand_size() == 0;
    if other_operand_size || any_operand_size && dice.percent(10) {
        prefixes.push(0x66);
    }
    let other_address_size = info.address_size() != 0 && info.address_size() != bits;
    if other_address_size || info.address_size() == 0 && dice.percent(8) {
        prefixes.push(0x67);
    }
    if dice.percent(12) {
        prefixes.push(dice.pick(&SEGMENTS));
    }
    let repeats = info.can_use_rep_prefix() || info.can_use_repne_prefix();
    if dice.percent(if repeats { 60 } else { 2 }) {
        prefixes.push(dice.pick(&[0xf2, 0xf3]));
    }
    if dice.percent(if info.can_use_lock_prefix() { 25 } else { 1 }) {
        prefixes.push(0xf0);
    }
    if dice.percent(3) {
        prefixes.push(dice.pick(&[0x26, 0x36, 0x64, 0x66, 0x67, 0xf2, 0xf3]));
    }
    // In any order.
    while !prefixes.is_empty() {
        bytes.push(prefixes.swap_remove(dice.below(prefixes.len() as u64) as usize));
    }
    if bits == 64 {
        let needs_w = info.operand_size() == 64 && !info.default_op_size64();
        let mut rex = 0x40 | dice.below(8) as u8;
        if needs_w || info.operand_size() == 0 && dice.percent(30) || dice.percent(1) {
            rex |= 8;
        }
        if needs_w || dice.percent(50) {
            bytes.push(rex);
        }
    }
    match info.table() {
        OpCodeTableKind::T0F => bytes.push(0x0f),
        OpCodeTableKind::T0F38 => {
            bytes.push(0x0f);
            bytes.push(0x38);
        }
        OpCodeTableKind::T0F3A => {
            bytes.push(0x0f);
            bytes.push(0x3a);
        }
        _ => {}
    }
}

fn vex(dice: &mut Dice, bytes: &mut Bytes, info: &OpCodeInfo, bits: u32) {
    if dice.percent(10) {
        bytes.push(dice.pick(&SEGMENTS));
    }
    if dice.percent(6) {
        bytes.push(0x67);
    }
    if dice.percent(1) {
        bytes.push(dice.pick(&[0x66, 0xf2, 0xf3, 0xf0, 0x48]));
    }
    let pp = match info.mandatory_prefix() {
        MandatoryPrefix::P66 => 1,
        MandatoryPrefix::PF3 => 2,
        MandatoryPrefix::PF2 => 3,
        _ => 0,
    };
    let map = match info.table() {
        OpCodeTableKind::T0F38 => 2,
        OpCodeTableKind::T0F3A => 3,
        _ => 1,
    };
    let l = if info.is_lig() {
        dice.below(2) as u8
    } else {
        info.l() as u8
    };
    let w = if info.is_wig() || info.is_wig32() && bits == 32 || dice.percent(1) {
        dice.below(2) as u8
    } else {
        info.w() as u8
    };
    let uses_vvvv = info.op_kinds().iter().any(|kind| {
        use OpCodeOperandKind::*;
        matches!(kind, r32_vvvv | r64_vvvv | k_vvvv | xmm_vvvv | ymm_vvvv)
    });
    let vvvv = if uses_vvvv || dice.percent(1) {
        dice.below(16) as u8
    } else {
        15
    };
    // R, X and B are inverted; outside 64-bit mode the first two must be set, or it is another instruction.
    let rxb = if bits == 64 {
        dice.below(8) as u8
    } else {
        6 | dice.below(2) as u8
    };
    let vvvv = if bits == 64 { vvvv } else { vvvv | 8 };
    if map == 1 && w == 0 && dice.percent(60) {
        bytes.push(0xc5);
        bytes.push((rxb & 4) << 5 | vvvv << 3 | l << 2 | pp);
    } else {
        bytes.push(0xc4);
        bytes.push(rxb << 5 | map);
        bytes.push(w << 7 | vvvv << 3 | l << 2 | pp);
    }
}

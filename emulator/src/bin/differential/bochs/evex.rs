//! Random bytes of an encoding with an EVEX prefix (SDM Vol. 2, Intel AVX-512 Encoding).

use iced_x86::{Code, EncodingKind, MandatoryPrefix, OpCodeInfo, OpCodeOperandKind, OpCodeTableKind};

use crate::dice::Dice;
use crate::encode::{self, Bytes};

/// Bytes that are likely to be an instruction of `code`, with more random bytes behind them.
pub fn encode(dice: &mut Dice, code: Code) -> [u8; 32] {
    let info = code.op_code();
    if info.encoding() != EncodingKind::EVEX {
        return encode::encode(dice, code, 64).bytes;
    }
    let mut bytes = Bytes::default();
    if dice.percent(8) {
        bytes.push(dice.pick(&[0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65]));
    }
    if dice.percent(6) {
        bytes.push(0x67);
    }
    if dice.percent(1) {
        bytes.push(dice.pick(&[0x66, 0xf2, 0xf3, 0xf0, 0x48]));
    }
    let modrm = modrm(dice, info);
    prefix(dice, info, modrm, &mut bytes);
    bytes.push(info.op_code() as u8);
    bytes.push(modrm);
    while bytes.length < 28 {
        let byte = match dice.below(8) {
            0 => 0,
            1 => 0xff,
            2 => dice.below(16) as u8,
            _ => dice.next() as u8,
        };
        bytes.push(byte);
    }
    if dice.percent(2) {
        let at = dice.below(7) as usize;
        bytes.bytes[at] ^= 1 << dice.below(8);
    }
    bytes.bytes
}

fn prefix(dice: &mut Dice, info: &OpCodeInfo, modrm: u8, bytes: &mut Bytes) {
    let map = match info.table() {
        OpCodeTableKind::T0F38 => 2,
        OpCodeTableKind::T0F3A => 3,
        _ => 1,
    };
    let pp = match info.mandatory_prefix() {
        MandatoryPrefix::P66 => 1,
        MandatoryPrefix::PF3 => 2,
        MandatoryPrefix::PF2 => 3,
        _ => 0,
    };
    let w = if info.is_wig() || dice.percent(1) {
        dice.below(2) as u8
    } else {
        info.w() as u8
    };
    let is_memory = modrm < 0xc0;
    let can_have_b = if is_memory {
        info.can_broadcast()
    } else {
        info.can_use_rounding_control() || info.can_suppress_all_exceptions()
    };
    let b = u8::from(can_have_b && dice.percent(40) || dice.percent(1));
    // With registers, b makes the vector length that of the rounding.
    let l = if info.is_lig() || b != 0 && !is_memory || dice.percent(1) {
        dice.below(4) as u8
    } else {
        info.l() as u8
    };
    let (vvvv, v) = if uses_vvvv(info) || dice.percent(1) {
        (dice.below(16) as u8, dice.below(2) as u8)
    } else {
        // V' extends the indices of gathers and scatters too, but not in Bochs.
        (15, 1)
    };
    // Opmask and general registers have fewer numbers.
    let rxb = match dice.below(3) {
        0 => 15,
        1 => dice.next() as u8 & 15,
        _ => dice.next() as u8 & 15 | if has_opmask_operand(info) { 9 } else { 0 },
    };
    let masks =
        info.require_op_mask_register() || info.can_use_op_mask_register() && dice.percent(70) || dice.percent(1);
    let aaa = if masks { dice.below(8) as u8 } else { 0 };
    let z = u8::from(aaa != 0 && info.can_use_zeroing_masking() && dice.percent(40) || dice.percent(1));
    bytes.push(0x62);
    bytes.push(rxb << 4 | map);
    bytes.push(w << 7 | vvvv << 3 | 4 | pp);
    bytes.push(z << 7 | l << 5 | b << 4 | v << 3 | aaa);
}

fn modrm(dice: &mut Dice, info: &OpCodeInfo) -> u8 {
    let mut modrm = dice.next() as u8;
    if has_only_memory(info) && modrm >= 0xc0 {
        modrm &= 0x3f | (dice.below(3) as u8) << 6;
    } else if !has_only_memory(info) && dice.percent(40) {
        modrm |= 0xc0;
    }
    if is_vsib(info) {
        modrm = modrm & 0xf8 | 4;
    }
    if info.is_group() {
        modrm = modrm & !0x38 | (info.group_index() as u8) << 3;
    }
    modrm
}

fn any(info: &OpCodeInfo, wanted: impl Fn(OpCodeOperandKind) -> bool) -> bool {
    info.op_kinds().iter().any(|kind| wanted(*kind))
}

fn has_only_memory(info: &OpCodeInfo) -> bool {
    is_vsib(info) || any(info, |kind| kind == OpCodeOperandKind::mem)
}

fn has_opmask_operand(info: &OpCodeInfo) -> bool {
    use OpCodeOperandKind::*;
    any(info, |kind| matches!(kind, k_reg | kp1_reg | r32_reg | r64_reg))
}

fn uses_vvvv(info: &OpCodeInfo) -> bool {
    use OpCodeOperandKind::*;
    any(info, |kind| {
        matches!(
            kind,
            xmm_vvvv | ymm_vvvv | zmm_vvvv | xmmp3_vvvv | zmmp3_vvvv | k_vvvv | r32_vvvv | r64_vvvv
        )
    })
}

fn is_vsib(info: &OpCodeInfo) -> bool {
    use OpCodeOperandKind::*;
    any(info, |kind| {
        matches!(
            kind,
            mem_vsib32x | mem_vsib64x | mem_vsib32y | mem_vsib64y | mem_vsib32z | mem_vsib64z
        )
    })
}

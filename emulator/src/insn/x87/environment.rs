//! The x87 environment in memory: FNSTENV, FLDENV, FNSAVE, FRSTOR (SDM Vol. 1, x87 FPU State Image).
//!
//! Four layouts: 16 or 32 bits, each for protected mode (pointers as selector and offset) and for real and virtual-8086
//! mode (pointers as linear addresses). A field takes two bytes of 14 or four of 28; what a four-byte field does not use is
//! ones, as processors leave it.

use crate::cpu::fpu::{F80, Fpu};

/// How pointers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// Selector and offset.
    Protected,
    /// Linear address of 20 (16-bit layout) or 32 bits.
    Real,
}

/// The environment in 14 or 28 bytes.
pub(super) fn pack<const N: usize>(fpu: &Fpu, layout: Layout) -> [u8; N] {
    let wide = N == 28;
    let opcode = u32::from(fpu.opcode & 0x7ff);
    let mut fields = [
        u32::from(fpu.control) | 0xffff_0000,
        u32::from(fpu.status) | 0xffff_0000,
        u32::from(fpu.full_tags()) | 0xffff_0000,
        fpu.ip as u32,
        u32::from(fpu.cs) | opcode << 16,
        fpu.dp as u32,
        u32::from(fpu.ds) | 0xffff_0000,
    ];
    if layout == Layout::Real {
        let ip = (u32::from(fpu.cs) << 4).wrapping_add(fpu.ip as u32);
        let dp = (u32::from(fpu.ds) << 4).wrapping_add(fpu.dp as u32);
        fields[3] = ip & 0xffff | if wide { 0xffff_0000 } else { 0 };
        fields[4] = ip >> 16 << 12 | opcode;
        fields[5] = dp & 0xffff | if wide { 0xffff_0000 } else { 0 };
        fields[6] = dp >> 16 << 12;
    }
    let mut bytes = [0; N];
    for (slot, field) in bytes.chunks_exact_mut(N / 7).zip(fields) {
        slot.copy_from_slice(&field.to_le_bytes()[..N / 7]);
    }
    bytes
}

/// Loads the environment from 14 or 28 bytes.
pub(super) fn unpack<const N: usize>(fpu: &mut Fpu, layout: Layout, bytes: &[u8; N]) {
    let mut fields = [0; 7];
    for (field, slot) in fields.iter_mut().zip(bytes.chunks_exact(N / 7)) {
        let mut word = [0; 4];
        word[..N / 7].copy_from_slice(slot);
        *field = u32::from_le_bytes(word);
    }
    let [control, status, tags, ip, code, dp, data] = fields;
    fpu.status = status as u16;
    fpu.set_full_tags(tags as u16);
    fpu.set_control(control as u16);
    match layout {
        Layout::Protected => {
            fpu.ip = u64::from(ip);
            fpu.cs = code as u16;
            // The 16-bit layout has no room for the opcode.
            fpu.opcode = (code >> 16) as u16 & 0x7ff;
            fpu.dp = u64::from(dp);
            fpu.ds = data as u16;
        }
        Layout::Real => {
            fpu.ip = u64::from(ip & 0xffff | code >> 12 << 16);
            fpu.cs = 0;
            fpu.opcode = code as u16 & 0x7ff;
            fpu.dp = u64::from(dp & 0xffff | data >> 12 << 16);
            fpu.ds = 0;
        }
    }
}

/// ST(0) to ST(7) in ten bytes each.
pub(super) fn pack_registers(fpu: &Fpu, bytes: &mut [u8]) {
    for (i, slot) in (0..8).zip(bytes.chunks_exact_mut(10)) {
        slot.copy_from_slice(&to_bytes(fpu.registers[fpu.physical(i)]));
    }
}

/// Loads ST(0) to ST(7), with TOP as it is now.
pub(super) fn unpack_registers(fpu: &mut Fpu, bytes: &[u8]) {
    for (i, slot) in (0..8).zip(bytes.chunks_exact(10)) {
        let mut register = [0; 10];
        register.copy_from_slice(slot);
        let at = fpu.physical(i);
        fpu.registers[at] = from_bytes(register);
    }
}

/// A register as ten bytes of memory.
pub(super) fn to_bytes(register: F80) -> [u8; 10] {
    let mut bytes = [0; 10];
    bytes[..8].copy_from_slice(&register.significand.to_le_bytes());
    bytes[8..].copy_from_slice(&register.sign_exponent.to_le_bytes());
    bytes
}

/// Ten bytes of memory as a register.
pub(super) fn from_bytes(bytes: [u8; 10]) -> F80 {
    let [s0, s1, s2, s3, s4, s5, s6, s7, e0, e1] = bytes;
    F80 {
        significand: u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]),
        sign_exponent: u16::from_le_bytes([e0, e1]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fpu() -> Fpu {
        Fpu {
            control: 0x037f,
            status: 0x3841,
            tags: 0xff,
            ip: 0x1234_5678,
            cs: 0xabcd,
            dp: 0x9abc_def0,
            ds: 0x4321,
            opcode: 0x7e5,
            ..Fpu::default()
        }
    }

    /// The fields of `N / 7` bytes each behind the three words.
    fn pointers<const N: usize>(layout: Layout) -> [u32; 4] {
        let bytes: [u8; N] = pack(&fpu(), layout);
        core::array::from_fn(|i| {
            let slot = &bytes[N / 7 * (3 + i)..][..N / 7];
            slot.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte))
        })
    }

    #[test]
    fn pointers_are_selectors_and_offsets_in_protected_mode() {
        assert_eq!(pointers::<14>(Layout::Protected), [0x5678, 0xabcd, 0xdef0, 0x4321]);
        assert_eq!(
            pointers::<28>(Layout::Protected),
            [0x1234_5678, 0x07e5_abcd, 0x9abc_def0, 0xffff_4321]
        );
    }

    #[test]
    fn pointers_are_linear_addresses_in_real_mode() {
        // 0xabcd0 + 0x12345678 is 0x123f1348, 0x43210 + 0x9abcdef0 is 0x9ac11100.
        assert_eq!(pointers::<14>(Layout::Real), [0x1348, 0xf7e5, 0x1100, 0x1000]);
        assert_eq!(
            pointers::<28>(Layout::Real),
            [0xffff_1348, 0x0123_f7e5, 0xffff_1100, 0x09ac_1000]
        );
    }

    fn reloaded<const N: usize>(layout: Layout) -> (Fpu, [u8; N]) {
        let bytes: [u8; N] = pack(&fpu(), layout);
        let mut loaded = Fpu::default();
        unpack(&mut loaded, layout, &bytes);
        let again = pack(&loaded, layout);
        assert_eq!(bytes, again);
        (loaded, again)
    }

    #[test]
    fn what_is_stored_is_loaded() {
        let (wide, _) = reloaded::<28>(Layout::Protected);
        assert_eq!((wide.ip, wide.cs, wide.opcode), (0x1234_5678, 0xabcd, 0x7e5));
        assert_eq!((wide.dp, wide.ds), (0x9abc_def0, 0x4321));
        let (narrow, _) = reloaded::<14>(Layout::Protected);
        assert_eq!((narrow.ip, narrow.cs, narrow.opcode), (0x5678, 0xabcd, 0));
        let (wide, _) = reloaded::<28>(Layout::Real);
        assert_eq!((wide.ip, wide.cs, wide.opcode), (0x123f_1348, 0, 0x7e5));
        let (narrow, _) = reloaded::<14>(Layout::Real);
        assert_eq!((narrow.ip, narrow.dp, narrow.opcode), (0xf_1348, 0x1_1100, 0x7e5));
        assert_eq!((narrow.control, narrow.status & 0x7f7f), (0x037f, 0x3841));
    }
}

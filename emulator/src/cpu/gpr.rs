//! General-purpose registers, numbered as instructions number them.

use serde::{Deserialize, Serialize};

use crate::word::Word;

/// RAX.
pub const RAX: u8 = 0;
/// RCX.
pub const RCX: u8 = 1;
/// RDX.
pub const RDX: u8 = 2;
/// RBX.
pub const RBX: u8 = 3;
/// RSP.
pub const RSP: u8 = 4;
/// RBP.
pub const RBP: u8 = 5;
/// RSI.
pub const RSI: u8 = 6;
/// RDI.
pub const RDI: u8 = 7;
/// R11, which SYSCALL fills.
pub const R11: u8 = 11;

/// The slot that always reads zero: "no base", "no index".
pub(crate) const ZERO: u8 = 16;
/// The slot that holds RIP of the running block's start, for RIP-relative addresses.
pub(crate) const BLOCK_IP: u8 = 17;
/// Added to the number of AL, CL, DL, BL to name AH, CH, DH, BH.
pub(crate) const HIGH: u8 = 32;

/// The sixteen general-purpose registers.
///
/// The array is longer than sixteen so that operand numbers index it without a bounds check, and so that absent base and
/// index registers are a slot that reads zero instead of a branch.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(from = "[u64; 16]", into = "[u64; 16]")]
pub struct Gprs([u64; 32]);

impl Gprs {
    /// The whole register.
    #[inline(always)]
    pub fn get(&self, register: u8) -> u64 {
        self.0[usize::from(register & 31)]
    }

    /// Sets the whole register.
    #[inline(always)]
    pub fn set(&mut self, register: u8, value: u64) {
        self.0[usize::from(register & 31)] = value;
    }

    /// The low part of width `T`, zero-extended; for bytes, a register numbered from 32 up names bits 15:8.
    #[inline(always)]
    pub(crate) fn read<T: Word>(&self, register: u8) -> u64 {
        let whole = self.get(register);
        if T::SIZE == 1 {
            (whole >> ((register & HIGH) >> 2)) & 0xff
        } else {
            whole & T::MASK
        }
    }

    /// Sets the low part of width `T`: 32-bit writes clear the upper half, narrower ones keep the rest.
    #[inline(always)]
    pub(crate) fn write<T: Word>(&mut self, register: u8, value: u64) {
        let whole = self.get(register);
        let merged = match T::SIZE {
            1 => {
                let shift = (register & HIGH) >> 2;
                (whole & !(0xff << shift)) | ((value & 0xff) << shift)
            }
            2 => (whole & !0xffff) | (value & 0xffff),
            4 => value & 0xffff_ffff,
            _ => value,
        };
        self.set(register, merged);
    }
}

impl PartialEq for Gprs {
    fn eq(&self, other: &Gprs) -> bool {
        self.0[..16] == other.0[..16]
    }
}

impl Eq for Gprs {}

impl From<[u64; 16]> for Gprs {
    fn from(registers: [u64; 16]) -> Gprs {
        let mut gprs = Gprs::default();
        gprs.0[..16].copy_from_slice(&registers);
        gprs
    }
}

impl From<Gprs> for [u64; 16] {
    fn from(gprs: Gprs) -> [u64; 16] {
        core::array::from_fn(|i| gprs.0[i])
    }
}

impl core::fmt::Debug for Gprs {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        const NAMES: [&str; 16] = [
            "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
            "r15",
        ];
        let mut map = f.debug_map();
        for (name, value) in NAMES.iter().zip(self.0) {
            map.entry(name, &format_args!("{value:#x}"));
        }
        map.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_32_bit_write_clears_the_upper_half_and_narrower_writes_keep_it() {
        let mut gprs = Gprs::default();
        gprs.set(RBX, u64::MAX);
        gprs.write::<u32>(RBX, 1);
        assert_eq!(gprs.get(RBX), 1);
        gprs.set(RBX, u64::MAX);
        gprs.write::<u16>(RBX, 1);
        assert_eq!(gprs.get(RBX), 0xffff_ffff_ffff_0001);
        gprs.write::<u8>(RBX | HIGH, 0x77);
        assert_eq!(
            (gprs.get(RBX), gprs.read::<u8>(RBX | HIGH)),
            (0xffff_ffff_ffff_7701, 0x77)
        );
    }
}

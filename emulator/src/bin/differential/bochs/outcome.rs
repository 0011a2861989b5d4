//! What a case leaves behind, and what differs in it.

use super::case::{Case, PAGE, REGISTERS, SHOWN};
use super::quirk;
use crate::compare::hex;

/// INT3, which follows the instruction.
const BREAKPOINT: u64 = 3;
/// CF, PF, AF, ZF, SF, TF, DF and OF.
const FLAGS: u64 = 0xdd5;

/// What a case leaves behind.
#[derive(Clone)]
pub struct Outcome {
    /// ZMM0 to ZMM31.
    pub vectors: [u8; REGISTERS],
    /// k0 to k7.
    pub k: [u64; 8],
    /// By number.
    pub gpr: [u64; 16],
    /// MXCSR.
    pub mxcsr: u64,
    /// Vector of the exception that ended it.
    pub vector: u64,
    /// Its error code, or 0.
    pub error_code: u64,
    /// CR2, if that was a page fault.
    pub cr2: u64,
    /// RIP; without the INT3 behind the instruction.
    pub rip: u64,
    /// RFLAGS.
    pub flags: u64,
    /// Of the data page.
    pub checksum: u64,
    /// Part of the data page.
    pub memory: [u8; SHOWN],
}

impl Outcome {
    /// Size in which `executor.S` writes it.
    pub const SIZE: usize = 2560;

    /// As `executor.S` writes it.
    pub fn from_bytes(bytes: &[u8]) -> Outcome {
        let words = |i: usize| {
            let word = bytes[REGISTERS + 8 * i..][..8].try_into();
            u64::from_le_bytes(word.expect("eight bytes"))
        };
        let vector = words(25);
        Outcome {
            vectors: core::array::from_fn(|i| bytes[i]),
            k: core::array::from_fn(words),
            gpr: core::array::from_fn(|i| words(8 + i)),
            mxcsr: words(24) & 0xffff_ffff,
            vector,
            error_code: words(26),
            cr2: words(27),
            rip: words(28).wrapping_sub(u64::from(vector == BREAKPOINT)),
            flags: words(29),
            checksum: words(30),
            memory: core::array::from_fn(|i| bytes[Self::SIZE - SHOWN + i]),
        }
    }

    /// The instruction has retired.
    pub fn is_done(&self) -> bool {
        self.vector == BREAKPOINT
    }

    /// Says so.
    pub fn done(&mut self) {
        self.vector = BREAKPOINT;
    }
}

/// CRC32C over quadwords, as the instruction CRC32 has it (SDM Vol. 2, CRC32): without inversions.
pub fn checksum(page: &[u8; PAGE]) -> u64 {
    let mut sum: u32 = 0;
    for byte in page {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            sum = sum >> 1 ^ if sum & 1 != 0 { 0x82f6_3b78 } else { 0 };
        }
    }
    sum.into()
}

/// One field that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// What it is.
    pub field: String,
    /// In Bochs.
    pub expected: String,
    /// In the emulator.
    pub found: String,
}

/// Everything that differs.
pub fn differences(case: &Case, expected: &Outcome, found: &Outcome) -> Vec<Difference> {
    let mut list = Vec::new();
    let mut number = |field: &str, expected: u64, found: u64| {
        if expected != found {
            list.push(Difference {
                field: field.to_owned(),
                expected: format!("{expected:#x}"),
                found: format!("{found:#x}"),
            });
        }
    };
    let undefined = crate::case::undefined_flags(&case.instruction());
    number("vector", expected.vector, found.vector);
    number("error code", expected.error_code, found.error_code);
    if expected.cr2.abs_diff(found.cr2) >= 64 {
        number("cr2", expected.cr2, found.cr2);
    }
    number("rip", expected.rip, found.rip);
    number(
        "rflags",
        expected.flags & FLAGS & !undefined,
        found.flags & FLAGS & !undefined,
    );
    let mxcsr = !u64::from(quirk::flags(&case.instruction()));
    number("mxcsr", expected.mxcsr & mxcsr, found.mxcsr & mxcsr);
    for i in 0..8 {
        number(&format!("k{i}"), expected.k[i], found.k[i]);
    }
    for i in 0..16 {
        number(&format!("gpr {i}"), expected.gpr[i], found.gpr[i]);
    }
    let mut bytes = |field: String, expected: &[u8], found: &[u8]| {
        if expected != found {
            let text = |bytes: &[u8]| hex(&bytes.iter().rev().copied().collect::<Vec<u8>>());
            let (expected, found) = (text(expected), text(found));
            list.push(Difference { field, expected, found });
        }
    };
    for i in 0..32 {
        let (a, b) = (&expected.vectors[64 * i..][..64], &found.vectors[64 * i..][..64]);
        bytes(format!("zmm{i}"), a, b);
    }
    for i in 0..SHOWN / 64 {
        let (a, b) = (&expected.memory[64 * i..][..64], &found.memory[64 * i..][..64]);
        bytes(format!("memory at {:#x}", case.shown + 64 * i as u64), a, b);
    }
    if list.is_empty() && expected.checksum != found.checksum {
        list.push(Difference {
            field: "memory elsewhere".to_owned(),
            expected: format!("{:#x}", expected.checksum),
            found: format!("{:#x}", found.checksum),
        });
    }
    if !list.is_empty() && quirk::forgives(case, expected, found) {
        list.clear();
    }
    list
}

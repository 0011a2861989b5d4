//! Exceptions and interrupts (SDM Vol. 3, Interrupt and Exception Handling).
//!
#![doc = include_str!("faults.md")]

use serde::{Deserialize, Serialize};

/// Divide error.
pub const DE: u8 = 0;
/// Debug.
pub const DB: u8 = 1;
/// Non-maskable interrupt.
pub const NMI: u8 = 2;
/// Breakpoint.
pub const BP: u8 = 3;
/// Overflow.
pub const OF: u8 = 4;
/// BOUND range exceeded.
pub const BR: u8 = 5;
/// Invalid opcode.
pub const UD: u8 = 6;
/// Device not available.
pub const NM: u8 = 7;
/// Double fault.
pub const DF: u8 = 8;
/// Invalid TSS.
pub const TS: u8 = 10;
/// Segment not present.
pub const NP: u8 = 11;
/// Stack fault.
pub const SS: u8 = 12;
/// General protection.
pub const GP: u8 = 13;
/// Page fault.
pub const PF: u8 = 14;
/// x87 floating-point error.
pub const MF: u8 = 16;
/// Alignment check.
pub const AC: u8 = 17;
/// SIMD floating-point exception.
pub const XM: u8 = 19;

/// A fault or trap that an instruction earned.
///
/// It is four bytes with everything, so that the outcome of an instruction fits a register; the linear address of a
/// page fault is kept beside it, by the accessor that found it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct Exception {
    /// Vector, 0 to 31.
    pub vector: u8,
    has_error_code: bool,
    error_code: u16,
}

impl Exception {
    /// An exception without an error code.
    #[inline]
    pub const fn plain(vector: u8) -> Exception {
        Exception {
            vector,
            has_error_code: false,
            error_code: 0,
        }
    }

    /// An exception with an error code.
    #[inline]
    pub const fn with_code(vector: u8, error_code: u16) -> Exception {
        Exception {
            vector,
            has_error_code: true,
            error_code,
        }
    }

    /// What is pushed on the handler's stack, for the vectors that have one.
    #[inline]
    pub fn error_code(self) -> Option<u16> {
        self.has_error_code.then_some(self.error_code)
    }

    /// #UD.
    #[inline]
    pub fn ud() -> Exception {
        Exception::plain(UD)
    }

    /// #NM.
    #[inline]
    pub fn nm() -> Exception {
        Exception::plain(NM)
    }

    /// #GP with an error code, 0 or a selector.
    #[inline]
    pub fn gp(error_code: u16) -> Exception {
        Exception::with_code(GP, error_code)
    }
}

/// Something that is delivered through the IDT before the next instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Vector.
    pub vector: u8,
    /// Where it comes from.
    pub source: Source,
    /// Error code to push.
    pub error_code: Option<u16>,
    /// What CR2 becomes, for a page fault.
    pub cr2: Option<u64>,
    /// Length of the instruction that raised a software event: RIP is still that of the instruction, and the address
    /// pushed is that of the next. 0 for all others.
    pub length: u8,
}

/// Where an event comes from; privilege checks, RF and double faults depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// The local APIC or the PIC.
    External,
    /// A non-maskable interrupt.
    Nmi,
    /// A fault: RIP is that of the instruction.
    Fault,
    /// A debug trap: RIP is that of the next instruction.
    Trap,
    /// INT n, INT3, INTO: the gate's DPL is checked.
    Software,
    /// INT1: as a software event, but no privilege is checked.
    Privileged,
}

impl Event {
    /// An interrupt from the outside.
    pub fn external(vector: u8) -> Event {
        Event {
            vector,
            source: Source::External,
            error_code: None,
            cr2: None,
            length: 0,
        }
    }

    /// A non-maskable interrupt.
    pub fn nmi() -> Event {
        Event {
            vector: NMI,
            source: Source::Nmi,
            error_code: None,
            cr2: None,
            length: 0,
        }
    }
}

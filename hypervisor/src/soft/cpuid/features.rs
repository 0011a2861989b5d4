//! The feature bits, by the manuals' names.
//!
//! An instruction set extension is announced if the emulator executes it: `INSTRUCTIONS` only says where its bit is. The one
//! exception is MONITOR and MWAIT: a guest that has them takes an idle CPU for one that keeps its host CPU busy, and then does
//! without yielding to those that were preempted; and HLT is the better way to be idle here, since this CPU really sleeps then.
//! What else a processor can be asked about is in [`Word::platform`].

use iced_x86::CpuidFeature::{self, *};
use reprise_emulator::model::executes;

/// A register of a leaf that holds feature bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// Leaf 1 ECX.
    OneEcx,
    /// Leaf 1 EDX.
    OneEdx,
    /// Leaf 7 EBX.
    SevenEbx,
    /// Leaf 7 ECX.
    SevenEcx,
    /// Leaf 7 EDX.
    SevenEdx,
    /// Leaf 0xD subleaf 1 EAX.
    XsaveEax,
    /// Leaf 0x8000_0001 ECX.
    ExtendedOneEcx,
    /// Leaf 0x8000_0001 EDX.
    ExtendedOneEdx,
}

use Word::{ExtendedOneEcx, ExtendedOneEdx, OneEcx, OneEdx, SevenEbx, SevenEcx, SevenEdx, XsaveEax};

/// Where each extension of the instruction set has its bit.
const INSTRUCTIONS: [(CpuidFeature, Word, u32); 47] = [
    (SSE3, OneEcx, 0),
    (PCLMULQDQ, OneEcx, 1),
    (SSSE3, OneEcx, 9),
    (CMPXCHG16B, OneEcx, 13),
    (SSE4_1, OneEcx, 19),
    (SSE4_2, OneEcx, 20),
    (MOVBE, OneEcx, 22),
    (POPCNT, OneEcx, 23),
    (AES, OneEcx, 25),
    (XSAVE, OneEcx, 26),
    (RDRAND, OneEcx, 30),
    (FPU, OneEdx, 0),
    (TSC, OneEdx, 4),
    (MSR, OneEdx, 5),
    (CX8, OneEdx, 8),
    (SEP, OneEdx, 11),
    (CMOV, OneEdx, 15),
    (CLFSH, OneEdx, 19),
    (MMX, OneEdx, 23),
    (FXSR, OneEdx, 24),
    (SSE, OneEdx, 25),
    (SSE2, OneEdx, 26),
    (FSGSBASE, SevenEbx, 0),
    (BMI1, SevenEbx, 3),
    (BMI2, SevenEbx, 8),
    (INVPCID, SevenEbx, 10),
    (RDSEED, SevenEbx, 18),
    (ADX, SevenEbx, 19),
    (SMAP, SevenEbx, 20),
    (CLFLUSHOPT, SevenEbx, 23),
    (CLWB, SevenEbx, 24),
    (SHA, SevenEbx, 29),
    (RDPID, SevenEcx, 22),
    (XSAVEOPT, XsaveEax, 0),
    (XSAVEC, XsaveEax, 1),
    (LZCNT, ExtendedOneEcx, 5),
    (SSE4A, ExtendedOneEcx, 6),
    (PREFETCHW, ExtendedOneEcx, 8),
    (FPU, ExtendedOneEdx, 0),
    (TSC, ExtendedOneEdx, 4),
    (MSR, ExtendedOneEdx, 5),
    (CX8, ExtendedOneEdx, 8),
    (SYSCALL, ExtendedOneEdx, 11),
    (CMOV, ExtendedOneEdx, 15),
    (MMX, ExtendedOneEdx, 23),
    (FXSR, ExtendedOneEdx, 24),
    (RDTSCP, ExtendedOneEdx, 27),
];

/// What leaf 1 EDX and leaf 0x8000_0001 EDX share of the platform's bits.
const SHARED_EDX: u32 = 1 << 2          // debugging extensions
    | 1 << 3                            // 4 MiB pages
    | 1 << 6                            // PAE
    | 1 << 7                            // machine check exception
    | 1 << 9                            // APIC
    | 1 << 12                           // MTRR
    | 1 << 13                           // global pages
    | 1 << 14                           // machine check architecture
    | 1 << 16                           // PAT
    | 1 << 17; // PSE-36

impl Word {
    /// The whole word: what the platform has and what the emulator executes.
    pub fn value(self) -> u32 {
        INSTRUCTIONS
            .iter()
            .filter(|(feature, word, _)| *word == self && executes(*feature))
            .fold(self.platform(), |value, (_, _, bit)| value | 1 << bit)
    }

    /// The bits that stand for no instructions.
    fn platform(self) -> u32 {
        match self {
            // PCID, x2APIC, TSC-deadline; there is a hypervisor.
            OneEcx => 1 << 17 | 1 << 21 | 1 << 24 | 1 << 31,
            OneEdx => SHARED_EDX,
            // IA32_TSC_ADJUST, SMEP, enhanced REP MOVSB and STOSB.
            SevenEbx => 1 << 1 | 1 << 7 | 1 << 9,
            // Fast short REP MOVSB.
            SevenEdx => 1 << 4,
            // LAHF and SAHF in 64-bit mode; topology extensions: leaves 0x8000_001d and 0x8000_001e.
            ExtendedOneEcx => 1 << 0 | 1 << 22,
            // No-execute pages, 1 GiB pages, long mode.
            ExtendedOneEdx => SHARED_EDX | 1 << 20 | 1 << 26 | 1 << 29,
            SevenEcx | XsaveEax => 0,
        }
    }
}

/// Leaf 1 EDX: several logical processors in the package.
pub const HTT: u32 = 1 << 28;

/// Leaf 0x8000_0001 ECX: what leaf 1 calls threads are cores.
pub const CMP_LEGACY: u32 = 1 << 1;

/// Leaf 0x8000_0007 EDX: the time-stamp counter never changes its rate, and never stops.
pub const INVARIANT_TSC: u32 = 1 << 8;

/// Leaf 0x8000_0008 EBX.
pub const EXTENDED_8_EBX: u32 = 1 << 2  // FXSAVE, XSAVE always handle the error pointers
    | 1 << 26                           // no speculative store bypass
    | 1 << 29; // no branch type confusion

/// Leaf 0x8000_0021 EAX.
pub const EXTENDED_21_EAX: u32 = 1 << 0 // no nested data breakpoints
    | 1 << 2                            // LFENCE always serialises
    | 1 << 6                            // a null selector clears the base
    | 1 << 8                            // automatic IBRS: EFER.AIBRSE can be set
    | 1 << 29; // no speculative return stack overflow

/// Leaf 0x8000_0021 ECX.
pub const EXTENDED_21_ECX: u32 = 1 << 1 // no transient scheduler attack on the store queue
    | 1 << 2; // nor on the first-level data cache

//! The feature bits, by the manuals' names.
//!
//! An instruction set extension is announced if the emulator executes it and the model includes it; the emulator's table
//! [`INSTRUCTIONS`] says where its bit is. The one
//! exception is MONITOR and MWAIT: a guest that has them takes an idle CPU for one that keeps its host CPU busy, and then does
//! without yielding to those that were preempted; and HLT is the better way to be idle here, since this CPU really sleeps then.
//! What else a processor can be asked about is in [`Word::platform`].

use iced_x86::CpuidFeature;
use reprise_emulator::cpuid::{Feature, INSTRUCTIONS, Register};
use reprise_emulator::model::executes;

use crate::CpuModel;

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
    /// Leaf 0x8000_0008 EBX.
    ExtendedEightEbx,
}

/// What leaf 1 EDX and leaf 0x8000_0001 EDX share of the platform's bits.
const SHARED_EDX: u32 = 1 << 1          // virtual-8086 mode extensions
    | 1 << 2                            // debugging extensions
    | 1 << 3                            // 4 MiB pages
    | 1 << 6                            // PAE
    | 1 << 7                            // machine check exception
    | 1 << 9                            // APIC
    | 1 << 12                           // MTRR
    | 1 << 13                           // global pages
    | 1 << 14                           // machine check architecture
    | 1 << 16                           // PAT
    | 1 << 17; // PSE-36

/// Whether the instructions are there for a guest of `model`.
pub fn announces(model: CpuModel, feature: CpuidFeature) -> bool {
    let is_included = model.includes(feature) && !model.leaves_out(feature);
    feature != CpuidFeature::MONITOR && is_included && executes(feature)
}

impl Word {
    /// The whole word: what the platform has and what the emulator executes of what `model` includes.
    pub fn value(self, model: CpuModel) -> u32 {
        INSTRUCTIONS
            .iter()
            .filter(|(feature, bit)| self.holds(bit) && announces(model, *feature))
            .fold(self.platform(model), |value, (_, bit)| value | 1 << bit.bit)
    }

    /// Whether the bit is in this word.
    fn holds(self, bit: &Feature) -> bool {
        let place = match self {
            Word::OneEcx => (1, 0, Register::Ecx),
            Word::OneEdx => (1, 0, Register::Edx),
            Word::SevenEbx => (7, 0, Register::Ebx),
            Word::SevenEcx => (7, 0, Register::Ecx),
            Word::SevenEdx => (7, 0, Register::Edx),
            Word::XsaveEax => (0xd, 1, Register::Eax),
            Word::ExtendedOneEcx => (0x8000_0001, 0, Register::Ecx),
            Word::ExtendedOneEdx => (0x8000_0001, 0, Register::Edx),
            Word::ExtendedEightEbx => (0x8000_0008, 0, Register::Ebx),
        };
        place == (bit.leaf, bit.subleaf, bit.register)
    }

    /// The bits that stand for no instructions.
    fn platform(self, model: CpuModel) -> u32 {
        match self {
            // PCID, x2APIC, TSC-deadline; there is a hypervisor.
            Word::OneEcx => 1 << 17 | 1 << 21 | 1 << 24 | 1 << 31,
            Word::OneEdx => SHARED_EDX,
            // IA32_TSC_ADJUST, SMEP, enhanced REP MOVSB and STOSB.
            Word::SevenEbx => 1 << 1 | 1 << 7 | 1 << 9,
            // UMIP; 57-bit linear addresses.
            Word::SevenEcx if model.has_everything() => 1 << 2 | 1 << 16,
            Word::SevenEcx => 1 << 2,
            // Fast short REP MOVSB.
            Word::SevenEdx => 1 << 4,
            // XGETBV with ECX = 1.
            Word::XsaveEax => 1 << 2,
            // LAHF and SAHF in 64-bit mode; topology extensions: leaves 0x8000_001d and 0x8000_001e.
            Word::ExtendedOneEcx => 1 << 0 | 1 << 22,
            // No-execute pages, 1 GiB pages, long mode.
            Word::ExtendedOneEdx => SHARED_EDX | 1 << 20 | 1 << 26 | 1 << 29,
            // FXSAVE and XSAVE always handle the error pointers; no speculative store bypass, no branch type confusion.
            Word::ExtendedEightEbx => 1 << 2 | 1 << 26 | 1 << 29,
        }
    }
}

/// Leaf 1 EDX: several logical processors in the package.
pub const HTT: u32 = 1 << 28;

/// Leaf 0x8000_0001 ECX: what leaf 1 calls threads are cores.
pub const CMP_LEGACY: u32 = 1 << 1;

/// Leaf 0x8000_0007 EDX: the time-stamp counter never changes its rate, and never stops.
pub const INVARIANT_TSC: u32 = 1 << 8;

/// Leaf 0x8000_0021 EAX.
pub const EXTENDED_21_EAX: u32 = 1 << 0 // no nested data breakpoints
    | 1 << 2                            // LFENCE always serialises
    | 1 << 6                            // a null selector clears the base
    | 1 << 8                            // automatic IBRS: EFER.AIBRSE can be set
    | 1 << 29; // no speculative return stack overflow

/// Leaf 0x8000_0021 ECX.
pub const EXTENDED_21_ECX: u32 = 1 << 1 // no transient scheduler attack on the store queue
    | 1 << 2; // nor on the first-level data cache

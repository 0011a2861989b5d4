//! Where CPUID announces what: the one table of instruction set extensions, and the features that control registers need.

use iced_x86::CpuidFeature::{self, *};

use self::Register::{Eax, Ebx, Ecx, Edx};
use crate::cpu::{Cr4, Efer};

/// A register of CPUID's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Register {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

/// A feature bit of CPUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Feature {
    /// EAX as asked.
    pub leaf: u32,
    /// ECX as asked.
    pub subleaf: u32,
    /// The register of the answer.
    pub register: Register,
    /// The number of the bit, 0 to 31.
    pub bit: u32,
}

const fn bit(leaf: u32, register: Register, bit: u32) -> Feature {
    Feature {
        leaf,
        subleaf: 0,
        register,
        bit,
    }
}

const fn xsave(bit: u32) -> Feature {
    Feature {
        leaf: 0xd,
        subleaf: 1,
        register: Eax,
        bit,
    }
}

impl Feature {
    pub(crate) const MCE: Feature = bit(1, Edx, 7);
    pub(crate) const MTRR: Feature = bit(1, Edx, 12);
    pub(crate) const PAT: Feature = bit(1, Edx, 16);
    pub(crate) const RDPID: Feature = bit(7, Ecx, 22);
    pub(crate) const RDTSCP: Feature = bit(0x8000_0001, Edx, 27);
    pub(crate) const SPEC_CTRL: Feature = bit(7, Edx, 26);
    pub(crate) const IBPB: Feature = bit(0x8000_0008, Ebx, 12);
    pub(crate) const IBRS: Feature = bit(0x8000_0008, Ebx, 14);
    pub(crate) const STIBP: Feature = bit(0x8000_0008, Ebx, 15);
    pub(crate) const SSBD: Feature = bit(0x8000_0008, Ebx, 24);
    pub(crate) const L1D_FLUSH: Feature = bit(7, Edx, 28);
    pub(crate) const LAHF_64: Feature = bit(0x8000_0001, Ecx, 0);
    /// XGETBV with ECX = 1.
    pub(crate) const XINUSE: Feature = xsave(2);
    pub(crate) const XSAVES: Feature = xsave(3);
}

/// Where each extension of the instruction set has its bit (SDM Vol. 2, CPUID; APM Vol. 3, CPUID). Some have two, which say
/// the same.
pub const INSTRUCTIONS: &[(CpuidFeature, Feature)] = &[
    (SSE3, bit(1, Ecx, 0)),
    (PCLMULQDQ, bit(1, Ecx, 1)),
    (MONITOR, bit(1, Ecx, 3)),
    (SSSE3, bit(1, Ecx, 9)),
    (FMA, bit(1, Ecx, 12)),
    (CMPXCHG16B, bit(1, Ecx, 13)),
    (SSE4_1, bit(1, Ecx, 19)),
    (SSE4_2, bit(1, Ecx, 20)),
    (MOVBE, bit(1, Ecx, 22)),
    (POPCNT, bit(1, Ecx, 23)),
    (AES, bit(1, Ecx, 25)),
    (XSAVE, bit(1, Ecx, 26)),
    (AVX, bit(1, Ecx, 28)),
    (F16C, bit(1, Ecx, 29)),
    (RDRAND, bit(1, Ecx, 30)),
    (FPU, bit(1, Edx, 0)),
    (TSC, bit(1, Edx, 4)),
    (MSR, bit(1, Edx, 5)),
    (CX8, bit(1, Edx, 8)),
    (SEP, bit(1, Edx, 11)),
    (CMOV, bit(1, Edx, 15)),
    (CLFSH, bit(1, Edx, 19)),
    (MMX, bit(1, Edx, 23)),
    (FXSR, bit(1, Edx, 24)),
    (SSE, bit(1, Edx, 25)),
    (SSE2, bit(1, Edx, 26)),
    (FSGSBASE, bit(7, Ebx, 0)),
    (BMI1, bit(7, Ebx, 3)),
    (AVX2, bit(7, Ebx, 5)),
    (BMI2, bit(7, Ebx, 8)),
    (INVPCID, bit(7, Ebx, 10)),
    (AVX512F, bit(7, Ebx, 16)),
    (AVX512DQ, bit(7, Ebx, 17)),
    (RDSEED, bit(7, Ebx, 18)),
    (ADX, bit(7, Ebx, 19)),
    (SMAP, bit(7, Ebx, 20)),
    (AVX512_IFMA, bit(7, Ebx, 21)),
    (CLFLUSHOPT, bit(7, Ebx, 23)),
    (CLWB, bit(7, Ebx, 24)),
    (AVX512CD, bit(7, Ebx, 28)),
    (SHA, bit(7, Ebx, 29)),
    (AVX512BW, bit(7, Ebx, 30)),
    (AVX512VL, bit(7, Ebx, 31)),
    (AVX512_VBMI, bit(7, Ecx, 1)),
    (PKU, bit(7, Ecx, 3)),
    (AVX512_VBMI2, bit(7, Ecx, 6)),
    (GFNI, bit(7, Ecx, 8)),
    (VAES, bit(7, Ecx, 9)),
    (VPCLMULQDQ, bit(7, Ecx, 10)),
    (AVX512_VNNI, bit(7, Ecx, 11)),
    (AVX512_BITALG, bit(7, Ecx, 12)),
    (AVX512_VPOPCNTDQ, bit(7, Ecx, 14)),
    (RDPID, bit(7, Ecx, 22)),
    (CLDEMOTE, bit(7, Ecx, 25)),
    (MOVDIRI, bit(7, Ecx, 27)),
    (MOVDIR64B, bit(7, Ecx, 28)),
    (SERIALIZE, bit(7, Edx, 14)),
    (XSAVEOPT, xsave(0)),
    (XSAVEC, xsave(1)),
    (XSAVES, xsave(3)),
    (LZCNT, bit(0x8000_0001, Ecx, 5)),
    (SSE4A, bit(0x8000_0001, Ecx, 6)),
    (PREFETCHW, bit(0x8000_0001, Ecx, 8)),
    (FPU, bit(0x8000_0001, Edx, 0)),
    (TSC, bit(0x8000_0001, Edx, 4)),
    (MSR, bit(0x8000_0001, Edx, 5)),
    (CX8, bit(0x8000_0001, Edx, 8)),
    (SYSCALL, bit(0x8000_0001, Edx, 11)),
    (CMOV, bit(0x8000_0001, Edx, 15)),
    (MMX, bit(0x8000_0001, Edx, 23)),
    (FXSR, bit(0x8000_0001, Edx, 24)),
    (RDTSCP, bit(0x8000_0001, Edx, 27)),
    (X64, bit(0x8000_0001, Edx, 29)),
    (WBNOINVD, bit(0x8000_0008, Ebx, 9)),
];

/// The bits that announce the instructions of `feature`; none for what every processor has.
pub(super) fn bits(feature: CpuidFeature) -> impl Iterator<Item = Feature> {
    let feature = match feature {
        // Coprocessors have come with the processor for long.
        FPU287 | FPU287XL_ONLY | FPU387 => FPU,
        other => other,
    };
    INSTRUCTIONS
        .iter()
        .filter(move |(of, _)| *of == feature)
        .map(|(_, bit)| *bit)
}

/// Which feature each bit of CR4 needs.
pub(crate) const CR4_FEATURES: &[(u64, Feature)] = &[
    (Cr4::VME | Cr4::PVI, bit(1, Edx, 1)),
    (Cr4::DE, bit(1, Edx, 2)),
    (Cr4::PSE, bit(1, Edx, 3)),
    (Cr4::TSD, bit(1, Edx, 4)),
    (Cr4::PAE, bit(1, Edx, 6)),
    (Cr4::MCE, bit(1, Edx, 7)),
    (Cr4::PGE, bit(1, Edx, 13)),
    (Cr4::OSFXSR, bit(1, Edx, 24)),
    (Cr4::OSXMMEXCPT, bit(1, Edx, 25)),
    (Cr4::PCIDE, bit(1, Ecx, 17)),
    (Cr4::OSXSAVE, bit(1, Ecx, 26)),
    (Cr4::FSGSBASE, bit(7, Ebx, 0)),
    (Cr4::SMEP, bit(7, Ebx, 7)),
    (Cr4::SMAP, bit(7, Ebx, 20)),
    (Cr4::UMIP, bit(7, Ecx, 2)),
    (Cr4::PKE, bit(7, Ecx, 3)),
    (Cr4::LA57, bit(7, Ecx, 16)),
    // Every processor with RDPMC has PCE; all that announce the time-stamp counter have RDPMC.
    (Cr4::PCE, bit(1, Edx, 4)),
];

/// Which feature each bit of EFER needs.
pub(crate) const EFER_FEATURES: &[(u64, Feature)] = &[
    (Efer::SCE, bit(0x8000_0001, Edx, 11)),
    (Efer::NXE, bit(0x8000_0001, Edx, 20)),
    (Efer::FFXSR, bit(0x8000_0001, Edx, 25)),
    (Efer::LME | Efer::LMA, bit(0x8000_0001, Edx, 29)),
    (Efer::AIBRSE, bit(0x8000_0021, Eax, 8)),
];

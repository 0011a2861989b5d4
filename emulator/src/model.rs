//! The processor model that a guest sees: which instructions there are, and what CPUID says.

use iced_x86::{Code, CpuidFeature, DecoderOptions};

use crate::careful::Careful;
use crate::cpuid::{CpuidTable, Feature};
use crate::fast::Fast;
use crate::table::Table;

/// A processor model, shared by the CPUs of a virtual machine.
pub struct Model {
    pub(crate) fast: Table<Fast>,
    pub(crate) careful: Table<Careful>,
}

/// Whether the instructions of a CPUID feature are executed; the others are #UD, and must not be announced.
pub fn executes(feature: CpuidFeature) -> bool {
    use CpuidFeature::*;
    // Multiplications with additions are the host's own.
    if feature == FMA {
        return crate::native::sse::has_fma();
    }
    matches!(
        feature,
        INTEL8086
            | INTEL8086_ONLY
            | INTEL186
            | INTEL286
            | INTEL286_ONLY
            | INTEL386
            | INTEL386_ONLY
            | INTEL486
            | X64
            | FPU
            | FPU287
            | FPU287XL_ONLY
            | FPU387
            | CPUID
            | MSR
            | TSC
            | CX8
            | CMOV
            | SEP
            | SYSCALL
            | MMX
            | FXSR
            | SSE
            | SSE2
            | SSE3
            | SSSE3
            | SSE4_1
            | SSE4_2
            | AES
            | PCLMULQDQ
            | SHA
            | GFNI
            | CLFSH
            | CMPXCHG16B
            | XSAVE
            | XSAVEOPT
            | XSAVEC
            | RDRAND
            | RDSEED
            | RDTSCP
            | FSGSBASE
            | INVPCID
            | SMAP
            | MONITOR
            | POPCNT
            | MULTIBYTENOP
            | PAUSE
            | PREFETCHW
            | CLFLUSHOPT
            | CLWB
            | VMX
            | SVM
            | CET_IBT
            | RDPMC
            | MOVBE
            | AVX
            | F16C
            | VAES
            | VPCLMULQDQ
            | AVX2
            | AVX512F
            | AVX512BW
            | AVX512CD
            | AVX512DQ
            | AVX512VL
    )
}

impl Model {
    /// The model with everything that the emulator executes.
    pub fn new() -> Model {
        Model::with(|_| true)
    }

    /// The model with what the emulator executes of those features that `announced` names.
    pub fn with(announced: impl Fn(CpuidFeature) -> bool) -> Model {
        let there_is = |feature| executes(feature) && announced(feature);
        Model {
            fast: Table::new(there_is),
            careful: Table::new(there_is),
        }
    }

    /// The model that announces itself as `cpuid` says: what it does not announce is #UD, or what it was before the
    /// extension came. Feature bits are the same for all CPUs of a machine, so any one's table will do.
    pub fn announcing(cpuid: &CpuidTable) -> Model {
        let there = |feature| executes(feature) && cpuid.announces(feature);
        let mut model = Model {
            fast: Table::new(there),
            careful: Table::new(there),
        };
        if !cpuid.has(Feature::LAHF_64) {
            model.fast.options |= DecoderOptions::NO_LAHF_SAHF_64;
            model.careful.options |= DecoderOptions::NO_LAHF_SAHF_64;
        }
        model
    }

    /// Whether instructions of this encoding are executed; the others are #UD.
    pub fn supports(&self, code: Code) -> bool {
        self.careful.form(code).is_some()
    }
}

impl Default for Model {
    fn default() -> Model {
        Model::new()
    }
}

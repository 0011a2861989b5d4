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
            | XSAVES
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
            | PKU
            | BMI1
            | BMI2
            | ADX
            | LZCNT
            | RDPID
            | MOVDIRI
            | MOVDIR64B
            | SERIALIZE
            | WBNOINVD
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

#[cfg(test)]
mod tests {
    use iced_x86::{Code, Decoder};

    use super::*;
    use crate::cpuid::{CpuidEntry, CpuidRegisters, INSTRUCTIONS, Register};

    /// A table with the given bits and no others.
    fn table(bits: &[Feature]) -> CpuidTable {
        let mut entries: Vec<CpuidEntry> = Vec::new();
        for Feature {
            leaf,
            subleaf,
            register,
            bit,
        } in bits
        {
            let place = entries
                .iter()
                .position(|entry| (entry.leaf, entry.subleaf) == (*leaf, Some(*subleaf)))
                .unwrap_or(entries.len());
            if place == entries.len() {
                entries.push(CpuidEntry {
                    leaf: *leaf,
                    subleaf: Some(*subleaf),
                    registers: CpuidRegisters::default(),
                });
            }
            let registers = &mut entries[place].registers;
            let word = match register {
                Register::Eax => &mut registers.eax,
                Register::Ebx => &mut registers.ebx,
                Register::Ecx => &mut registers.ecx,
                Register::Edx => &mut registers.edx,
            };
            *word |= 1 << bit;
        }
        CpuidTable::new(entries)
    }

    fn decoded(model: &Model, bytes: &[u8]) -> Code {
        Decoder::new(64, bytes, model.careful.options).decode().code()
    }

    #[test]
    fn each_bit_of_cpuid_brings_its_instructions_and_no_others() {
        for (feature, bit) in INSTRUCTIONS.iter().filter(|(feature, _)| executes(*feature)) {
            let model = Model::announcing(&table(&[*bit]));
            let nothing = Model::announcing(&table(&[]));
            let all = Model::new();
            for code in Code::values() {
                let needed = code.cpuid_features();
                let there = model.careful.form(code).is_some();
                if there && nothing.careful.form(code).is_none() {
                    let coprocessor = *feature == CpuidFeature::FPU && format!("{needed:?}").contains("FPU");
                    assert!(needed.contains(feature) || coprocessor, "{code:?} with {feature:?}");
                }
                if needed == [*feature] && all.careful.form(code).is_some() {
                    assert!(there, "{code:?} with {feature:?}");
                }
                assert_eq!(there, model.fast.form(code).is_some(), "{code:?}: both ways agree");
            }
        }
    }

    #[test]
    fn what_is_not_announced_is_what_it_was_before() {
        let (old, new) = (Model::announcing(&table(&[])), Model::new());
        for (bytes, before, now) in [
            (&[0xf3, 0x0f, 0xbc, 0xc1][..], Code::Bsf_r32_rm32, Code::Tzcnt_r32_rm32),
            (&[0xf3, 0x0f, 0xbd, 0xc1], Code::Bsr_r32_rm32, Code::Lzcnt_r32_rm32),
            (&[0xf3, 0x0f, 0x09], Code::Wbinvd, Code::Wbnoinvd),
            (&[0x9f], Code::INVALID, Code::Lahf),
        ] {
            assert_eq!((decoded(&old, bytes), decoded(&new, bytes)), (before, now));
        }
    }

    #[test]
    fn every_feature_with_rows_is_in_the_table_of_bits_or_needs_none() {
        use CpuidFeature::*;
        let all = Model::new();
        let unannounced = [CPUID, CET_IBT, MULTIBYTENOP, PAUSE, RDPMC, SVM, VMX];
        for code in Code::values().filter(|code| all.careful.form(*code).is_some()) {
            for feature in code.cpuid_features() {
                let has_bit = INSTRUCTIONS.iter().any(|(of, _)| of == feature);
                let old =
                    format!("{feature:?}").starts_with("INTEL") || matches!(feature, FPU287 | FPU287XL_ONLY | FPU387);
                assert!(
                    has_bit || old || unannounced.contains(feature),
                    "{feature:?} of {code:?}"
                );
            }
        }
    }
}

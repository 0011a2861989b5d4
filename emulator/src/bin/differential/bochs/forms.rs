//! Which encodings are compared with Bochs.

use std::collections::BTreeMap;

use iced_x86::{Code, CpuidFeature, EncodingKind, Mnemonic};
use reprise_emulator::Model;

use super::quirk::excluded;
use crate::form::{self, host_has};

/// What is compared and what is not.
pub struct Forms {
    /// Names.
    pub families: Vec<String>,
    /// Encodings, with the index of the family.
    pub codes: Vec<(Code, usize)>,
    /// Encodings that Bochs has and the emulator does not execute, by family.
    pub missing: BTreeMap<String, Vec<Code>>,
}

impl Forms {
    /// Those that the emulator and Bochs have and this processor has not; or all whose family or mnemonic is `filter`.
    pub fn new(filter: &str) -> Forms {
        let model = Model::new();
        let mut forms = Forms {
            families: Vec::new(),
            codes: Vec::new(),
            missing: BTreeMap::new(),
        };
        for code in Code::values() {
            let op_code = code.op_code();
            let features = code.cpuid_features();
            let is_wanted = op_code.is_instruction()
                && op_code.mode64()
                && features.iter().all(|feature| has(*feature))
                && excluded(code.mnemonic()).is_none();
            let name = family(code);
            let mnemonic = format!("{:?}", code.mnemonic());
            let is_asked_for = if filter.is_empty() {
                !features.iter().all(|feature| host_has(*feature))
            } else {
                name.contains(filter) || mnemonic.eq_ignore_ascii_case(filter)
            };
            if !is_wanted || !is_asked_for {
                continue;
            }
            if !model.supports(code) {
                forms.missing.entry(name).or_default().push(code);
                continue;
            }
            let family = forms.families.iter().position(|known| *known == name);
            let family = family.unwrap_or_else(|| {
                forms.families.push(name);
                forms.families.len() - 1
            });
            forms.codes.push((code, family));
        }
        forms
    }

    /// How many encodings each family has.
    pub fn counts(&self) -> impl Iterator<Item = (&str, usize)> {
        self.families.iter().enumerate().map(|(i, name)| {
            let count = self.codes.iter().filter(|(_, family)| *family == i).count();
            (name.as_str(), count)
        })
    }
}

/// By feature, not by vector length.
fn family(code: Code) -> String {
    if code.op_code().encoding() != EncodingKind::EVEX {
        return form::family(code);
    }
    let names: Vec<String> = code
        .cpuid_features()
        .iter()
        .filter(|feature| **feature != CpuidFeature::AVX512VL)
        .map(|feature| format!("{feature:?}").to_lowercase())
        .collect();
    names.join("+")
}

/// Vector instructions of the processor that Bochs is told to be (corei7_icelake_u).
fn has(feature: CpuidFeature) -> bool {
    use CpuidFeature::*;
    matches!(
        feature,
        SSE | SSE2
            | SSE3
            | SSSE3
            | SSE4_1
            | SSE4_2
            | AES
            | PCLMULQDQ
            | SHA
            | AVX
            | AVX2
            | FMA
            | F16C
            | BMI1
            | BMI2
            | GFNI
            | VAES
            | VPCLMULQDQ
            | AVX512F
            | AVX512BW
            | AVX512CD
            | AVX512DQ
            | AVX512VL
            | AVX512_IFMA
            | AVX512_VBMI
            | AVX512_VBMI2
            | AVX512_VNNI
            | AVX512_BITALG
            | AVX512_VPOPCNTDQ
    )
}

/// The reasons, with the instructions that they hold for.
pub fn exclusions() -> BTreeMap<&'static str, Vec<String>> {
    let mut reasons: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for mnemonic in Mnemonic::values() {
        if let Some(reason) = excluded(mnemonic) {
            reasons
                .entry(reason)
                .or_default()
                .push(format!("{mnemonic:?}").to_lowercase());
        }
    }
    reasons
}

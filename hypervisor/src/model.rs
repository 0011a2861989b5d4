//! Processor models: which instruction set extensions a guest is told of.
//!
//! # What a model is
//! A level of x86-64 (System V ABI, AMD64 supplement, "x86-64-v2" to "v4") with what commonly comes with it. A model announces
//! what it includes and what works here, and nothing else; one whose level does not work here is refused by the name of what
//! is missing. What is not announced is #UD in the guest.

use iced_x86::CpuidFeature::{self, *};

use crate::HypervisorError;

/// Which processor a guest sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum CpuModel {
    /// Everything that works here, but AVX-512 only if this host's processor has it: in software alone, a guest's libraries are
    /// faster without.
    #[default]
    Host,
    /// x86-64-v2: SSE4.2, POPCNT, CMPXCHG16B; and AES, PCLMULQDQ, RDRAND.
    V2,
    /// x86-64-v3: AVX2, FMA, F16C, BMI1, BMI2, LZCNT, MOVBE; and ADX, RDSEED, SHA, CLFLUSHOPT, CLWB.
    V3,
    /// x86-64-v4: AVX-512 F, BW, CD, DQ and VL.
    V4,
}

/// The extensions without which a processor is not of the level, beyond those of the level below.
const V2: &[CpuidFeature] = &[CMPXCHG16B, POPCNT, SSE3, SSSE3, SSE4_1, SSE4_2];
const V3: &[CpuidFeature] = &[XSAVE, AVX, AVX2, BMI1, BMI2, F16C, FMA, LZCNT, MOVBE];
const V4: &[CpuidFeature] = &[AVX512F, AVX512BW, AVX512CD, AVX512DQ, AVX512VL];

impl CpuModel {
    /// All of them, the smallest first.
    pub const ALL: [CpuModel; 4] = [CpuModel::V2, CpuModel::V3, CpuModel::V4, CpuModel::Host];

    /// Its name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            CpuModel::Host => "host",
            CpuModel::V2 => "v2",
            CpuModel::V3 => "v3",
            CpuModel::V4 => "v4",
        }
    }

    /// Whether the model has these instructions, should they work here.
    pub fn includes(self, feature: CpuidFeature) -> bool {
        let first = match feature {
            ADX | AVX | AVX2 | BMI1 | BMI2 | CLFLUSHOPT | CLWB | F16C | FMA | LZCNT | MOVBE | RDSEED | SHA => Self::V3,
            AVX512F | AVX512BW | AVX512CD | AVX512DQ | AVX512VL => Self::V4,
            GFNI | MOVDIR64B | MOVDIRI | PKU | RDPID | SERIALIZE | VAES | VPCLMULQDQ | WBNOINVD | XSAVES => Self::Host,
            _ => Self::V2,
        };
        self.rank() >= first.rank()
    }

    /// Whether it goes without these instructions on this host, although it includes them.
    pub(crate) fn leaves_out(self, feature: CpuidFeature) -> bool {
        self == Self::Host && V4.contains(&feature) && !is_x86_feature_detected!("avx512f")
    }

    /// Whether it has what is not part of any level, such as 57-bit addresses.
    pub(crate) fn has_everything(self) -> bool {
        self == Self::Host
    }

    fn rank(self) -> Option<usize> {
        Self::ALL.iter().position(|model| *model == self)
    }

    /// The extensions without which a processor is not of this level.
    fn level(self) -> impl Iterator<Item = CpuidFeature> {
        let parts: &[&[CpuidFeature]] = match self {
            Self::Host => &[],
            Self::V2 => &[V2],
            Self::V3 => &[V2, V3],
            Self::V4 => &[V2, V3, V4],
        };
        parts.iter().copied().flatten().copied()
    }

    /// Checks that the whole level works where `works` says what does.
    ///
    /// # Errors
    /// [`HypervisorError::CpuModel`] with the first extension that is missing.
    pub(crate) fn check(self, works: impl Fn(CpuidFeature) -> bool) -> Result<(), HypervisorError> {
        match self.level().find(|feature| !works(*feature)) {
            None => Ok(()),
            Some(missing) => Err(HypervisorError::CpuModel {
                model: self.name(),
                missing: format!("{missing:?}"),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use reprise_emulator::cpuid::INSTRUCTIONS;

    use super::*;

    #[test]
    fn each_model_has_what_the_one_below_has() {
        for pair in CpuModel::ALL.windows(2) {
            for (feature, _) in INSTRUCTIONS {
                assert!(
                    !pair[0].includes(*feature) || pair[1].includes(*feature),
                    "{feature:?} of {:?}",
                    pair[0]
                );
            }
        }
        assert!(
            INSTRUCTIONS
                .iter()
                .all(|(feature, _)| CpuModel::Host.includes(*feature))
        );
    }

    #[test]
    fn a_model_includes_its_level_and_not_the_next() {
        for model in CpuModel::ALL {
            assert!(model.level().all(|feature| model.includes(feature)), "{model:?}");
        }
        assert!(
            V3.iter()
                .all(|feature| *feature == XSAVE || !CpuModel::V2.includes(*feature))
        );
        assert!(V4.iter().all(|feature| !CpuModel::V3.includes(*feature)));
    }

    #[test]
    fn only_the_host_model_goes_without_what_the_host_lacks() {
        let is_there = is_x86_feature_detected!("avx512f");
        for (feature, _) in INSTRUCTIONS {
            assert!(!CpuModel::V4.leaves_out(*feature), "{feature:?}");
            let expected = !is_there && V4.contains(feature);
            assert_eq!(CpuModel::Host.leaves_out(*feature), expected, "{feature:?}");
        }
    }

    #[test]
    fn a_level_that_does_not_work_is_refused_by_what_is_missing() {
        let without = |missing| move |feature| feature != missing;
        for (model, feature) in [
            (CpuModel::V2, SSSE3),
            (CpuModel::V3, FMA),
            (CpuModel::V4, FMA),
            (CpuModel::V4, AVX512DQ),
        ] {
            let error = model.check(without(feature)).unwrap_err();
            assert!(error.to_string().contains(&format!("{feature:?}")), "{error}");
        }
        assert!(
            CpuModel::Host.check(|_| false).is_ok(),
            "the most that works is never too much"
        );
        assert!(CpuModel::V2.check(without(FMA)).is_ok());
    }
}

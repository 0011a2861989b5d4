//! x87, MMX, SSE and SSE2 beside the real processor.
//!
//! Every instruction that the decoder counts to those features is encoded with registers and memory operands, and executed
//! on random state (special values, rounding modes, masks, tags, stack positions) by the emulator and by the host. Everything
//! that FXSAVE saves, the general-purpose registers, the flags, the memory operand and the exception must come out equal.
//! The host being the reference, these tests are for hosts that are AMD's, whose undefined bits the emulator has.

mod cases;
mod evex;
mod guest;
mod native;
mod pointers;
mod state;
#[path = "../tier/mod.rs"]
mod tier;
mod xsave;

use iced_x86::{Code, CpuidFeature, EncodingKind, Mnemonic};
use reprise_emulator::Model;

use cases::{Random, encodings};
use guest::{Guest, Place};
use native::Native;
use state::{Masks, State};

/// Random states for each encoding.
const ROUNDS: u32 = 40;

/// Legacy encodings of these features that exist in 64-bit mode.
fn codes(features: &'static [CpuidFeature]) -> impl Iterator<Item = Code> {
    Code::values().filter(move |code| {
        let own = code.cpuid_features();
        code.encoding() == EncodingKind::Legacy
            && code.op_code().mode64()
            // On general-purpose registers.
            && code.mnemonic() != Mnemonic::Crc32
            && own.iter().any(|feature| features.contains(feature))
            && own
                .iter()
                .all(|feature| features.contains(feature) || *feature == CpuidFeature::CMOV)
    })
}

/// Instructions that save or load pointers and whole states.
fn is_state(code: Code) -> bool {
    use Code::*;
    matches!(
        code,
        Fldenv_m14byte
            | Fldenv_m28byte
            | Fnstenv_m14byte
            | Fnstenv_m28byte
            | Fstenv_m14byte
            | Fstenv_m28byte
            | Fnsave_m94byte
            | Fnsave_m108byte
            | Fsave_m94byte
            | Fsave_m108byte
            | Frstor_m94byte
            | Frstor_m108byte
    )
}

fn is_amd() -> bool {
    let leaf = core::arch::x86_64::__cpuid(0);
    leaf.ebx == u32::from_le_bytes(*b"Auth")
}

/// Runs every encoding of the features on both, but for those that save and load states, and LDMXCSR, which a random
/// operand is #GP for.
fn compare(features: &'static [CpuidFeature], masks: Masks) {
    compare_codes(
        codes(features).filter(|code| !is_state(*code) && *code != Code::Ldmxcsr_m32),
        masks,
        false,
    );
}

/// Runs encodings on both.
fn compare_codes(codes: impl Iterator<Item = Code>, masks: Masks, pointers: bool) {
    if !is_amd() {
        return;
    }
    let mut guest = Guest::new();
    let mut native = Native::new();
    let mut random = Random::new(0x5eed_0000 + masks as u64);
    let mut seen = 0;
    for code in codes {
        for _ in 0..ROUNDS {
            for (bytes, instruction) in encodings(code, &mut random) {
                let before = State::random(&mut random, masks);
                let expected = native.run(&bytes, &before);
                for place in [Place::Ram, Place::Device] {
                    let outcome = guest.run(&bytes, &before, place);
                    let differences = outcome.differences(&expected, pointers);
                    assert!(
                        differences.is_empty(),
                        "{instruction} ({code:?}, {place:?})\n{before}\n{differences}"
                    );
                }
                seen += 1;
            }
        }
    }
    assert!(seen >= 3 * ROUNDS, "only {seen} cases");
}

/// Runs VEX encodings on both, but for what moves under a mask, and MXCSR.
fn compare_vex(features: &'static [CpuidFeature], masks: Masks) {
    let codes = Code::values().filter(|code| {
        use Mnemonic::*;
        let is_other = matches!(
            code.mnemonic(),
            Vldmxcsr | Vstmxcsr | Vmaskmovdqu | Vmaskmovps | Vmaskmovpd
        );
        code.encoding() == EncodingKind::VEX
            && !is_other
            && code.op_code().mode64()
            && code.cpuid_features().iter().all(|feature| features.contains(feature))
    });
    compare_codes(codes, masks, false);
}

const FMA: &[CpuidFeature] = &[CpuidFeature::FMA];
const F16C: &[CpuidFeature] = &[CpuidFeature::F16C];
const AVX: &[CpuidFeature] = &[CpuidFeature::AVX];
const X87: &[CpuidFeature] = &[CpuidFeature::FPU, CpuidFeature::FPU287, CpuidFeature::FPU387];
const MMX: &[CpuidFeature] = &[CpuidFeature::MMX];
const SSE: &[CpuidFeature] = &[CpuidFeature::SSE];
const SSE2: &[CpuidFeature] = &[CpuidFeature::SSE2];

const SSE3: &[CpuidFeature] = &[CpuidFeature::SSE3];
const FISTTP: &[CpuidFeature] = &[CpuidFeature::FPU, CpuidFeature::SSE3];
const SSSE3: &[CpuidFeature] = &[CpuidFeature::SSSE3];
const SSE4: &[CpuidFeature] = &[CpuidFeature::SSE4_1, CpuidFeature::SSE4_2];
const CRYPTOGRAPHY: &[CpuidFeature] = &[CpuidFeature::AES, CpuidFeature::PCLMULQDQ, CpuidFeature::SHA];

#[test]
fn x87_computes_as_the_processor_does() {
    compare(X87, Masks::All);
}

#[test]
fn x87_responds_to_unmasked_exceptions_as_the_processor_does() {
    compare(X87, Masks::Some);
}

#[test]
fn mmx_computes_as_the_processor_does() {
    compare(MMX, Masks::All);
}

#[test]
fn sse_computes_as_the_processor_does() {
    compare(SSE, Masks::All);
}

#[test]
fn sse_raises_what_the_processor_raises() {
    compare(SSE, Masks::Some);
}

#[test]
fn sse2_computes_as_the_processor_does() {
    compare(SSE2, Masks::All);
}

#[test]
fn sse2_raises_what_the_processor_raises() {
    compare(SSE2, Masks::Some);
}

#[test]
fn sse3_computes_and_raises_as_the_processor_does() {
    compare(SSE3, Masks::All);
    compare(SSE3, Masks::Some);
}

#[test]
fn fisttp_computes_and_raises_as_the_processor_does() {
    for masks in [Masks::All, Masks::Some, Masks::Pending] {
        let fisttp = codes(FISTTP).filter(|code| code.mnemonic() == Mnemonic::Fisttp);
        compare_codes(fisttp, masks, false);
    }
}

#[test]
fn ssse3_computes_as_the_processor_does() {
    compare(SSSE3, Masks::All);
    compare(SSSE3, Masks::Pending);
}

#[test]
fn sse4_computes_and_raises_as_the_processor_does() {
    compare(SSE4, Masks::All);
    compare(SSE4, Masks::Some);
}

#[test]
fn cryptography_computes_as_the_processor_does() {
    compare(CRYPTOGRAPHY, Masks::All);
}

#[test]
fn vex_forms_compute_and_raise_as_the_processor_does() {
    for features in [FMA, F16C, AVX] {
        if features.iter().all(|feature| native::has(*feature)) {
            compare_vex(features, Masks::All);
            compare_vex(features, Masks::Some);
        }
    }
}

#[test]
fn pending_x87_exceptions_are_reported_as_the_processor_does() {
    compare(X87, Masks::Pending);
    compare(MMX, Masks::Pending);
}

#[test]
fn pending_x87_exceptions_do_not_concern_sse() {
    compare(SSE, Masks::Pending);
    compare(SSE2, Masks::Pending);
}

#[test]
fn x87_states_are_saved_and_loaded_as_the_processor_does() {
    for masks in [Masks::All, Masks::Some, Masks::Pending] {
        compare_codes(codes(X87).filter(|code| is_state(*code)), masks, true);
    }
}

#[test]
fn no_instruction_of_the_features_is_missing() {
    let all: Vec<CpuidFeature> = [
        X87,
        MMX,
        SSE,
        SSE2,
        SSE3,
        SSSE3,
        SSE4,
        CRYPTOGRAPHY,
        &[CpuidFeature::FXSR, CpuidFeature::XSAVE],
    ]
    .concat();
    let extra = [CpuidFeature::XSAVEOPT, CpuidFeature::XSAVEC, CpuidFeature::XSAVES];
    let features: &'static [CpuidFeature] = Vec::leak([&all[..], &extra].concat());
    let mut guest = Guest::new();
    let mut random = Random::new(1);
    // XGETBV and XSETBV are among the system instructions, and XRSTORS refuses an area of zeros.
    let elsewhere = [Code::Xgetbv, Code::Xsetbv, Code::Xrstors_mem, Code::Xrstors64_mem];
    for code in codes(features).filter(|code| !elsewhere.contains(code)) {
        let (bytes, instruction) = encodings(code, &mut random).swap_remove(0);
        assert!(!guest.is_undefined(&bytes), "{instruction} ({code:?}) is #UD");
    }
}

#[test]
fn no_encoding_of_x87_is_missing_in_any_mode() {
    let model = Model::new();
    let features = [&[CpuidFeature::FPU287XL_ONLY], X87, FISTTP].concat();
    let missing: Vec<Code> = Code::values()
        .filter(|code| code.encoding() == EncodingKind::Legacy)
        // What begins with FWAIT is two instructions, and FRSTPM one of the 287 alone.
        .filter(|code| !code.op_code().fwait() && *code != Code::Frstpm)
        .filter(|code| !code.cpuid_features().is_empty())
        .filter(|code| code.cpuid_features().iter().all(|feature| features.contains(feature)))
        .filter(|code| !model.supports(*code))
        .collect();
    assert_eq!(missing, []);
}

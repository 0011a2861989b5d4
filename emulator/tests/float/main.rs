//! x87, MMX, SSE and SSE2 beside the real processor.
//!
//! Every instruction that the decoder counts to those features is encoded with registers and memory operands, and executed
//! on random state (special values, rounding modes, masks, tags, stack positions) by the emulator and by the host. Everything
//! that FXSAVE saves, the general-purpose registers, the flags, the memory operand and the exception must come out equal.
//! The host being the reference, these tests are for hosts that are AMD's, whose undefined bits the emulator has.

mod cases;
mod guest;
mod native;
mod state;

use iced_x86::{Code, CpuidFeature, EncodingKind};

use cases::{Random, encodings};
use guest::{Guest, Place};
use native::Native;
use state::State;

/// Random states for each encoding.
const ROUNDS: u32 = 60;

/// Legacy encodings of these features that exist in 64-bit mode.
fn codes(features: &'static [CpuidFeature]) -> impl Iterator<Item = Code> {
    Code::values().filter(move |code| {
        let own = code.cpuid_features();
        code.encoding() == EncodingKind::Legacy
            && code.op_code().mode64()
            && own.iter().any(|feature| features.contains(feature))
            && own
                .iter()
                .all(|feature| features.contains(feature) || *feature == CpuidFeature::CMOV)
    })
}

/// Instructions with tests of their own: they save or load pointers and whole states.
fn is_state(code: Code) -> bool {
    use Code::*;
    matches!(
        code,
        Fldenv_m14byte
            | Fldenv_m28byte
            | Fnstenv_m14byte
            | Fnstenv_m28byte
            | Fnsave_m94byte
            | Fnsave_m108byte
            | Frstor_m94byte
            | Frstor_m108byte
            | Ldmxcsr_m32
    )
}

fn is_amd() -> bool {
    let leaf = core::arch::x86_64::__cpuid(0);
    leaf.ebx == u32::from_le_bytes(*b"Auth")
}

/// Runs every encoding of the features on both, with masks as `unmask` says.
fn compare(features: &'static [CpuidFeature], unmask: bool) {
    if !is_amd() {
        return;
    }
    let mut guest = Guest::new();
    let mut native = Native::new();
    let mut random = Random::new(0x5eed_0000 + u64::from(unmask));
    let mut seen = 0;
    for code in codes(features).filter(|code| !is_state(*code)) {
        for _ in 0..ROUNDS {
            for (bytes, instruction) in encodings(code, &mut random) {
                let before = State::random(&mut random, unmask);
                let expected = native.run(&bytes, &before);
                for place in [Place::Ram, Place::Device] {
                    let outcome = guest.run(&bytes, &before, place);
                    let differences = outcome.differences(&expected);
                    assert!(
                        differences.is_empty(),
                        "{instruction} ({code:?}, {place:?})\nbefore {before:x?}\n{differences}"
                    );
                }
                seen += 1;
            }
        }
    }
    assert!(seen > 100 * ROUNDS / 4, "only {seen} cases");
}

const X87: &[CpuidFeature] = &[CpuidFeature::FPU, CpuidFeature::FPU287, CpuidFeature::FPU387];
const MMX: &[CpuidFeature] = &[CpuidFeature::MMX];
const SSE: &[CpuidFeature] = &[CpuidFeature::SSE];
const SSE2: &[CpuidFeature] = &[CpuidFeature::SSE2];

#[test]
fn x87_computes_as_the_processor_does() {
    compare(X87, false);
}

#[test]
fn x87_responds_to_unmasked_exceptions_as_the_processor_does() {
    compare(X87, true);
}

#[test]
fn mmx_computes_as_the_processor_does() {
    compare(MMX, false);
}

#[test]
fn sse_computes_as_the_processor_does() {
    compare(SSE, false);
}

#[test]
fn sse_raises_what_the_processor_raises() {
    compare(SSE, true);
}

#[test]
fn sse2_computes_as_the_processor_does() {
    compare(SSE2, false);
}

#[test]
fn sse2_raises_what_the_processor_raises() {
    compare(SSE2, true);
}

#[test]
fn no_instruction_of_the_features_is_missing() {
    let all: Vec<CpuidFeature> = [X87, MMX, SSE, SSE2, &[CpuidFeature::FXSR, CpuidFeature::XSAVE]].concat();
    let extra = [CpuidFeature::XSAVEOPT, CpuidFeature::XSAVEC];
    let features: &'static [CpuidFeature] = Vec::leak([&all[..], &extra].concat());
    let mut guest = Guest::new();
    let mut random = Random::new(1);
    for code in codes(features) {
        let (bytes, instruction) = encodings(code, &mut random).swap_remove(0);
        assert!(!guest.is_undefined(&bytes), "{instruction} ({code:?}) is #UD");
    }
}

//! EVEX forms of floating point. No processor at hand has them, so that they are compared with what is compared with the
//! processor: forms of 128 and 256 bits with the VEX form of the same name, a vector of 512 bits with its quarters, an
//! instruction under an opmask with its elements one by one, embedded rounding with that of MXCSR.

use iced_x86::{
    Code, CpuidFeature, Encoder, EncodingKind, Instruction, Mnemonic, OpCodeInfo, OpCodeOperandKind, OpKind, Register,
    RoundingControl,
};
use reprise_emulator::Model;
use reprise_emulator::cpu::Cpu;

use crate::cases::Random;
use crate::guest::Guest;

const ROUNDS: u32 = 6;
const MASKS: u32 = 0x1f80;
const FLAGS: u32 = 0x3f;

const FEATURES: [CpuidFeature; 3] = [CpuidFeature::AVX512F, CpuidFeature::AVX512VL, CpuidFeature::AVX512DQ];

/// What mnemonics of floating-point arithmetic begin with.
const NAMES: [&str; 22] = [
    "Vadd",
    "Vsub",
    "Vmul",
    "Vdiv",
    "Vmin",
    "Vmax",
    "Vsqrt",
    "Vcvt",
    "Vcmp",
    "Vfmadd",
    "Vfmsub",
    "Vfnm",
    "Vgetexp",
    "Vgetmant",
    "Vscalef",
    "Vrange",
    "Vreduce",
    "Vrndscale",
    "Vfixupimm",
    "Vfpclass",
    "Vrcp14",
    "Vrsqrt14",
];

/// Encodings of floating-point arithmetic.
fn codes(encoding: EncodingKind) -> impl Iterator<Item = Code> {
    Code::values().filter(move |code| {
        let name = format!("{:?}", code.mnemonic());
        let features = code.cpuid_features();
        let is_ours = match encoding {
            EncodingKind::EVEX => features.iter().all(|feature| FEATURES.contains(feature)),
            _ => [&[CpuidFeature::AVX][..], &[CpuidFeature::FMA], &[CpuidFeature::F16C]].contains(&features),
        };
        code.encoding() == encoding && is_ours && NAMES.iter().any(|start| name.starts_with(start))
    })
}

/// Registers, of which instructions use those that `Choice` names, and the memory operand.
#[derive(Clone)]
struct State {
    vectors: [[u64; 8]; 32],
    opmask: u64,
    mxcsr: u32,
    data: [u8; 64],
}

impl State {
    fn random(random: &mut Random, all_masked: bool) -> State {
        let mut vectors = [[0; 8]; 32];
        let mut data = [0; 64];
        for vector in &mut vectors {
            *vector = quadwords(random);
        }
        for (part, value) in data.chunks_exact_mut(8).zip(quadwords(random)) {
            part.copy_from_slice(&value.to_le_bytes());
        }
        let masks = if all_masked {
            MASKS
        } else {
            random.next() as u32 & MASKS
        };
        State {
            vectors,
            opmask: random.next(),
            mxcsr: random.next() as u32 & random.next() as u32 & 0xe040 | masks,
            data,
        }
    }
}

fn quadwords(random: &mut Random) -> [u64; 8] {
    let mut quadwords = [0; 8];
    for pair in quadwords.chunks_exact_mut(2) {
        let value = u128::from_le_bytes(random.vector());
        pair.copy_from_slice(&[value as u64, (value >> 64) as u64]);
    }
    quadwords
}

/// What an instruction leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
struct After {
    /// The destination, in memory order.
    bytes: [u8; 64],
    mxcsr: u32,
    flags: u64,
    trapped: bool,
}

/// The numbers of an instruction's registers.
#[derive(Debug, Clone, Copy)]
struct Choice {
    vectors: [u32; 4],
    memory: bool,
    imm: u8,
}

impl Choice {
    fn random(random: &mut Random, below: u64, memory: bool) -> Choice {
        Choice {
            vectors: core::array::from_fn(|_| (random.next() % below) as u32),
            memory,
            imm: random.next() as u8,
        }
    }
}

fn vector_size(kind: OpCodeOperandKind) -> usize {
    use OpCodeOperandKind::*;
    match kind {
        xmm_reg | xmm_rm | xmm_vvvv | xmm_or_mem => 16,
        ymm_reg | ymm_rm | ymm_vvvv | ymm_or_mem => 32,
        zmm_reg | zmm_rm | zmm_vvvv | zmm_or_mem => 64,
        _ => 0,
    }
}

fn instruction(code: Code, choice: Choice) -> Option<Instruction> {
    use OpCodeOperandKind::*;
    let mut instruction = Instruction::new();
    instruction.set_code(code);
    let mut has_memory = false;
    for (i, kind) in (0..).zip(code.op_code().op_kinds()) {
        let can_be_memory = matches!(
            kind,
            mem | xmm_or_mem | ymm_or_mem | zmm_or_mem | r32_or_mem | r64_or_mem
        );
        if can_be_memory && choice.memory {
            has_memory = true;
            instruction.set_op_kind(i, OpKind::Memory);
            instruction.set_memory_base(Register::RSI);
            continue;
        }
        if *kind == imm8 {
            instruction.set_op_kind(i, OpKind::Immediate8);
            instruction.set_immediate8(choice.imm);
            continue;
        }
        let number = choice.vectors[i as usize];
        let register = match vector_size(*kind) {
            16 => Register::XMM0 + number,
            32 => Register::YMM0 + number,
            64 => Register::ZMM0 + number,
            _ => match kind {
                k_reg => Register::K2,
                r32_reg | r32_rm | r32_or_mem => Register::EAX + number % 4,
                r64_reg | r64_rm | r64_or_mem => Register::RAX + number % 4,
                other => panic!("{code:?}: operand {other:?}"),
            },
        };
        instruction.set_op_kind(i, OpKind::Register);
        instruction.set_op_register(i, register);
    }
    (has_memory == choice.memory).then_some(instruction)
}

fn encode(instruction: &Instruction) -> Vec<u8> {
    let mut encoder = Encoder::new(64);
    encoder
        .encode(instruction, 0)
        .unwrap_or_else(|error| panic!("{:?}: {error}", instruction.code()));
    encoder.take_buffer()
}

struct Machine {
    guest: Guest,
}

impl Machine {
    fn new() -> Machine {
        Machine { guest: Guest::new() }
    }

    fn run(&mut self, instruction: &Instruction, before: &State) -> After {
        let trapped = self.guest.faults(&encode(instruction), &before.data, |cpu: &mut Cpu| {
            cpu.xcr0 = 0xe7;
            cpu.fpu.vectors = before.vectors;
            cpu.fpu.k[1] = before.opmask;
            cpu.fpu.k[2] = 0x5555_5555_5555_5555;
            cpu.fpu.mxcsr = before.mxcsr;
            for register in 0..4 {
                cpu.gpr.set(register, before.vectors[usize::from(register)][1]);
            }
        });
        let cpu = self.guest.cpu();
        let mut bytes = [0; 64];
        let register = instruction.op0_register();
        if instruction.op0_kind() == OpKind::Memory {
            bytes.copy_from_slice(&self.guest.data()[..64]);
        } else if register == Register::K2 {
            bytes[..8].copy_from_slice(&cpu.fpu.k[2].to_le_bytes());
        } else if register.is_vector_register() {
            for (part, value) in bytes.chunks_exact_mut(8).zip(cpu.fpu.vectors[register.number()]) {
                part.copy_from_slice(&value.to_le_bytes());
            }
        } else {
            bytes[..8].copy_from_slice(&cpu.gpr.get(register.number() as u8).to_le_bytes());
        }
        After {
            bytes,
            mxcsr: cpu.fpu.mxcsr,
            flags: cpu.flags.bits() & crate::state::STATUS,
            trapped,
        }
    }
}

/// The VEX form that an EVEX form of 128 or 256 bits has, with the same operands.
fn vex_form(evex: &OpCodeInfo) -> Option<Code> {
    let mnemonic = match evex.mnemonic() {
        Mnemonic::Vrndscaleps => Mnemonic::Vroundps,
        Mnemonic::Vrndscalepd => Mnemonic::Vroundpd,
        Mnemonic::Vrndscaless => Mnemonic::Vroundss,
        Mnemonic::Vrndscalesd => Mnemonic::Vroundsd,
        mnemonic => mnemonic,
    };
    codes(EncodingKind::VEX)
        .chain(Code::values().filter(|code| format!("{code:?}").starts_with("VEX_Vround")))
        .chain([
            Code::VEX_Vcomiss_xmm_xmmm32,
            Code::VEX_Vcomisd_xmm_xmmm64,
            Code::VEX_Vucomiss_xmm_xmmm32,
            Code::VEX_Vucomisd_xmm_xmmm64,
        ])
        .find(|code| code.mnemonic() == mnemonic && code.op_code().op_kinds() == evex.op_kinds())
}

/// VCOMISS and its kin, which set flags.
fn flag_codes() -> [Code; 4] {
    [
        Code::EVEX_Vcomiss_xmm_xmmm32_sae,
        Code::EVEX_Vcomisd_xmm_xmmm64_sae,
        Code::EVEX_Vucomiss_xmm_xmmm32_sae,
        Code::EVEX_Vucomisd_xmm_xmmm64_sae,
    ]
}

#[test]
fn evex_forms_compute_and_raise_as_vex_forms() {
    let (mut machine, mut random) = (Machine::new(), Random::new(11));
    let mut compared = 0;
    for code in codes(EncodingKind::EVEX).chain(flag_codes()) {
        let Some(vex) = vex_form(code.op_code()) else { continue };
        compared += 1;
        for round in 0..4 * ROUNDS {
            for memory in [false, true] {
                let before = State::random(&mut random, round % 2 == 0);
                let mut choice = Choice::random(&mut random, 16, memory);
                if format!("{vex:?}").starts_with("VEX_Vround") {
                    choice.imm &= 15;
                }
                let (Some(evex_form), Some(vex_form)) = (instruction(code, choice), instruction(vex, choice)) else {
                    continue;
                };
                let (evex, vex) = (machine.run(&evex_form, &before), machine.run(&vex_form, &before));
                assert_eq!(evex, vex, "{evex_form} of {:#x}", before.mxcsr);
            }
        }
    }
    assert!(compared > 150, "{compared}");
}

/// The form of 128 bits of an EVEX form of 512 bits.
fn quarter_form(code: Code) -> Option<Code> {
    let vectors = |code: Code| {
        code.op_code()
            .op_kinds()
            .iter()
            .map(|kind| vector_size(*kind) != 0)
            .collect::<Vec<_>>()
    };
    codes(EncodingKind::EVEX).find(|short| {
        short.mnemonic() == code.mnemonic()
            && short.op_code().op_kinds().iter().all(|kind| vector_size(*kind) <= 16)
            && vectors(*short) == vectors(code)
    })
}

#[test]
fn a_vector_is_its_quarters() {
    let (mut machine, mut random) = (Machine::new(), Random::new(12));
    let mut compared = 0;
    for code in codes(EncodingKind::EVEX) {
        let sizes: Vec<usize> = code
            .op_code()
            .op_kinds()
            .iter()
            .map(|kind| vector_size(*kind))
            .collect();
        if !sizes.contains(&64) {
            continue;
        }
        let short = quarter_form(code).unwrap_or_else(|| panic!("{code:?} has no form of 128 bits"));
        compared += 1;
        // Bytes of a quarter of the sources and the destination; of an opmask, bits.
        let source = sizes[1..].iter().copied().filter(|size| *size != 0).min().unwrap_or(64) / 4;
        let target = sizes[0] / 4;
        for _ in 0..ROUNDS {
            let before = State::random(&mut random, true);
            let mut choice = Choice::random(&mut random, 32, false);
            choice.vectors = [1, 2, 3, 4];
            let long = machine.run(&instruction(code, choice).expect("registers"), &before);
            let mut mxcsr = before.mxcsr;
            let mut bits = 0;
            for quarter in 0..4 {
                let mut part = before.clone();
                for (vector, size) in part.vectors.iter_mut().skip(1).zip([target, source, source, source]) {
                    let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
                    for (value, bytes) in vector.iter_mut().zip(bytes[quarter * size..].chunks_exact(8)).take(2) {
                        *value = u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
                    }
                }
                let after = machine.run(&instruction(short, choice).expect("registers"), &part);
                mxcsr |= after.mxcsr;
                if target == 0 {
                    let elements = 16 / element(code);
                    bits |= u64::from(after.bytes[0]) << (quarter * elements);
                } else {
                    let bytes = &long.bytes[quarter * target..(quarter + 1) * target];
                    assert_eq!(bytes, &after.bytes[..target], "{code:?} and {short:?}, {quarter}");
                }
            }
            assert_eq!(long.mxcsr, mxcsr, "{code:?}");
            if target == 0 {
                assert_eq!(long.bytes[..8], bits.to_le_bytes(), "{code:?}");
            }
        }
    }
    assert!(compared > 90, "{compared}");
}

/// Bytes of an element of what is compared or classified.
fn element(code: Code) -> usize {
    if format!("{:?}", code.mnemonic()).ends_with("ps") {
        4
    } else {
        8
    }
}

/// Whether the form can have an opmask, and its encoding with one.
fn masked(code: Code, choice: Choice, zeroing: bool) -> Option<Instruction> {
    let info = code.op_code();
    let mut instruction = instruction(code, choice)?;
    if !info.can_use_op_mask_register() || zeroing && !info.can_use_zeroing_masking() {
        return None;
    }
    if zeroing && instruction.op0_kind() == OpKind::Memory {
        return None;
    }
    instruction.set_op_mask(Register::K1);
    instruction.set_zeroing_masking(zeroing);
    Some(instruction)
}

#[test]
fn an_opmask_selects_elements_which_compute_and_raise_alone() {
    let (mut machine, mut random) = (Machine::new(), Random::new(13));
    let mut compared = 0;
    for code in codes(EncodingKind::EVEX) {
        for round in 0..ROUNDS {
            let memory = round % 2 != 0;
            let choice = Choice::random(&mut random, 32, memory);
            let Some(merging) = masked(code, choice, false) else {
                continue;
            };
            compared += 1;
            // Bits that are not selected become zero.
            let is_opmask = merging.op0_register() == Register::K2;
            let all_masked = round < ROUNDS / 2;
            let mut before = State::random(&mut random, all_masked);
            let whole = machine.run(&instruction(code, choice).expect("as with an opmask"), &before);
            let opmask = before.opmask & 0xffff;
            let mut with = |instruction: &Instruction, opmask| {
                before.opmask = opmask;
                machine.run(instruction, &before)
            };
            let none = with(&merging, 0);
            assert!(!none.trapped, "{merging}");
            let zeroing = masked(code, choice, true);
            let (mut selected, mut all) = (none.clone(), none.clone());
            let mut zeroes = zeroing.map(|zeroing| with(&zeroing, 0));
            for i in 0..16 {
                let one = with(&merging, 1 << i);
                let add = |sum: &mut After| {
                    for ((byte, old), new) in sum.bytes.iter_mut().zip(none.bytes).zip(one.bytes) {
                        if is_opmask {
                            *byte |= new;
                        } else if old != new {
                            *byte = new;
                        }
                    }
                    sum.mxcsr |= one.mxcsr;
                    sum.trapped |= one.trapped;
                };
                add(&mut all);
                if opmask >> i & 1 != 0 {
                    add(&mut selected);
                }
                if let (Some(zeroing), Some(zeroes)) = (&zeroing, &mut zeroes) {
                    let alone = with(zeroing, 1 << i);
                    assert_eq!((alone.mxcsr, alone.trapped), (one.mxcsr, one.trapped), "{zeroing} {i}");
                    for ((byte, zeroed), merged) in zeroes.bytes.iter_mut().zip(alone.bytes).zip(one.bytes) {
                        assert!(zeroed == 0 || zeroed == merged, "{zeroing} {i}");
                        *byte |= zeroed;
                    }
                }
            }
            let outcome = with(&merging, opmask);
            assert_eq!(outcome.trapped, selected.trapped, "{merging} {opmask:#x}");
            assert_eq!(whole.trapped, all.trapped, "{merging}");
            if !whole.trapped && all_masked {
                // Elements of the whole instruction are not merged, but are those of the instruction under an opmask of ones.
                assert_eq!(whole.mxcsr, all.mxcsr, "{merging}");
                if let Some(zeroes) = zeroes {
                    assert_eq!(whole.bytes, zeroes.bytes, "{merging}");
                }
            }
            if !outcome.trapped {
                assert_eq!(outcome.bytes, selected.bytes, "{merging} {opmask:#x}");
                assert_eq!(outcome.mxcsr, selected.mxcsr, "{merging} {opmask:#x}");
            }
        }
    }
    assert!(compared > 1000, "{compared}");
}

#[test]
fn embedded_rounding_rounds_and_raises_nothing() {
    let (mut machine, mut random) = (Machine::new(), Random::new(14));
    let mut compared = 0;
    for code in codes(EncodingKind::EVEX) {
        if !code.op_code().can_use_rounding_control() {
            continue;
        }
        for (number, control) in (0..).zip([
            RoundingControl::RoundToNearest,
            RoundingControl::RoundDown,
            RoundingControl::RoundUp,
            RoundingControl::RoundTowardZero,
        ]) {
            for _ in 0..ROUNDS {
                let choice = Choice::random(&mut random, 32, false);
                let mut before = State::random(&mut random, false);
                let plain = instruction(code, choice).expect("registers");
                let mut rounding = plain;
                rounding.set_rounding_control(control);
                let outcome = machine.run(&rounding, &before);
                assert_eq!((outcome.mxcsr, outcome.trapped), (before.mxcsr, false), "{rounding}");
                before.mxcsr = before.mxcsr & !0x6000 | MASKS | number << 13;
                assert_eq!(outcome.bytes, machine.run(&plain, &before).bytes, "{rounding}");
                compared += 1;
            }
        }
    }
    assert!(compared > 2000, "{compared}");
}

#[test]
fn suppressed_exceptions_change_nothing_but_the_flags() {
    let (mut machine, mut random) = (Machine::new(), Random::new(15));
    let mut compared = 0;
    for code in codes(EncodingKind::EVEX).chain(flag_codes()) {
        if !code.op_code().can_suppress_all_exceptions() {
            continue;
        }
        for _ in 0..2 * ROUNDS {
            let choice = Choice::random(&mut random, 32, false);
            let mut before = State::random(&mut random, false);
            let plain = instruction(code, choice).expect("registers");
            let mut silent = plain;
            silent.set_suppress_all_exceptions(true);
            let outcome = machine.run(&silent, &before);
            assert_eq!((outcome.mxcsr, outcome.trapped), (before.mxcsr, false), "{silent}");
            before.mxcsr |= MASKS | FLAGS;
            let plain = machine.run(&plain, &before);
            assert_eq!((outcome.bytes, outcome.flags), (plain.bytes, plain.flags), "{silent}");
            compared += 1;
        }
    }
    assert!(compared > 500, "{compared}");
}

#[test]
fn an_element_in_memory_stands_for_all() {
    let (mut machine, mut random) = (Machine::new(), Random::new(16));
    let mut compared = 0;
    for code in codes(EncodingKind::EVEX) {
        let size = code.op_code().broadcast_memory_size().size();
        if size == 0 {
            continue;
        }
        for round in 0..ROUNDS {
            let choice = Choice::random(&mut random, 32, true);
            let mut before = State::random(&mut random, round % 2 == 0);
            let plain = instruction(code, choice).expect("memory");
            let mut broadcast = plain;
            broadcast.set_is_broadcast(true);
            let outcome = machine.run(&broadcast, &before);
            for i in 1..64 / size {
                before.data.copy_within(..size, i * size);
            }
            assert_eq!(outcome, machine.run(&plain, &before), "{broadcast}");
            compared += 1;
        }
    }
    assert!(compared > 500, "{compared}");
}

#[test]
fn no_encoding_of_floating_point_is_missing() {
    let model = Model::new();
    let codes = codes(EncodingKind::EVEX)
        .chain(codes(EncodingKind::VEX))
        .chain(flag_codes());
    let missing: Vec<Code> = codes.filter(|code| !model.supports(*code)).collect();
    assert_eq!(missing, []);
}

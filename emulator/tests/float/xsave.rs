//! FXSAVE, FXRSTOR and the XSAVE family (SDM Vol. 1, Managing State Using the XSAVE Feature Set).

use reprise_emulator::Cpu;
use reprise_emulator::cpu::fpu::{CONTROL_INIT, F80};
use reprise_emulator::cpu::{Attributes, Cr0, Cr4, Seg};

use crate::cases::Random;
use crate::guest::{Guest, Place};
use crate::is_amd;
use crate::native::Native;
use crate::state::{DATA, Masks, State};

const FXSAVE: &[u8] = &[0x0f, 0xae, 0x06];
const FXSAVE64: &[u8] = &[0x48, 0x0f, 0xae, 0x06];
const FXRSTOR: &[u8] = &[0x0f, 0xae, 0x0e];
const FXRSTOR64: &[u8] = &[0x48, 0x0f, 0xae, 0x0e];
const XSAVE: &[u8] = &[0x0f, 0xae, 0x26];
const XSAVE64: &[u8] = &[0x48, 0x0f, 0xae, 0x26];
const XSAVEOPT64: &[u8] = &[0x48, 0x0f, 0xae, 0x36];
const XSAVEC: &[u8] = &[0x0f, 0xc7, 0x26];
const XSAVEC64: &[u8] = &[0x48, 0x0f, 0xc7, 0x26];
const XRSTOR: &[u8] = &[0x0f, 0xae, 0x2e];
const XRSTOR64: &[u8] = &[0x48, 0x0f, 0xae, 0x2e];
const LDMXCSR: &[u8] = &[0x0f, 0xae, 0x16];

const COMPACTED: u64 = 1 << 63;
/// Where the header begins, and in it XCOMP_BV and what is reserved.
const HEADER: usize = 512;

/// A legal area: a random state of the legacy region and a header with these fields.
fn area(random: &mut Random, xstate: u64, xcomp: u64) -> [u8; DATA] {
    let mut data = [0; DATA];
    data[..512].copy_from_slice(&State::random(random, Masks::Pending).fx);
    data[HEADER..HEADER + 8].copy_from_slice(&xstate.to_le_bytes());
    data[HEADER + 8..HEADER + 16].copy_from_slice(&xcomp.to_le_bytes());
    data
}

#[test]
fn states_are_saved_and_restored_as_the_processor_does() {
    if !is_amd() || !std::arch::is_x86_feature_detected!("xsavec") {
        return;
    }
    let mut guest = Guest::new();
    let mut native = Native::new();
    let mut random = Random::new(7);
    for instruction in [
        FXSAVE, FXSAVE64, FXRSTOR, FXRSTOR64, XSAVE, XSAVE64, XSAVEOPT64, XSAVEC, XSAVEC64, XRSTOR, XRSTOR64,
    ] {
        for round in 0..200 {
            let mut before = State::random(&mut random, Masks::Pending);
            // RFBM in EDX:EAX.
            before.gpr[0] = round & 3;
            before.gpr[2] = 0;
            let (xstate, xcomp) = match random.next() % 8 {
                0..4 => (random.next() & 3, 0),
                4 => (1, COMPACTED | 1),
                5 => (2, COMPACTED | 3),
                6 => (0, COMPACTED | 2),
                _ => (3, COMPACTED | 3),
            };
            before.data = area(&mut random, xstate, xcomp);
            let mut expected = native.run(instruction, &before);
            // MXCSR_MASK is the processor's own: the host's may have a bit that the emulator does not announce.
            expected.state.data[28..32].fill(0);
            for place in [Place::Ram, Place::Device] {
                let mut outcome = guest.run(instruction, &before, place);
                outcome.state.data[28..32].fill(0);
                let differences = outcome.differences(&expected, true);
                assert!(
                    differences.is_empty(),
                    "{instruction:02x?} {place:?}\n{before}\n{differences}"
                );
            }
        }
    }
}

/// Asks for x87 and SSE.
fn both(cpu: &mut Cpu) {
    cpu.gpr.set(0, 3);
    cpu.gpr.set(2, 0);
}

#[test]
fn an_illegal_area_is_a_general_protection_fault_and_changes_nothing() {
    let mut guest = Guest::new();
    let mut random = Random::new(9);
    let mut with = |xstate, xcomp, at: usize, byte: u8| {
        let mut data = area(&mut random, xstate, xcomp);
        data[at] ^= byte;
        data
    };
    let rows = [
        ("XSTATE_BV has a bit that XCR0 has not", with(4, 0, 600, 0)),
        ("the standard format has XCOMP_BV set", with(3, 1, 600, 0)),
        ("bytes 23:16 of the header are not zero", with(3, 0, HEADER + 16, 1)),
        ("XCOMP_BV has a bit that XCR0 has not", with(3, COMPACTED | 7, 600, 0)),
        (
            "XSTATE_BV has a bit that XCOMP_BV has not",
            with(3, COMPACTED | 1, 600, 0),
        ),
        (
            "bytes 63:16 of a compacted header are not zero",
            with(3, COMPACTED | 3, HEADER + 63, 1),
        ),
        ("MXCSR has a reserved bit", with(3, 0, 26, 1)),
        (
            "MXCSR has a reserved bit, though XSTATE_BV has SSE clear",
            with(1, 0, 26, 1),
        ),
    ];
    for (name, data) in rows {
        let before = Cpu::reset().fpu;
        assert!(guest.faults(XRSTOR64, &data, both), "{name}");
        assert_eq!(guest.cpu().fpu, before, "{name}");
    }
    assert!(
        guest.faults(FXRSTOR64, &with(0, 0, 26, 1), |_| ()),
        "FXRSTOR checks MXCSR"
    );
    assert!(guest.faults(LDMXCSR, &[0, 0, 1, 0], |_| ()), "LDMXCSR checks MXCSR");
    let legal = with(3, 0, HEADER + 24, 1);
    assert!(
        !guest.faults(XRSTOR64, &legal, both),
        "bytes 63:24 of a standard header are not looked at"
    );
}

#[test]
fn a_misaligned_area_is_a_general_protection_fault() {
    let mut guest = Guest::new();
    let data = [0; DATA];
    let misalign = |by: u64| move |cpu: &mut Cpu| cpu.gpr.set(6, cpu.gpr.get(6) + by);
    for instruction in [XSAVE, XSAVE64, XSAVEOPT64, XSAVEC, XRSTOR] {
        assert!(guest.faults(instruction, &data, misalign(32)), "{instruction:02x?}");
    }
    for instruction in [FXSAVE, FXSAVE64, FXRSTOR] {
        assert!(guest.faults(instruction, &data, misalign(8)), "{instruction:02x?}");
        assert!(!guest.faults(instruction, &data, misalign(16)), "{instruction:02x?}");
    }
}

#[test]
fn a_component_whose_bit_is_clear_is_restored_to_its_initial_configuration() {
    let mut guest = Guest::new();
    let mut random = Random::new(11);
    let data = area(&mut random, 0, 0);
    let mxcsr = u32::from_le_bytes([data[24], data[25], data[26], data[27]]);
    assert!(!guest.faults(XRSTOR64, &data, |cpu| {
        both(cpu);
        cpu.fpu.vectors[3] = [5; 8];
        cpu.fpu.registers[2].significand = 7;
    }));
    let fpu = &guest.cpu().fpu;
    assert_eq!((fpu.control, fpu.status, fpu.tags), (CONTROL_INIT, 0, 0));
    assert_eq!(fpu.registers, [F80::default(); 8]);
    assert_eq!(fpu.vectors[3], [0, 0, 5, 5, 5, 5, 5, 5], "only XMM is SSE state");
    assert_eq!(fpu.mxcsr, mxcsr, "the standard format always loads MXCSR");
}

#[test]
fn the_initial_configuration_is_not_stored_by_xsavec() {
    let mut guest = Guest::new();
    assert!(!guest.faults(XSAVEC64, &[0xaa; DATA], |cpu| {
        both(cpu);
        cpu.fpu.init();
        cpu.fpu.vectors[1][0] = 1;
    }));
    let data = guest.data();
    assert_eq!(data[..24], [0xaa; 24], "x87 is as FNINIT leaves it");
    assert_eq!(data[160..176], [0; 16], "XMM0");
    assert_eq!(data[176], 1, "XMM1");
    assert_eq!(data[HEADER..HEADER + 8], 2u64.to_le_bytes(), "XSTATE_BV");
    assert_eq!(data[HEADER + 8..HEADER + 16], (COMPACTED | 3).to_le_bytes(), "XCOMP_BV");
    assert_eq!(data[HEADER + 16..], [0xaa; DATA - HEADER - 16]);
}

#[test]
fn xsave_keeps_the_bits_of_components_that_it_was_not_asked_for() {
    let mut guest = Guest::new();
    let mut data = [0xaa; DATA];
    data[HEADER..HEADER + 8].copy_from_slice(&0x1_0000_0006u64.to_le_bytes());
    assert!(!guest.faults(XSAVE64, &data, |cpu| {
        cpu.gpr.set(0, 1);
        cpu.gpr.set(2, 0);
    }));
    let saved = guest.data();
    assert_eq!(saved[HEADER..HEADER + 8], 0x1_0000_0007u64.to_le_bytes(), "XSTATE_BV");
    assert_eq!(saved[24..32], [0xaa; 8], "MXCSR belongs to SSE and AVX");
    assert_eq!(saved[160..HEADER], data[160..HEADER]);
    assert_eq!(saved[HEADER + 8..], data[HEADER + 8..]);
}

#[test]
fn outside_64_bit_mode_the_upper_eight_registers_are_left_alone() {
    let mut guest = Guest::new();
    for instruction in [FXSAVE, XSAVE] {
        assert!(!guest.faults(instruction, &[0xaa; DATA], |cpu| {
            both(cpu);
            cpu.segments[Seg::Cs].attributes = Attributes(0xc09b);
        }));
        let data = guest.data();
        assert_eq!(data[272..288], [0; 16], "{instruction:02x?}: XMM7");
        assert_eq!(
            data[288..HEADER],
            [0xaa; HEADER - 288],
            "{instruction:02x?}: XMM8 and up"
        );
    }
    let data = area(&mut Random::new(1), 0, 0);
    assert!(!guest.faults(XRSTOR, &data, |cpu| {
        both(cpu);
        cpu.segments[Seg::Cs].attributes = Attributes(0xc09b);
        cpu.fpu.vectors = [[5; 8]; 32];
    }));
    assert_eq!(guest.cpu().fpu.vectors[7][0], 0);
    assert_eq!(guest.cpu().fpu.vectors[8][0], 5);
}

#[test]
fn each_instruction_obeys_the_bits_that_switch_it_off() {
    const PXOR: &[u8] = &[0x66, 0x0f, 0xef, 0xc0];
    const PXOR_MM: &[u8] = &[0x0f, 0xef, 0xc0];
    const FLD1: &[u8] = &[0xd9, 0xe8];
    const FNINIT: &[u8] = &[0xdb, 0xe3];
    const FWAIT: &[u8] = &[0x9b];
    const MOVNTI: &[u8] = &[0x0f, 0xc3, 0x06];
    let all: [(&str, &[u8]); 8] = [
        ("PXOR xmm", PXOR),
        ("PXOR mm", PXOR_MM),
        ("FLD1", FLD1),
        ("FNINIT", FNINIT),
        ("FWAIT", FWAIT),
        ("MOVNTI", MOVNTI),
        ("FXSAVE", FXSAVE),
        ("XSAVE", XSAVE),
    ];
    type Change = fn(&mut Cpu);
    let rows: [(&str, Change, &[&str]); 5] = [
        (
            "CR0.TS",
            |cpu| cpu.cr0.0 |= Cr0::TS,
            &["PXOR xmm", "PXOR mm", "FLD1", "FNINIT", "FWAIT", "FXSAVE", "XSAVE"],
        ),
        (
            "CR0.TS without MP",
            |cpu| cpu.cr0.0 = cpu.cr0.0 & !Cr0::MP | Cr0::TS,
            &["PXOR xmm", "PXOR mm", "FLD1", "FNINIT", "FXSAVE", "XSAVE"],
        ),
        (
            "CR0.EM",
            |cpu| cpu.cr0.0 |= Cr0::EM,
            &["PXOR xmm", "PXOR mm", "FLD1", "FNINIT", "FXSAVE"],
        ),
        ("CR4.OSFXSR clear", |cpu| cpu.cr4.0 &= !Cr4::OSFXSR, &["PXOR xmm"]),
        ("CR4.OSXSAVE clear", |cpu| cpu.cr4.0 &= !Cr4::OSXSAVE, &["XSAVE"]),
    ];
    let mut guest = Guest::new();
    for (name, change, off) in rows {
        for (instruction, bytes) in all {
            let faults = guest.faults(bytes, &[0; DATA], |cpu| {
                both(cpu);
                change(cpu);
            });
            assert_eq!(faults, off.contains(&instruction), "{instruction} under {name}");
        }
    }
}

/// XSAVES, XRSTORS and their 64-bit forms.
const SUPERVISOR: [&[u8]; 4] = [
    &[0x0f, 0xc7, 0x2e],
    &[0x48, 0x0f, 0xc7, 0x2e],
    &[0x0f, 0xc7, 0x1e],
    &[0x48, 0x0f, 0xc7, 0x1e],
];

#[test]
fn xsaves_saves_and_xrstors_restores_the_compacted_format_at_level_0() {
    let level_0 = |cpu: &mut Cpu| {
        both(cpu);
        for seg in [Seg::Cs, Seg::Ss] {
            let segment = &mut cpu.segments[seg];
            segment.selector &= !3;
            segment.attributes = segment.attributes.with_dpl(0);
        }
    };
    let [_, xsaves, _, xrstors] = SUPERVISOR;
    let mut guest = Guest::new();
    assert!(!guest.faults(xsaves, &[0xaa; DATA], |cpu| {
        level_0(cpu);
        cpu.fpu.init();
        cpu.fpu.vectors[1][0] = 7;
    }));
    let saved = guest.data();
    assert_eq!(saved[HEADER..HEADER + 8], 2u64.to_le_bytes(), "XSTATE_BV");
    assert_eq!(
        saved[HEADER + 8..HEADER + 16],
        (COMPACTED | 3).to_le_bytes(),
        "XCOMP_BV"
    );
    let mut data = saved;
    data[HEADER + 16..HEADER + 64].fill(0);
    assert!(!guest.faults(xrstors, &data, |cpu| {
        level_0(cpu);
        cpu.fpu.vectors[1] = [5; 8];
        cpu.fpu.control = 0x27f;
    }));
    let fpu = &guest.cpu().fpu;
    assert_eq!(
        (fpu.vectors[1][0], fpu.vectors[1][1], fpu.control),
        (7, 0, CONTROL_INIT)
    );
    let standard = area(&mut Random::new(3), 3, 0);
    assert!(guest.faults(xrstors, &standard, level_0), "there is no standard format");
    assert!(!guest.faults(XRSTOR64, &standard, level_0), "which XRSTOR has");
}

#[test]
fn xsaves_and_xrstors_are_for_level_0_alone() {
    let mut guest = Guest::new();
    let data = area(&mut Random::new(5), 3, COMPACTED | 3);
    for instruction in SUPERVISOR {
        let user = |cpu: &mut Cpu| {
            both(cpu);
            for seg in [Seg::Cs, Seg::Ss] {
                let segment = &mut cpu.segments[seg];
                segment.selector |= 3;
                segment.attributes = segment.attributes.with_dpl(3);
            }
        };
        assert!(guest.faults(instruction, &data, user), "{instruction:02x?}");
    }
}

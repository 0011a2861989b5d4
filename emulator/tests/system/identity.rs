//! What CPUID and XGETBV tell of the CPU's own state (SDM Vol. 2, CPUID, XGETBV).

use iced_x86::code_asm::*;
use reprise_emulator::cpu::{Cr4, fpu, gpr};
use reprise_emulator::{CpuidTable, Direction, Exit, Space};

use crate::world::*;

/// Where [`World`] has its tables in RAM.
const TABLES: u64 = 0x10_0000;
const GP: u64 = 13;

/// Components: x87, SSE, AVX, opmasks, the upper halves of ZMM0 to 15, ZMM16 to 31.
const X87: u64 = 1 << 0;
const SSE: u64 = 1 << 1;
const AVX: u64 = 1 << 2;
const AVX512: u64 = 7 << 5;

/// With all that AVX-512 saves, where AMD's processors save it. `xsave` is leaf 0DH, subleaf 1, EAX: XSAVEC is bit 1, XGETBV
/// with ECX = 1 bit 2, XSAVES bit 3.
fn with_xsave(xsave: u32) -> World {
    let mut entries = cpuid().entries().to_vec();
    entries.retain(|entry| entry.leaf != 0xd);
    entries.extend([
        entry(0xd, 0, [0xe7, 0, 2432, 0]),
        entry(0xd, 1, [xsave, 0, 0, 0]),
        entry(0xd, 2, [256, 576, 0, 0]),
        entry(0xd, 5, [64, 832, 0, 0]),
        entry(0xd, 6, [512, 896, 2, 0]),
        entry(0xd, 7, [1024, 1408, 2, 0]),
    ]);
    let mut world = World::with(TABLES, CpuidTable::new(entries));
    world.change(|cpu| cpu.cr4.0 |= Cr4::OSXSAVE);
    world
}

/// EAX, EBX, ECX and EDX after CPUID.
fn cpuid_in(world: &mut World, leaf: u32, subleaf: u32) -> [u64; 4] {
    world.code(CODE, 64, |a| {
        a.mov(eax, leaf)?;
        a.mov(ecx, subleaf)?;
        a.cpuid()?;
        a.hlt()
    });
    world.change(|cpu| cpu.rip = CODE);
    assert_eq!(world.run(), Exit::Halt);
    world.emulator.wake();
    [gpr::RAX, gpr::RBX, gpr::RCX, gpr::RDX].map(|register| world.get(register))
}

/// EDX:EAX after XGETBV, or the vector of its exception.
fn xgetbv(world: &mut World, register: u32) -> Result<u64, u64> {
    world.code(CODE, 64, |a| {
        a.mov(ecx, register)?;
        a.xgetbv()?;
        a.hlt()
    });
    world.change(|cpu| cpu.rip = CODE);
    assert_eq!(world.run(), Exit::Halt);
    let rip = world.cpu().rip;
    match rip < HANDLERS {
        true => Ok(world.get(gpr::RDX) << 32 | world.get(gpr::RAX)),
        false => Err((rip - HANDLERS) / 16),
    }
}

#[test]
fn xgetbv_of_0_is_xcr0() {
    let mut world = with_xsave(0);
    world.change(|cpu| cpu.xcr0 = X87 | SSE | AVX);
    assert_eq!(xgetbv(&mut world, 0), Ok(X87 | SSE | AVX));
}

#[test]
fn xgetbv_of_1_is_there_if_it_is_announced_and_of_2_it_never_is() {
    for (name, announced, register, expected) in [
        ("not announced", 0b1011, 1, Err(GP)),
        ("announced", 0b0100, 1, Ok(0)),
        ("no such register", 0b1111, 2, Err(GP)),
        ("no such register, though its low half is", 0b1111, u32::MAX, Err(GP)),
    ] {
        let mut world = with_xsave(announced);
        world.change(|cpu| {
            cpu.xcr0 = X87;
            cpu.fpu.init();
            for register in &mut cpu.fpu.registers {
                *register = fpu::F80::default();
            }
        });
        assert_eq!(xgetbv(&mut world, register), expected, "{name}");
    }
}

#[test]
fn xgetbv_of_1_is_the_components_in_use_that_xcr0_has() {
    type Change = fn(&mut fpu::Fpu);
    let all = X87 | SSE | AVX | AVX512;
    let rows: [(&str, u64, Change, u64); 9] = [
        ("nothing", all, |_| (), 0),
        ("the x87 control word", all, |fpu| fpu.set_control(0x27f), X87),
        ("an XMM register", all, |fpu| fpu.vectors[7][1] = 1, SSE),
        ("MXCSR alone", all, |fpu| fpu.mxcsr = 0x1fa0, SSE),
        (
            "the upper half of a YMM register",
            all,
            |fpu| fpu.vectors[7][2] = 1,
            AVX,
        ),
        (
            "the upper half of a ZMM register",
            all,
            |fpu| fpu.vectors[7][4] = 1,
            1 << 6,
        ),
        ("a register above ZMM15", all, |fpu| fpu.vectors[16][0] = 1, 1 << 7),
        ("an opmask register", all, |fpu| fpu.k[3] = 1, 1 << 5),
        ("one that XCR0 has not", X87 | SSE, |fpu| fpu.vectors[7][2] = 1, 0),
    ];
    for (name, xcr0, change, expected) in rows {
        let mut world = with_xsave(0b0100);
        world.change(|cpu| {
            cpu.xcr0 = xcr0;
            *cpu.fpu = fpu::Fpu::default();
            cpu.fpu.init();
            cpu.fpu.mxcsr = 0x1f80;
            change(&mut cpu.fpu);
        });
        assert_eq!(xgetbv(&mut world, 1), Ok(expected), "{name}");
    }
}

#[test]
fn leaf_0dh_tells_the_size_of_what_is_enabled_in_the_standard_format_and_compacted() {
    for (name, xcr0, standard, compacted) in [
        ("x87 and SSE", X87 | SSE, 576, 576),
        ("AVX", X87 | SSE | AVX, 832, 832),
        ("AVX-512", X87 | SSE | AVX | AVX512, 2432, 2432),
    ] {
        let mut world = with_xsave(0b1111);
        world.change(|cpu| cpu.xcr0 = xcr0);
        assert_eq!(cpuid_in(&mut world, 0xd, 0), [0xe7, standard, 2432, 0], "{name}");
        assert_eq!(cpuid_in(&mut world, 0xd, 1), [0xf, compacted, 0, 0], "{name}");
    }
}

#[test]
fn leaf_0dh_subleaf_1_tells_no_size_without_the_compacted_format() {
    let mut world = with_xsave(0b0101);
    world.change(|cpu| cpu.xcr0 = X87 | SSE | AVX);
    assert_eq!(cpuid_in(&mut world, 0xd, 1), [0b0101, 0, 0, 0]);
}

#[test]
fn leaf_0dh_tells_size_and_place_of_each_component_and_zeros_of_others() {
    let mut world = with_xsave(0b1111);
    assert_eq!(cpuid_in(&mut world, 0xd, 2), [256, 576, 0, 0]);
    assert_eq!(cpuid_in(&mut world, 0xd, 6), [512, 896, 2, 0]);
    for subleaf in [3, 4, 8, 62, 63, u32::MAX] {
        assert_eq!(cpuid_in(&mut world, 0xd, subleaf), [0; 4], "{subleaf}");
    }
}

#[test]
fn osxsave_is_what_cr4_says() {
    let mut world = with_xsave(0);
    assert_eq!(cpuid_in(&mut world, 1, 0)[2] >> 27 & 1, 1);
    world.change(|cpu| cpu.cr4.0 &= !Cr4::OSXSAVE);
    assert_eq!(cpuid_in(&mut world, 1, 0)[2] >> 27 & 1, 0);
}

/// EDX bit 9 of leaf 1 while IA32_APIC_BASE is this; the table announces an APIC if `announced`.
fn apic_bit(announced: bool, apic_base: Option<u64>) -> u64 {
    let mut entries = cpuid().entries().to_vec();
    for entry in entries.iter_mut().filter(|entry| entry.leaf == 1) {
        entry.registers.edx |= u32::from(announced) << 9;
    }
    let mut world = World::with(TABLES, CpuidTable::new(entries));
    world.apic_base = apic_base;
    let [.., features] = cpuid_in(&mut world, 1, 0);
    let asked = world.trace.contains(&(Space::Msr, 0x1b, Direction::Read));
    assert_eq!(asked, announced, "who has no APIC to announce asks nobody");
    features >> 9 & 1
}

#[test]
fn the_apic_bit_is_clear_while_ia32_apic_base_disables_the_apic() {
    assert_eq!(apic_bit(true, Some(0xfee0_0900)), 1, "enabled");
    assert_eq!(apic_bit(true, Some(0xfee0_0100)), 0, "disabled");
    assert_eq!(apic_bit(true, Some(0xfee0_0d00)), 1, "x2APIC mode");
    assert_eq!(apic_bit(true, None), 1, "a platform that has no such register");
    assert_eq!(apic_bit(false, Some(0xfee0_0900)), 0, "never announced");
}

//! The x87 exception pointers and the layouts in which they are stored (SDM Vol. 1, x87 FPU State Image).

use reprise_emulator::Cpu;
use reprise_emulator::cpu::{Attributes, Cr0, Efer, Seg};

use crate::guest::Guest;
use crate::state::DATA;

/// What is stored.
fn sample(cpu: &mut Cpu) {
    cpu.fpu.init();
    cpu.fpu.opcode = 0x123;
    cpu.fpu.ip = 0x1234_5678;
    cpu.fpu.cs = 0x9a;
    cpu.fpu.dp = 0x8765_4321;
    cpu.fpu.ds = 0xbc;
}

/// 32-bit protected mode without paging.
fn protected(cpu: &mut Cpu) {
    cpu.cr0.0 &= !Cr0::PG;
    cpu.efer = Efer(0);
    cpu.segments[Seg::Cs].attributes = Attributes(0xc09b);
}

/// Real mode, with segments that reach everywhere.
fn real(cpu: &mut Cpu) {
    protected(cpu);
    cpu.cr0.0 &= !Cr0::PE;
    cpu.segments[Seg::Cs].attributes = Attributes(0x9b);
}

#[test]
fn an_instruction_leaves_its_address_its_opcode_and_that_of_its_operand() {
    let mut guest = Guest::new();
    // nop; fld qword ptr [rsi + 8], with a CS prefix that is part of the instruction and does nothing
    assert!(!guest.faults(&[0x90, 0x2e, 0xdd, 0x46, 8], &[0; DATA], |cpu| cpu.fpu.init()));
    let cpu = guest.cpu();
    let fpu = &cpu.fpu;
    assert_eq!((fpu.opcode, cpu.rip - fpu.ip, fpu.cs), (0x546, 5, 8));
    assert_eq!((fpu.dp, fpu.ds), (cpu.gpr.get(6) + 8, 0x10));
}

#[test]
fn an_instruction_without_memory_operand_keeps_the_operand_pointer() {
    let mut guest = Guest::new();
    // fld1; fnstcw [rsi], which is a control instruction
    assert!(!guest.faults(&[0xd9, 0xe8, 0xd9, 0x3e], &[0; DATA], sample));
    let cpu = guest.cpu();
    assert_eq!((cpu.fpu.opcode, cpu.rip - cpu.fpu.ip, cpu.fpu.cs), (0x1e8, 5, 8));
    assert_eq!((cpu.fpu.dp, cpu.fpu.ds), (0x8765_4321, 0xbc));
}

#[test]
fn the_environment_has_a_layout_for_each_size_and_mode() {
    const WIDE: [u8; 12] = [0x7f, 3, 0xff, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    const NARROW: [u8; 6] = [0x7f, 3, 0, 0, 0xff, 0xff];
    type Change = fn(&mut Cpu);
    let rows: [(&str, &[u8], Change, Vec<u8>); 4] = [
        (
            "32 bits, protected",
            &[0xd9, 0x36],
            protected,
            [
                &WIDE[..],
                &[
                    0x78, 0x56, 0x34, 0x12, 0x9a, 0, 0x23, 1, 0x21, 0x43, 0x65, 0x87, 0xbc, 0, 0xff, 0xff,
                ],
            ]
            .concat(),
        ),
        (
            "16 bits, protected",
            &[0x66, 0xd9, 0x36],
            protected,
            [&NARROW[..], &[0x78, 0x56, 0x9a, 0, 0x21, 0x43, 0xbc, 0]].concat(),
        ),
        (
            // 1234_5678h and 9A0h make the linear address 1234_6018h; 8765_4321h and BC0h make 8765_4EE1h.
            "32 bits, real",
            &[0x67, 0x66, 0xd9, 0x36],
            real,
            [
                &WIDE[..],
                &[
                    0x18, 0x60, 0xff, 0xff, 0x23, 0x41, 0x23, 1, 0xe1, 0x4e, 0xff, 0xff, 0, 0x50, 0x76, 8,
                ],
            ]
            .concat(),
        ),
        (
            "16 bits, real",
            &[0x67, 0xd9, 0x36],
            real,
            [&NARROW[..], &[0x18, 0x60, 0x23, 0x41, 0xe1, 0x4e, 0, 0x50]].concat(),
        ),
    ];
    let mut guest = Guest::new();
    for (name, bytes, mode, expected) in rows {
        let faulted = guest.faults(bytes, &[0xaa; DATA], |cpu| {
            mode(cpu);
            sample(cpu);
        });
        assert!(!faulted, "{name}");
        let data = guest.data();
        assert_eq!(data[..expected.len()], expected, "{name}");
        assert_eq!(data[expected.len()], 0xaa, "{name}");
    }
}

//! Hardware task switches of 32-bit protected mode.

use iced_x86::code_asm::*;
use reprise_emulator::Exit;
use reprise_emulator::cpu::{Cr0, Cr4, Seg, flags, gpr};

use crate::legacy::legacy;
use crate::world::*;

const DF: u64 = 8;
const TS: u64 = 10;
const NP: u64 = 11;
const GP: u64 = 13;

/// Selector of the second task's TSS.
const SECOND: u16 = 0x40;
/// Offset of that TSS, and where its stack ends.
const TSS2: u64 = 0x2800;
const STACK2: u64 = 0x7000;
/// Where the second task begins.
const OTHER: u64 = USER + 0x100;

/// Offsets in a 32-bit TSS.
const EIP: u64 = 0x20;
const EFLAGS: u64 = 0x24;
const REGISTERS: u64 = 0x28;
const SEGMENTS: u64 = 0x48;

fn tss_descriptor(base: u64, attributes: u64, limit: u64) -> u64 {
    descriptor(attributes, limit) | (base & 0xff_ffff) << 16 | (base >> 24 & 0xff) << 56
}

/// A first task that runs, and a second one that halts at [`OTHER`] and then returns.
fn two_tasks(world: &mut World) {
    legacy(world);
    let (tables, second) = (world.tables, world.tables + TSS2);
    world.write(tables + u64::from(TASK), 8, tss_descriptor(tables + TSS, 0x8b, 0xff));
    world.write(tables + u64::from(SECOND), 8, tss_descriptor(second, 0x89, 0x67));
    for offset in (0..0x68).step_by(4) {
        world.write(second + offset, 4, 0);
    }
    world.write(second + EIP, 4, OTHER);
    world.write(second + EFLAGS, 4, 2 | flags::DF);
    for n in 0..8 {
        world.write(second + REGISTERS + 4 * n, 4, 0x1000 + n);
    }
    world.write(second + REGISTERS + 4 * u64::from(gpr::RSP), 4, tables + STACK2);
    for (seg, selector) in [(Seg::Es, DATA0), (Seg::Cs, CODE32), (Seg::Ss, DATA0), (Seg::Ds, DATA0)] {
        world.write(second + SEGMENTS + 4 * seg as u64, 4, u64::from(selector));
    }
    world.code(OTHER, 32, |a| {
        a.hlt()?;
        a.iretd()
    });
}

/// Byte 5 of the descriptor of `selector`: type, DPL, P.
fn access(world: &World, selector: u16) -> u64 {
    world.read(world.tables + u64::from(selector) + 5, 1)
}

/// A far jump or call to `selector` at [`CODE`], then HLT.
fn far(world: &mut World, opcode: u8, selector: u16) {
    let [low, high] = selector.to_le_bytes();
    world.code(CODE, 32, |a| {
        a.db(&[opcode, 0, 0, 0, 0, low, high])?;
        a.hlt()
    });
}

const JMP: u8 = 0xea;
const CALL: u8 = 0x9a;

#[test]
fn a_jump_to_a_tss_leaves_the_old_task_for_good() {
    both(|mut world| {
        two_tasks(&mut world);
        far(&mut world, JMP, SECOND);
        world.change(|cpu| cpu.gpr.set(gpr::RCX, 0x5555));
        assert_eq!(world.run(), Exit::Halt);
        let cpu = world.cpu();
        assert_eq!((cpu.rip, cpu.gpr.get(gpr::RCX)), (OTHER + 1, 0x1001));
        assert_eq!((cpu.tr.selector, cpu.tr.base), (SECOND, world.tables + TSS2));
        assert!(cpu.cr0.any(Cr0::TS) && cpu.flags.direction() && !cpu.flags.any(flags::NT));
        assert_eq!((access(&world, TASK), access(&world, SECOND)), (0x89, 0x8b));
        let old = world.tables + TSS;
        assert_eq!(world.read(old + EIP, 4), CODE + 7);
        assert_eq!(world.read(old + REGISTERS + 4, 4), 0x5555);
        assert_eq!(world.read(old + SEGMENTS + 4, 2), u64::from(CODE32));
    });
}

#[test]
fn a_called_task_returns_with_iret() {
    both(|mut world| {
        two_tasks(&mut world);
        far(&mut world, CALL, SECOND);
        world.change(|cpu| cpu.gpr.set(gpr::RBX, 0x7777));
        assert_eq!(world.run(), Exit::Halt);
        assert!(world.cpu().flags.any(flags::NT));
        assert_eq!(world.read(world.tables + TSS2, 2), u64::from(TASK));
        assert_eq!((access(&world, TASK), access(&world, SECOND)), (0x8b, 0x8b));
        world.emulator.wake();
        assert_eq!(world.run(), Exit::Halt);
        let cpu = world.cpu();
        assert_eq!((cpu.rip, cpu.tr.selector), (CODE + 8, TASK));
        assert_eq!(cpu.gpr.get(gpr::RBX), 0x7777);
        assert!(!cpu.flags.any(flags::NT) && !cpu.flags.direction());
        assert_eq!((access(&world, TASK), access(&world, SECOND)), (0x8b, 0x89));
        assert_eq!(
            world.read(world.tables + TSS2 + EIP, 4),
            OTHER + 2,
            "it would go on behind its IRET"
        );
    });
}

#[test]
fn an_exception_through_a_task_gate_has_its_error_code_on_the_tasks_stack() {
    both(|mut world| {
        two_tasks(&mut world);
        world.write(world.tables + IDT + GP * 8, 8, u64::from(SECOND) << 16 | 0x85 << 40);
        world.code(CODE, 32, |a| {
            a.mov(eax, 0x7cu32)?;
            a.mov(ds, eax)
        });
        assert_eq!(world.run(), Exit::Halt);
        assert_eq!(world.cpu().rip, OTHER + 1);
        assert_eq!(world.get(gpr::RSP), world.tables + STACK2 - 4);
        assert_eq!(world.read(world.tables + STACK2 - 4, 4), 0x7c);
        assert_eq!(
            world.read(world.tables + TSS + EIP, 4),
            CODE + 5,
            "the instruction that faulted"
        );
    });
}

#[test]
fn a_task_gate_leads_to_its_tss() {
    both(|mut world| {
        two_tasks(&mut world);
        let at = world.tables + u64::from(GATE);
        world.write(at, 8, u64::from(SECOND) << 16 | 0x85 << 40);
        far(&mut world, JMP, GATE);
        assert_eq!(world.run(), Exit::Halt);
        assert_eq!(world.cpu().rip, OTHER + 1);
    });
}

#[test]
fn what_is_no_task_to_switch_to_faults_in_the_old_one() {
    let cases: [(&str, u64, u64, u64); 4] = [
        ("busy", 0x8b, 0x67, GP),
        ("absent", 0x09, 0x67, NP),
        ("too short", 0x89, 0x66, TS),
        ("a 16-bit one too short", 0x81, 0x2a, TS),
    ];
    for (name, attributes, limit, vector) in cases {
        both(|mut world| {
            two_tasks(&mut world);
            let second = tss_descriptor(world.tables + TSS2, attributes, limit);
            world.write(world.tables + u64::from(SECOND), 8, second);
            far(&mut world, JMP, SECOND);
            assert_eq!(world.run_to_handler(), vector, "{name}");
            let top = world.get(gpr::RSP);
            assert_eq!(world.read(top, 4), u64::from(SECOND), "{name}");
            assert_eq!(world.read(top + 4, 4), CODE, "{name}");
            assert_eq!(world.cpu().tr.selector, TASK, "{name}");
        });
    }
}

#[test]
fn what_is_wrong_with_the_new_tasks_segments_is_its_own_exception() {
    both(|mut world| {
        two_tasks(&mut world);
        world.write(world.tables + TSS2 + SEGMENTS + 4 * Seg::Ds as u64, 4, u64::from(TASK));
        far(&mut world, JMP, SECOND);
        assert_eq!(world.run_to_handler(), TS);
        let top = world.get(gpr::RSP);
        assert_eq!(top, world.tables + STACK2 - 16);
        assert_eq!([0, 4].map(|at| world.read(top + at, 4)), [u64::from(TASK), OTHER]);
        assert_eq!(world.cpu().tr.selector, SECOND);
    });
}

#[test]
fn a_task_without_a_stack_shuts_down() {
    both(|mut world| {
        two_tasks(&mut world);
        world.write(world.tables + TSS2 + SEGMENTS + 4 * Seg::Ss as u64, 4, 0);
        world.write(world.tables + IDT + DF * 8, 8, 0);
        far(&mut world, JMP, SECOND);
        assert_eq!(world.run(), Exit::Shutdown);
    });
}

#[test]
fn a_16_bit_task_has_16_bit_registers() {
    both(|mut world| {
        two_tasks(&mut world);
        let second = world.tables + TSS2;
        world.write(world.tables + u64::from(SECOND), 8, tss_descriptor(second, 0x81, 0x2b));
        world.code(0x300, 32, |a| a.hlt());
        for (offset, word) in [(0x0e, 0x300), (0x10, 2), (0x14, 0x4321), (0x1a, 0x8000)] {
            world.write(second + offset, 2, word);
        }
        for (offset, selector) in [(0x22, DATA0), (0x24, CODE32), (0x26, DATA16), (0x28, DATA0)] {
            world.write(second + offset, 2, u64::from(selector));
        }
        far(&mut world, JMP, SECOND);
        assert_eq!(world.run(), Exit::Halt);
        assert_eq!(world.cpu().rip, 0x301);
        assert_eq!(world.get(gpr::RCX), 0xffff_4321);
        assert_eq!(world.cpu().segments[Seg::Fs].selector, 0);
    });
}

#[test]
fn a_task_may_want_to_be_debugged_from_its_first_instruction() {
    both(|mut world| {
        two_tasks(&mut world);
        world.write(world.tables + TSS2 + 0x64, 2, 1);
        far(&mut world, JMP, SECOND);
        assert_eq!(world.run_to_handler(), 1);
        assert_eq!(world.cpu().dr6 & 1 << 15, 1 << 15);
        assert_eq!(world.read(world.get(gpr::RSP), 4), OTHER);
    });
}

#[test]
fn page_directory_pointers_that_cannot_be_loaded_are_the_new_tasks_exception() {
    const POINTERS: u64 = PD + 0x1000;
    const THIRD: u16 = 0x50;
    const TSS3: u64 = TSS2 + 0x100;
    for (entry, is_bad) in [(0, false), (2, false), (1, false), (3, true), (1 << 50 | 1, true)] {
        both(|mut world| {
            two_tasks(&mut world);
            let (second, third) = (world.tables + TSS2, world.tables + TSS3);
            for at in (0..0x68).step_by(4) {
                let word = world.read(second + at, 4);
                world.write(third + at, 4, word);
            }
            world.write(world.tables + u64::from(THIRD), 8, tss_descriptor(third, 0x89, 0x67));
            world.write(third + EIP, 4, OTHER + 0x80);
            world.code(OTHER + 0x80, 32, |a| a.hlt());
            // The handler is a task too: there is no stack yet.
            let gate = world.tables + IDT + TS * 8;
            world.write(gate, 8, u64::from(THIRD) << 16 | 0x85 << 40);
            for (pointers, fourth) in [(POINTERS, 0), (POINTERS + 0x20, entry)] {
                for (n, value) in (0..).zip([PD | 1, 0, 0, fourth]) {
                    world.write(pointers + 8 * n, 8, value);
                }
            }
            world.write(second + 0x1c, 4, POINTERS + 0x20);
            world.write(third + 0x1c, 4, POINTERS);
            world.change(|cpu| {
                cpu.cr3 = POINTERS;
                cpu.cr4 = Cr4(Cr4::PAE);
                cpu.cr0.0 |= Cr0::PG;
            });
            far(&mut world, JMP, SECOND);
            assert_eq!(world.run(), Exit::Halt);
            if is_bad {
                assert_eq!(world.cpu().tr.selector, THIRD, "{entry:#x}");
                assert_eq!(world.read(world.get(gpr::RSP), 4), 0, "the error code");
                assert_eq!(
                    world.read(second + EIP, 4),
                    OTHER,
                    "nothing of the new task was executed"
                );
            } else {
                assert_eq!(world.cpu().tr.selector, SECOND, "{entry:#x}");
            }
        });
    }
}

/// A second task of user mode, whose exceptions find a stack in its TSS.
fn user_task(world: &mut World) {
    two_tasks(world);
    let second = world.tables + TSS2;
    world.write(second + 4, 4, world.tables + STACK2);
    world.write(second + 8, 4, u64::from(DATA0));
    for (seg, selector) in [
        (Seg::Es, USER_DATA),
        (Seg::Cs, USER32),
        (Seg::Ss, USER_DATA),
        (Seg::Ds, USER_DATA),
    ] {
        world.write(second + SEGMENTS + 4 * seg as u64, 4, u64::from(selector));
    }
    world.code(OTHER, 32, |a| a.ud2());
}

/// Offset of the LDT's selector in a 32-bit TSS.
const LDT: u64 = 0x60;
const SS: u64 = 12;

#[test]
fn each_selector_of_the_new_task_is_looked_up() {
    let at = |seg: Seg| SEGMENTS + 4 * seg as u64;
    let rows: [(&str, u64, u16, u64, u64); 14] = [
        ("an LDT in an LDT", LDT, 0x74, 0, TS),
        ("an LDT that is data", LDT, DATA0, 0, TS),
        ("an LDT that is not there", LDT, ABSENT, 0x02, TS),
        ("an LDT beyond the table", LDT, 0x80, 0, TS),
        ("CS that is data", at(Seg::Cs), USER_DATA, 0, TS),
        ("CS of another privilege", at(Seg::Cs), CODE32 | 3, 0, TS),
        ("CS that is not there", at(Seg::Cs), ABSENT | 3, 0xc07b, NP),
        ("SS that is code", at(Seg::Ss), USER32, 0, TS),
        ("SS that is not there", at(Seg::Ss), ABSENT | 3, 0xc073, SS),
        ("SS of another privilege", at(Seg::Ss), DATA0 | 3, 0, TS),
        ("SS with another RPL", at(Seg::Ss), USER_DATA & !3, 0, TS),
        ("SS that is null", at(Seg::Ss), 3, 0, TS),
        ("DS of the kernel", at(Seg::Ds), DATA0, 0, TS),
        ("DS that is not there", at(Seg::Ds), ABSENT | 3, 0xc073, NP),
    ];
    for (name, offset, selector, absent, vector) in rows {
        both(|mut world| {
            user_task(&mut world);
            world.write(world.tables + TSS2 + offset, 4, u64::from(selector));
            if absent != 0 {
                world.write(world.tables + u64::from(ABSENT), 8, descriptor(absent, 0xf_ffff));
            }
            far(&mut world, JMP, SECOND);
            assert_eq!(world.run_to_handler(), vector, "{name}");
            let code = world.read(world.get(gpr::RSP), 4);
            assert_eq!(code, u64::from(selector & !3), "{name}");
            assert_eq!(world.cpu().tr.selector, SECOND, "{name}");
        });
    }
}

#[test]
fn a_task_may_have_segments_of_its_own() {
    const LOCAL: u16 = 0x70;
    both(|mut world| {
        user_task(&mut world);
        world.write(world.tables + u64::from(LOCAL), 8, descriptor(0x82, 0xf) | DATA << 16);
        world.write(DATA + 8, 8, descriptor(0x40f3, 0x1234));
        world.write(world.tables + TSS2 + LDT, 4, u64::from(LOCAL));
        world.write(world.tables + TSS2 + SEGMENTS + 4 * Seg::Ds as u64, 4, 0xf);
        far(&mut world, JMP, SECOND);
        assert_eq!(world.run_to_handler(), 6);
        let data = &world.cpu().segments[Seg::Ds];
        assert_eq!((data.selector, data.limit), (0xf, 0x1234));
    });
}

#[test]
fn an_old_task_without_room_for_its_state_is_not_left() {
    both(|mut world| {
        two_tasks(&mut world);
        world.change(|cpu| cpu.tr.limit = 0x5e);
        far(&mut world, JMP, SECOND);
        assert_eq!(world.run_to_handler(), TS);
        assert_eq!(world.read(world.get(gpr::RSP), 4), u64::from(TASK));
        assert_eq!(access(&world, SECOND), 0x89);
    });
}

#[test]
fn a_task_gate_names_no_local_task() {
    both(|mut world| {
        two_tasks(&mut world);
        let at = world.tables + u64::from(GATE);
        world.write(at, 8, u64::from(SECOND | 4) << 16 | 0x85 << 40);
        far(&mut world, JMP, GATE);
        assert_eq!(world.run_to_handler(), GP);
        assert_eq!(world.read(world.get(gpr::RSP), 4), u64::from(SECOND | 4));
    });
}

#[test]
fn a_16_bit_task_is_left_with_16_bits() {
    both(|mut world| {
        two_tasks(&mut world);
        let old = world.tables + TSS;
        world.write(world.tables + u64::from(TASK), 8, tss_descriptor(old, 0x83, 0x2b));
        world.write(old + 0x2c, 2, 0x5555);
        world.change(|cpu| {
            cpu.tr.attributes.0 = 0x83;
            cpu.tr.limit = 0x2b;
            cpu.gpr.set(gpr::RCX, 0x1234_5678);
        });
        far(&mut world, JMP, SECOND);
        assert_eq!(world.run(), Exit::Halt);
        assert_eq!(world.cpu().rip, OTHER + 1);
        let words = [0x0e, 0x14, 0x22, 0x2c].map(|offset| world.read(old + offset, 2));
        assert_eq!(words, [(CODE + 7) & 0xffff, 0x5678, u64::from(DATA0), 0x5555]);
    });
}

#[test]
fn a_task_may_be_a_virtual_8086_program() {
    both(|mut world| {
        user_task(&mut world);
        let second = world.tables + TSS2;
        world.write(second + EIP, 4, OTHER - USER);
        world.write(second + EFLAGS, 4, flags::VM | 2);
        for (seg, selector) in [(Seg::Cs, USER >> 4), (Seg::Ss, DATA >> 4), (Seg::Ds, 0x1234)] {
            world.write(second + SEGMENTS + 4 * seg as u64, 4, selector);
        }
        world.code(OTHER, 16, |a| {
            a.mov(ax, ds)?;
            a.ud2()
        });
        far(&mut world, JMP, SECOND);
        assert_eq!(world.run_to_handler(), 6);
        assert_eq!(world.get(gpr::RAX) & 0xffff, 0x1234);
        let top = world.get(gpr::RSP);
        assert_eq!(top, world.tables + STACK2 - 36);
        let [ip, code, image] = [0, 4, 8].map(|at| world.read(top + at, 4));
        assert_eq!((ip, code, image & flags::VM), (OTHER - USER + 2, USER >> 4, flags::VM));
    });
}

#[test]
fn a_task_has_its_own_page_tables() {
    const FIRST: u64 = 0x7_0000;
    both(|mut world| {
        two_tasks(&mut world);
        for directory in [FIRST, FIRST + 0x1000] {
            // 4 MiB to themselves.
            world.write(directory, 4, 0xe7);
        }
        world.write(world.tables + TSS2 + 0x1c, 4, FIRST + 0x1000);
        world.change(|cpu| {
            cpu.cr0.0 |= Cr0::PG;
            cpu.cr4.0 |= Cr4::PSE;
            cpu.cr3 = FIRST;
        });
        far(&mut world, JMP, SECOND);
        assert_eq!(world.run(), Exit::Halt);
        assert_eq!((world.cpu().rip, world.cpu().cr3), (OTHER + 1, FIRST + 0x1000));
    });
}

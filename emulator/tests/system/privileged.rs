//! Instructions of the kernel (SDM Vol. 2): INVPCID, moves of control and debug registers, LLDT, MONITOR, PAE's pointers.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use reprise_emulator::Exit;
use reprise_emulator::cpu::{Cr0, Cr4, Efer, Seg, flags, gpr};

use crate::legacy::legacy;
use crate::registers::outcome;
use crate::world::*;

const UD: u64 = 6;
const NP: u64 = 11;
const GP: u64 = 13;

/// INVPCID RAX, [DATA].
fn invpcid(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(rbx, DATA)?;
    a.invpcid(rax, xmmword_ptr(rbx))
}

#[test]
fn invpcid_refuses_kinds_and_descriptors_that_are_not_there() {
    const HOLE: u64 = 1 << 47;
    for (name, kind, pcid, linear, with_pcids, expected) in [
        ("one address", 0, 0, DATA, false, None),
        ("one address that is not canonical", 0, 0, HOLE, false, Some(GP)),
        ("one address of a PCID, without PCIDs", 0, 1, DATA, false, Some(GP)),
        ("one address of a PCID", 0, 1, DATA, true, None),
        ("one PCID", 1, 0xfff, 0, true, None),
        ("one PCID, whose address does not matter", 1, 0, HOLE, false, None),
        ("one PCID, without PCIDs", 1, 1, 0, false, Some(GP)),
        ("all, with global ones", 2, 1, HOLE, false, None),
        ("all but global ones", 3, 0, 0, false, None),
        ("a reserved bit", 2, 0x1000, 0, true, Some(GP)),
        ("no such kind", 4, 0, 0, true, Some(GP)),
        ("no such kind, in the upper half", 1 << 32, 0, 0, true, Some(GP)),
    ] {
        both(|mut world| {
            world.write(DATA, 8, pcid);
            world.write(DATA + 8, 8, linear);
            world.change(|cpu| {
                cpu.gpr.set(gpr::RAX, kind);
                cpu.cr4.0 |= if with_pcids { Cr4::PCIDE } else { 0 };
            });
            assert_eq!(outcome(&mut world, invpcid), expected, "{name}");
        });
    }
}

#[test]
fn invpcid_forgets_translations() {
    const WINDOW: u64 = 0x40_0000;
    const AT: u64 = 0x8000;
    for kind in 0..4 {
        both(|mut world| {
            world.write(PD + 16, 8, 0xe7);
            let device = world.read(PD + 8, 8);
            world.write(AT, 8, 1);
            world.write((device & !0xfff) + AT, 8, 2);
            world.write(DATA, 8, 0);
            world.write(DATA + 8, 8, WINDOW + AT);
            let outcome = outcome(&mut world, |a| {
                a.mov(rcx, WINDOW + AT)?;
                a.mov(rsi, qword_ptr(rcx))?;
                a.mov(rbx, PD + 16)?;
                a.mov(rax, device)?;
                a.mov(qword_ptr(rbx), rax)?;
                a.mov(eax, kind)?;
                invpcid(a)?;
                a.mov(rdi, qword_ptr(rcx))
            });
            assert_eq!(outcome, None);
            assert_eq!((world.get(gpr::RSI), world.get(gpr::RDI)), (1, 2), "{kind}");
        });
    }
}

#[test]
fn user_mode_executes_none_of_these() {
    let rows: [(&str, &[u8], u64); 8] = [
        ("invpcid rax, [rbx]", &[0x66, 0x0f, 0x38, 0x82, 0x03], GP),
        ("mov rax, cr2", &[0x0f, 0x20, 0xd0], GP),
        ("mov rax, dr7", &[0x0f, 0x21, 0xf8], GP),
        ("lldt ax", &[0x0f, 0x00, 0xd0], GP),
        ("invlpg [rbx]", &[0x0f, 0x01, 0x3b], GP),
        ("monitor", &[0x0f, 0x01, 0xc8], UD),
        ("mwait", &[0x0f, 0x01, 0xc9], UD),
        ("stac", &[0x0f, 0x01, 0xcb], UD),
    ];
    for (name, bytes, vector) in rows {
        both(|mut world| {
            world.user();
            world.code(USER, 64, |a| a.db(bytes));
            assert_eq!(world.run_to_handler(), vector, "{name}");
        });
    }
}

#[test]
fn control_and_debug_registers_read_as_they_were_written() {
    both(|mut world| {
        let outcome = outcome(&mut world, |a| {
            a.mov(rbx, 0x1234_5678_9abc_def0u64)?;
            a.mov(cr2, rbx)?;
            a.mov(rax, cr2)?;
            a.mov(rcx, cr3)?;
            a.mov(ebx, 0xffff_0ff0u32)?;
            a.mov(dr6, rbx)?;
            a.mov(rdx, dr6)?;
            a.mov(ebx, 0x400)?;
            a.mov(dr7, rbx)?;
            a.mov(rsi, dr7)
        });
        assert_eq!(outcome, None);
        assert_eq!(world.get(gpr::RAX), 0x1234_5678_9abc_def0);
        assert_eq!(world.get(gpr::RCX), PML4);
        assert_eq!(world.get(gpr::RDX), 0xffff_0ff0);
        assert_eq!(world.get(gpr::RSI), 0x400);
    });
}

#[test]
fn there_are_no_control_registers_1_and_5() {
    for bytes in [
        [0x0f, 0x20, 0xc8],
        [0x0f, 0x20, 0xe8],
        [0x0f, 0x22, 0xc8],
        [0x0f, 0x22, 0xe8],
    ] {
        both(|mut world| assert_eq!(outcome(&mut world, |a| a.db(&bytes)), Some(UD), "{bytes:x?}"));
    }
}

#[test]
fn cr3_does_not_keep_the_bit_that_says_what_to_keep() {
    both(|mut world| {
        world.change(|cpu| cpu.cr4.0 |= Cr4::PCIDE);
        let outcome = outcome(&mut world, |a| {
            a.mov(rbx, PML4 | 5 | 1 << 63)?;
            a.mov(cr3, rbx)?;
            a.mov(rax, cr3)
        });
        assert_eq!((outcome, world.get(gpr::RAX)), (None, PML4 | 5));
    });
}

#[test]
fn lldt_takes_local_descriptor_tables_of_the_global_one() {
    const TABLE: u16 = 0x70;
    for (name, selector, attributes, expected) in [
        ("a table", TABLE, 0x82, None),
        ("null", 3, 0x82, None),
        ("in a local table", TABLE | 4, 0x82, Some((GP, TABLE | 4))),
        ("a task", TASK, 0x82, Some((GP, TASK))),
        ("data", DATA0, 0x82, Some((GP, DATA0))),
        ("absent", TABLE, 0x02, Some((NP, TABLE))),
        ("beyond the global table", 0x80, 0x82, Some((GP, 0x80))),
    ] {
        for in_memory in [false, true] {
            both(|mut world| {
                let table = world.tables + u64::from(TABLE);
                world.write(table, 8, descriptor(attributes, 0x1f) | DATA << 16);
                world.write(table + 8, 8, 0);
                world.write(DATA, 2, u64::from(selector));
                let outcome = outcome(&mut world, |a| {
                    a.mov(rbx, DATA)?;
                    a.movzx(eax, word_ptr(rbx))?;
                    match in_memory {
                        true => a.lldt(word_ptr(rbx)),
                        false => a.lldt(eax),
                    }
                });
                assert_eq!(outcome, expected.map(|(vector, _)| vector), "{name}");
                match expected {
                    Some((_, code)) => assert_eq!(world.frame(true).code, Some(u64::from(code)), "{name}"),
                    None if selector == TABLE => {
                        let ldt = &world.cpu().ldtr;
                        assert_eq!((ldt.selector, ldt.base, ldt.limit), (TABLE, DATA, 0x1f));
                    }
                    None => assert!(!world.cpu().ldtr.attributes.is_present(), "{name}"),
                }
            });
        }
    }
}

#[test]
fn monitor_looks_at_its_address_and_mwait_comes_back() {
    for (name, address, extensions, expected) in [
        ("memory", DATA, 0, None),
        ("an extension", DATA, 1, Some(GP)),
        ("an address that is not canonical", 1 << 47, 0, Some(GP)),
    ] {
        both(|mut world| {
            world.change(|cpu| {
                cpu.gpr.set(gpr::RAX, address);
                cpu.gpr.set(gpr::RCX, extensions);
            });
            let outcome = outcome(&mut world, |a| {
                a.monitor()?;
                a.mwait()
            });
            assert_eq!(outcome, expected, "{name}");
        });
    }
    for (hints, expected) in [(1, None), (2, Some(GP))] {
        both(|mut world| {
            world.change(|cpu| cpu.gpr.set(gpr::RCX, hints));
            assert_eq!(outcome(&mut world, |a| a.mwait()), expected);
        });
    }
}

#[test]
fn stac_and_clac_change_ac_alone() {
    both(|mut world| {
        let outcome = outcome(&mut world, |a| {
            a.stac()?;
            a.pushfq()?;
            a.pop(rax)?;
            a.clac()?;
            a.pushfq()?;
            a.pop(rbx)
        });
        assert_eq!(outcome, None);
        assert_eq!((world.get(gpr::RAX), world.get(gpr::RBX)), (flags::AC | 2, 2));
    });
}

#[test]
fn what_has_no_state_yet_is_undefined_and_what_is_not_there_refused() {
    both(|mut world| assert_eq!(outcome(&mut world, |a| a.xsetbv()), Some(UD), "without OSXSAVE"));
    both(|mut world| assert_eq!(outcome(&mut world, |a| a.rdpkru()), Some(UD), "without PKE"));
    both(|mut world| {
        world.change(|cpu| {
            cpu.cr4.0 |= Cr4::PKE;
            cpu.gpr.set(gpr::RCX, 1);
        });
        assert_eq!(outcome(&mut world, |a| a.rdpkru()), Some(GP), "PKRU is number 0");
    });
    both(|mut world| {
        // IA32_PRED_CMD can only be written.
        world.change(|cpu| cpu.gpr.set(gpr::RCX, 0x49));
        assert_eq!(outcome(&mut world, |a| a.rdmsr()), Some(GP));
    });
}

#[test]
fn efer_nxe_can_be_cleared_in_64_bit_mode() {
    both(|mut world| {
        let outcome = outcome(&mut world, |a| {
            a.mov(ecx, 0xc000_0080u32)?;
            a.rdmsr()?;
            a.and(eax, !0x800)?;
            a.wrmsr()
        });
        assert_eq!(outcome, None);
        assert!(!world.cpu().efer.any(Efer::NXE) && world.cpu().efer.any(Efer::LMA));
    });
}

#[test]
fn rdpid_tells_ia32_tsc_aux() {
    both(|mut world| {
        world.change(|cpu| cpu.msr.tsc_aux = 0x1234_5678);
        assert_eq!(outcome(&mut world, |a| a.rdpid(rax)), None);
        assert_eq!(world.get(gpr::RAX), 0x1234_5678);
    });
}

#[test]
fn syscall_of_protected_mode_goes_where_star_says() {
    both(|mut world| {
        legacy(&mut world);
        world.change(|cpu| {
            cpu.efer = Efer(Efer::SCE);
            cpu.msr.star = USER | u64::from(CODE32 & !8) << 32 | u64::from(USER32) << 48;
            cpu.flags.set_bits(flags::IF | flags::CF);
        });
        world.code(CODE, 32, |a| a.syscall());
        world.code(USER, 32, |a| {
            a.hlt()?;
            a.mov(ecx, (USER + 0x100) as u32)?;
            a.db(&[0x0f, 0x07])
        });
        world.code(USER + 0x100, 32, |a| a.ud2());
        assert_eq!(world.run(), Exit::Halt);
        let cpu = world.cpu();
        assert_eq!((cpu.rip, cpu.gpr.get(gpr::RCX)), (USER + 1, CODE + 2));
        assert!(!cpu.flags.interrupt() && cpu.flags.carry());
        assert_eq!(cpu.segments[Seg::Cs].selector, CODE32 & !8);
        assert_eq!(cpu.segments[Seg::Ss].selector, CODE32);
        world.emulator.wake();
        assert_eq!(world.run_to_handler(), UD);
        let top = world.get(gpr::RSP);
        assert_eq!(
            [0, 4].map(|at| world.read(top + at, 4)),
            [USER + 0x100, u64::from(USER32)]
        );
        assert_eq!(world.read(top + 8, 4) & flags::IF, flags::IF, "SYSRET sets IF");
    });
}

/// Where PAE's four pointers are.
const POINTERS: u64 = 0x7_0000;

/// Turns paging with PAE on, then loads CR3 again.
fn with_pae(world: &mut World, pointers: [u64; 4]) -> Exit {
    legacy(world);
    for (i, pointer) in (0..).zip(pointers) {
        world.write(POINTERS + 8 * i, 8, pointer);
    }
    world.change(|cpu| {
        cpu.cr4.0 |= Cr4::PAE;
        cpu.cr3 = POINTERS;
    });
    world.code(CODE, 32, |a| {
        a.mov(eax, cr0)?;
        a.or(eax, Cr0::PG as u32 as i32)?;
        a.mov(cr0, eax)?;
        a.mov(ebx, dword_ptr(DATA))?;
        a.mov(eax, cr3)?;
        a.mov(cr3, eax)?;
        a.mov(eax, cr4)?;
        a.xor(eax, Cr4::PGE as i32)?;
        a.mov(cr4, eax)?;
        a.hlt()
    });
    world.run()
}

#[test]
fn paging_with_pae_begins_with_four_pointers_that_have_no_reserved_bits() {
    both(|mut world| {
        world.write(DATA, 4, 0x1234);
        assert_eq!(with_pae(&mut world, [PD | 1, 0, 0xffff_fffe, PD | 1]), Exit::Halt);
        assert!(world.cpu().rip < HANDLERS && world.cpu().cr4.any(Cr4::PGE));
        assert_eq!(world.get(gpr::RBX), 0x1234);
    });
    for (name, pointer) in [
        ("writable", PD | 3),
        ("bit 5", PD | 1 << 5 | 1),
        ("beyond memory", 1 << 62 | PD | 1),
    ] {
        both(|mut world| {
            assert_eq!(with_pae(&mut world, [PD | 1, 0, 0, pointer]), Exit::Halt, "{name}");
            assert_eq!((world.cpu().rip - HANDLERS) / 16, GP, "{name}");
            assert!(!world.cpu().cr0.any(Cr0::PG), "{name}");
        });
    }
}

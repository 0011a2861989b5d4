//! Control registers, MSRs, CPUID, ports, segment registers and the interrupt flag.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use reprise_emulator::cpu::{Cr0, Cr4, Efer, Seg, flags, gpr};
use reprise_emulator::{Direction, Exit, Space};

use crate::world::*;

const UD: u64 = 6;
const GP: u64 = 13;

/// Executes `write` at CPL 0, then HLT; `None` if it got there, else the vector of the exception.
pub fn outcome(world: &mut World, write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Option<u64> {
    world.code(CODE, 64, |a| {
        write(a)?;
        a.hlt()
    });
    assert_eq!(world.run(), Exit::Halt);
    let rip = world.cpu().rip;
    (rip >= HANDLERS).then(|| (rip - HANDLERS) / 16)
}

#[test]
fn cr0_refuses_what_makes_no_sense() {
    let on = Cr0::PE | Cr0::ET | Cr0::NE | Cr0::WP | Cr0::PG;
    for (name, value, expected) in [
        ("as it is", on, None),
        ("paging without protection", on & !Cr0::PE, Some(GP)),
        ("not write-through without cache disable", on | Cr0::NW, Some(GP)),
        ("bits above 31", on | 1 << 32, Some(GP)),
        ("paging off in 64-bit mode", on & !Cr0::PG, Some(GP)),
        ("a reserved bit, which is ignored", on | 1 << 10, None),
    ] {
        both(|mut world| {
            world.change(|cpu| cpu.gpr.set(gpr::RBX, value));
            assert_eq!(outcome(&mut world, |a| a.mov(cr0, rbx)), expected, "{name}");
            assert_eq!(world.cpu().cr0, Cr0(on), "{name}");
        });
    }
}

#[test]
fn cr4_has_only_what_cpuid_announces() {
    let on = Cr4::PAE | Cr4::OSFXSR | Cr4::FSGSBASE;
    for (name, value, expected) in [
        ("UMIP and debug extensions", on | Cr4::UMIP | Cr4::DE, None),
        ("without PAE in long mode", on & !Cr4::PAE, Some(GP)),
        ("five levels, in long mode", on | Cr4::LA57, Some(GP)),
        ("PCIDs", on | Cr4::PCIDE, None),
        ("a reserved bit", on | 1 << 15, Some(GP)),
    ] {
        both(|mut world| {
            world.change(|cpu| cpu.gpr.set(gpr::RBX, value));
            assert_eq!(outcome(&mut world, |a| a.mov(cr4, rbx)), expected, "{name}");
            let result = if expected.is_none() { value } else { on };
            assert_eq!(world.cpu().cr4, Cr4(result), "{name}");
        });
    }
}

#[test]
fn pcids_cannot_begin_with_one_in_cr3() {
    both(|mut world| {
        world.change(|cpu| {
            cpu.cr3 |= 8;
            cpu.gpr.set(gpr::RBX, cpu.cr4.0 | Cr4::PCIDE);
        });
        assert_eq!(outcome(&mut world, |a| a.mov(cr4, rbx)), Some(GP));
    });
}

#[test]
fn cr3_takes_no_address_beyond_physical_memory() {
    both(|mut world| {
        world.change(|cpu| cpu.gpr.set(gpr::RBX, PML4 | 1 << 50));
        assert_eq!(outcome(&mut world, |a| a.mov(cr3, rbx)), Some(GP));
        assert_eq!(world.cpu().cr3, PML4);
    });
}

#[test]
fn a_new_cr3_forgets_translations() {
    both(|mut world| {
        // A second set of tables, with small pages, that leads DATA to the page behind it.
        let other = 0x7_0000;
        world.write(other, 8, (other + 0x1000) | 7);
        world.write(other + 0x1000, 8, (other + 0x2000) | 7);
        for page in 0..512 {
            world.write(other + 0x3000 + page * 8, 8, page << 12 | 0x67);
        }
        world.write(other + 0x3000 + (DATA >> 12) * 8, 8, (DATA + 0x1000) | 0x67);
        world.write(other + 0x2000, 8, (other + 0x3000) | 7);
        let device = world.read(PD + 8, 8);
        world.write(other + 0x2008, 8, device);
        world.write(DATA, 8, 1);
        world.write(DATA + 0x1000, 8, 2);
        let outcome = outcome(&mut world, |a| {
            a.mov(rax, qword_ptr(DATA))?;
            a.mov(rbx, other)?;
            a.mov(cr3, rbx)?;
            a.mov(rdx, qword_ptr(DATA))
        });
        assert_eq!(outcome, None);
        assert_eq!((world.get(gpr::RAX), world.get(gpr::RDX)), (1, 2));
    });
}

#[test]
fn user_mode_executes_no_privileged_instruction() {
    let rows: [(&str, &[u8]); 9] = [
        ("hlt", &[0xf4]),
        ("mov rax, cr0", &[0x0f, 0x20, 0xc0]),
        ("mov cr3, rax", &[0x0f, 0x22, 0xd8]),
        ("wrmsr", &[0x0f, 0x30]),
        ("rdmsr", &[0x0f, 0x32]),
        ("cli", &[0xfa]),
        ("lgdt [rbx]", &[0x0f, 0x01, 0x13]),
        ("in al, dx", &[0xec]),
        ("swapgs", &[0x0f, 0x01, 0xf8]),
    ];
    for (name, bytes) in rows {
        both(|mut world| {
            world.user();
            world.write(world.tables + TSS + IO_MAP, 8, u64::MAX);
            world.code(USER, 64, |a| a.db(bytes));
            assert_eq!(world.run_to_handler(), GP, "{name}");
            assert_eq!(world.frame(true).code, Some(0), "{name}");
        });
    }
}

#[test]
fn the_io_map_opens_single_ports_to_user_mode() {
    both(|mut world| {
        world.user();
        let map = world.tables + TSS + IO_MAP;
        world.write(map, 8, !(1 << 0x21));
        world.code(USER, 64, |a| {
            a.in_(al, 0x21)?;
            a.in_(ax, 0x21)
        });
        assert_eq!(world.run_to_handler(), GP);
        // The second covers port 0x22 as well.
        assert_eq!(world.frame(true).rip, USER + 2);
        assert_eq!(world.trace, [(Space::Port, 0x21, Direction::Read)]);
        assert_eq!(world.get(gpr::RAX) & 0xff, 0x78);
    });
}

#[test]
fn a_port_write_reaches_the_device_once() {
    both(|mut world| {
        let outcome = outcome(&mut world, |a| {
            a.mov(eax, 0xabcd_ef12u32)?;
            a.mov(edx, 0x3f8)?;
            a.out(dx, ax)
        });
        assert_eq!(outcome, None);
        assert_eq!(world.trace, [(Space::Port, 0x3f8, Direction::Write(0xef12))]);
    });
}

#[test]
fn processor_msrs_take_what_they_may() {
    let rows = [
        ("LSTAR, canonical", 0xc000_0082, 0xffff_8000_0000_0000, None),
        ("LSTAR, not canonical", 0xc000_0082, 0x8000_0000_0000, Some(GP)),
        ("GS base", 0xc000_0101, 0xffff_ffff_8000_0000, None),
        ("PAT of known types", 0x277, 0x0007_0106_0007_0106, None),
        ("PAT with a reserved type", 0x277, 2, Some(GP)),
        ("EFER with a reserved bit", 0xc000_0080, 0xd01 | 1 << 1, Some(GP)),
        ("EFER without LME under paging", 0xc000_0080, 0xc01, Some(GP)),
        ("MTRR default type", 0x2ff, 0xc06, None),
        ("nobody's", 0x1234_5678, 0, Some(GP)),
    ];
    for (name, msr, value, expected) in rows {
        both(|mut world| {
            world.change(|cpu| {
                cpu.gpr.set(gpr::RCX, msr);
                cpu.gpr.set(gpr::RAX, value & 0xffff_ffff);
                cpu.gpr.set(gpr::RDX, value >> 32);
            });
            let outcome = outcome(&mut world, |a| {
                a.wrmsr()?;
                a.xor(eax, eax)?;
                a.xor(edx, edx)?;
                a.rdmsr()
            });
            assert_eq!(outcome, expected, "{name}");
            if expected.is_none() {
                assert_eq!(world.get(gpr::RDX) << 32 | world.get(gpr::RAX), value, "{name}");
            }
        });
    }
}

#[test]
fn the_platform_is_asked_for_its_msrs() {
    both(|mut world| {
        let outcome = outcome(&mut world, |a| {
            a.mov(ecx, 0x10)?;
            a.rdmsr()
        });
        assert_eq!(outcome, None);
        assert_eq!(world.get(gpr::RAX), 0x1234_5678);
        assert_eq!(world.trace, [(Space::Msr, 0x10, Direction::Read)]);
    });
}

#[test]
fn swapgs_swaps_the_bases() {
    both(|mut world| {
        world.change(|cpu| {
            cpu.segments[Seg::Gs].base = DATA;
            cpu.msr.kernel_gs_base = DATA + 0x100;
        });
        world.write(DATA + 0x108, 8, 77);
        let outcome = outcome(&mut world, |a| {
            a.swapgs()?;
            a.mov(rax, qword_ptr(8).gs())?;
            a.rdgsbase(rbx)
        });
        assert_eq!(outcome, None);
        assert_eq!((world.get(gpr::RAX), world.get(gpr::RBX)), (77, DATA + 0x100));
        assert_eq!(world.cpu().msr.kernel_gs_base, DATA);
    });
}

#[test]
fn cr8_is_the_task_priority() {
    both(|mut world| {
        let outcome = outcome(&mut world, |a| {
            a.mov(ebx, 9)?;
            a.mov(cr8, rbx)?;
            a.mov(rax, cr8)
        });
        assert_eq!(outcome, None);
        assert_eq!((world.task_priority, world.get(gpr::RAX)), (9, 9));
    });
}

#[test]
fn xcr0_keeps_x87_and_takes_what_is_announced() {
    for (name, value, expected) in [
        ("x87 and SSE", 3, None),
        ("without x87", 2, Some(GP)),
        ("AVX, not announced", 7, Some(GP)),
    ] {
        both(|mut world| {
            world.change(|cpu| {
                cpu.cr4.0 |= Cr4::OSXSAVE;
                cpu.gpr.set(gpr::RAX, value);
                cpu.gpr.set(gpr::RDX, 0);
                cpu.gpr.set(gpr::RCX, 0);
            });
            assert_eq!(outcome(&mut world, |a| a.xsetbv()), expected, "{name}");
        });
    }
    both(|mut world| assert_eq!(outcome(&mut world, |a| a.xgetbv()), Some(UD)));
}

#[test]
fn interrupts_wait_for_one_instruction_after_sti() {
    both(|mut world| {
        world.emulator.request_window();
        world.code(CODE, 64, |a| {
            a.xor(eax, eax)?;
            a.sti()?;
            a.inc(eax)?;
            a.inc(eax)?;
            a.hlt()
        });
        assert_eq!(world.run(), Exit::Attention);
        assert_eq!(world.get(gpr::RAX), 1);
        assert!(world.cpu().accepts_interrupts());
    });
}

#[test]
fn interrupts_wait_for_one_instruction_after_a_load_of_ss() {
    both(|mut world| {
        world.code(CODE, 64, |a| {
            a.xor(eax, eax)?;
            a.mov(ecx, u32::from(DATA0))?;
            a.sti()?;
            a.mov(ss, ecx)?;
            a.inc(eax)?;
            a.inc(eax)?;
            a.hlt()
        });
        world.emulator.request_window();
        assert_eq!(world.run(), Exit::Attention);
        assert_eq!(world.get(gpr::RAX), 1);
    });
}

#[test]
fn popf_in_user_mode_changes_neither_if_nor_iopl() {
    both(|mut world| {
        world.user();
        world.change(|cpu| cpu.flags.set_bits(flags::IF));
        world.code(USER, 64, |a| {
            a.push(0x3000 | 0x40001)?;
            a.popfq()?;
            a.ud2()
        });
        assert_eq!(world.run_to_handler(), UD);
        let image = world.frame(false).flags;
        assert_eq!(image & !flags::RF, flags::IF | flags::CF | flags::AC | 2);
    });
}

#[test]
fn lar_and_lsl_tell_what_may_be_seen() {
    for (name, selector, seen) in [
        ("user data", USER_DATA, Some((0xcf_f300, 0xffff_ffff))),
        ("a kernel segment with a user RPL", DATA0 | 3, None),
        ("beyond the table", 0x7ff8, None),
        ("null", 0, None),
    ] {
        both(|mut world| {
            world.change(|cpu| cpu.gpr.set(gpr::RBX, u64::from(selector)));
            let outcome = outcome(&mut world, |a| {
                a.xor(eax, eax)?;
                a.xor(edx, edx)?;
                a.lar(eax, ebx)?;
                a.lsl(edx, ebx)
            });
            assert_eq!(outcome, None);
            assert_eq!(world.cpu().flags.zero(), seen.is_some(), "{name}");
            let expected = seen.unwrap_or((0, 0));
            assert_eq!((world.get(gpr::RAX), world.get(gpr::RDX)), expected, "{name}");
        });
    }
}

#[test]
fn loading_a_segment_marks_its_descriptor_accessed() {
    both(|mut world| {
        let at = world.tables + u64::from(DATA0);
        world.write(at, 8, descriptor(0xc092, 0xf_ffff));
        let outcome = outcome(&mut world, |a| {
            a.mov(eax, u32::from(DATA0))?;
            a.mov(es, eax)
        });
        assert_eq!(outcome, None);
        assert_eq!(world.read(at, 8), descriptor(0xc093, 0xf_ffff));
        assert_eq!(world.cpu().segments[Seg::Es].attributes.0, 0xc093);
    });
}

#[test]
fn ltr_makes_the_task_busy_and_takes_it_once() {
    both(|mut world| {
        let code = |a: &mut CodeAssembler| {
            a.mov(eax, u32::from(TASK))?;
            a.ltr(eax)
        };
        assert_eq!(outcome(&mut world, code), None);
        assert_eq!(world.read(world.tables + u64::from(TASK) + 5, 1), 0x8b);
        assert_eq!(world.cpu().tr.base, world.tables + TSS);
        world.emulator.wake();
        world.change(|cpu| cpu.rip = CODE);
        assert_eq!(world.run_to_handler(), GP);
        assert_eq!(world.frame(true).code, Some(u64::from(TASK)));
    });
}

#[test]
fn lgdt_and_sgdt_agree() {
    both(|mut world| {
        world.write(DATA, 2, 0x6f);
        let base = world.tables;
        world.write(DATA + 2, 8, base);
        let outcome = outcome(&mut world, |a| {
            a.mov(rbx, DATA)?;
            a.lgdt(ptr(rbx))?;
            a.sgdt(ptr(rbx + 16))
        });
        assert_eq!(outcome, None);
        assert_eq!((world.read(DATA + 16, 2), world.read(DATA + 18, 8)), (0x6f, base));
    });
}

#[test]
fn umip_hides_tables_from_user_mode() {
    both(|mut world| {
        world.user();
        world.change(|cpu| cpu.cr4.0 |= Cr4::UMIP);
        world.code(USER, 64, |a| a.str(eax));
        assert_eq!(world.run_to_handler(), GP);
    });
}

#[test]
fn cpuid_answers_and_mirrors_osxsave() {
    both(|mut world| {
        world.change(|cpu| cpu.cr4.0 |= Cr4::OSXSAVE);
        let outcome = outcome(&mut world, |a| {
            a.mov(eax, 1)?;
            a.cpuid()
        });
        assert_eq!(outcome, None);
        assert_eq!(world.get(gpr::RCX), 1 << 17 | 1 << 26 | 1 << 27);
    });
}

#[test]
fn a_hypercall_returns_in_rax() {
    both(|mut world| {
        let outcome = outcome(&mut world, |a| {
            a.mov(eax, 5)?;
            a.vmmcall()
        });
        assert_eq!(outcome, None);
        assert_eq!(world.get(gpr::RAX), 7 << 32 | 6);
    });
}

#[test]
fn a_hypercall_that_is_refused_is_an_undefined_opcode() {
    both(|mut world| {
        let outcome = outcome(&mut world, |a| {
            a.mov(eax, 0xbad)?;
            a.vmcall()
        });
        assert_eq!(outcome, Some(UD));
        assert_eq!(world.get(gpr::RAX), 0xbad);
    });
}

#[test]
fn the_clock_can_be_kept_from_user_mode() {
    both(|mut world| {
        world.user();
        world.change(|cpu| cpu.cr4.0 |= Cr4::TSD);
        world.code(USER, 64, |a| a.rdtsc());
        assert_eq!(world.run_to_handler(), GP);
    });
    both(|mut world| {
        assert_eq!(outcome(&mut world, |a| a.rdtsc()), None);
        assert_eq!((world.get(gpr::RAX), world.get(gpr::RDX)), (0x5566_7788, 0x1122_3344));
    });
}

#[test]
fn chance_comes_with_carry_set_and_the_other_flags_clear() {
    both(|mut world| {
        world.change(|cpu| cpu.flags.set_bits(flags::STATUS));
        assert_eq!(outcome(&mut world, |a| a.rdrand(ax)), None);
        assert_eq!(world.get(gpr::RAX), 0xff00);
        assert_eq!(world.cpu().flags.status(), flags::CF);
    });
}

#[test]
fn debug_registers_fault_under_general_detect_and_say_why() {
    both(|mut world| {
        world.change(|cpu| cpu.dr7 |= 1 << 13);
        world.code(CODE, 64, |a| a.mov(rax, dr0));
        assert_eq!(world.run_to_handler(), 1);
        assert_eq!(world.cpu().dr6 & 1 << 13, 1 << 13);
        assert_eq!(world.cpu().dr7 & 1 << 13, 0);
        assert_eq!(world.frame(false).rip, CODE);
    });
}

#[test]
fn a_debug_register_that_is_not_there_is_undefined_where_the_privilege_level_is_right() {
    for (bits, is_user, vector) in [(Cr4::DE, false, 6), (Cr4::DE, true, GP), (0, true, GP), (0, false, 1)] {
        both(|mut world| {
            if is_user {
                world.user();
            }
            world.change(|cpu| {
                cpu.cr4.0 |= bits;
                cpu.dr7 |= 1 << 13;
            });
            let at = world.cpu().rip;
            // mov rax, dr4
            world.code(at, 64, |a| a.db(&[0x0f, 0x21, 0xe0]));
            assert_eq!(world.run_to_handler(), vector);
        });
    }
}

#[test]
fn efer_lma_cannot_be_written() {
    both(|mut world| {
        let outcome = outcome(&mut world, |a| {
            a.mov(ecx, 0xc000_0080u32)?;
            a.rdmsr()?;
            a.and(eax, !0x400)?;
            a.wrmsr()
        });
        assert_eq!(outcome, None);
        assert!(world.cpu().efer.any(Efer::LMA));
    });
}

#[test]
fn from_outside_a_program_s_code_is_found_though_smap_keeps_its_kernel_from_it() {
    let mut world = World::new(0x8_0000);
    world.change(|cpu| cpu.cr4.0 |= Cr4::SMAP);
    let mut aside = world.emulator.aside();
    assert_eq!((aside.translate(DATA), aside.translate_code(DATA)), (None, Some(DATA)));
    drop(aside);
    world.write(PD, 8, 0xe3);
    let mut aside = world.emulator.aside();
    assert_eq!((aside.translate(DATA), aside.translate_code(DATA)), (Some(DATA), None));
}

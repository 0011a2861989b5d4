//! Which of several exceptions that an instruction could raise it does raise: the rows of the table that level 3 of the processor
//! that runs the tests does not show, or not all of.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use reprise_emulator::cpu::{Cr0, Cr4, flags, gpr};
use reprise_emulator::{Cpu, Entry, Event, Exit};

use crate::world::*;

const DB: u64 = 1;
const NMI: u64 = 2;
const UD: u64 = 6;
const NM: u64 = 7;
const SS: u64 = 12;
const GP: u64 = 13;
const PF: u64 = 14;
const MF: u64 = 16;
const AC: u64 = 17;
/// No page is there.
const NOWHERE: u64 = 0x40_0000;
/// No address is this.
const NOT_CANONICAL: u64 = 1 << 63;

type Code = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// What `code` raises at level 3, where whatever is wrong with its stack keeps no exception from being delivered, after
/// `change`.
fn raised(code: Code, change: impl Fn(&mut Cpu)) -> u64 {
    let vector = std::cell::Cell::new(0);
    both(|mut world| {
        world.user();
        world.code(USER, 64, code);
        world.change(&change);
        let found = world.run_to_handler();
        let before = vector.replace(found);
        assert!(
            before == 0 || before == found,
            "tables in RAM: {before}, in a device: {found}"
        );
    });
    vector.get()
}

#[test]
fn a_trap_comes_before_an_interrupt_and_that_before_the_breakpoint_on_the_next_instruction() {
    let mut world = World::new(0x10_0000);
    world.code(CODE, 64, |a| {
        a.nop()?;
        a.nop()?;
        a.nop()
    });
    world.change(|cpu| {
        cpu.flags.set_bits(flags::TF | flags::IF);
        cpu.dr[0] = CODE + 1;
        cpu.dr7 = 0x402;
    });
    assert_eq!(world.emulator.run_at_most(Entry::Resume, 1).unwrap(), Exit::Attention);
    assert!(!world.cpu().accepts_interrupts(), "in the handler of the single step");
    assert_eq!(world.cpu().rip, HANDLERS + DB * 16);
    assert_eq!((world.frame(false).rip, world.cpu().dr6 & 0x400f), (CODE + 1, 0x4000));
    // The same without the step: the interrupt first, and the breakpoint when it has returned.
    world.change(|cpu| {
        cpu.rip = CODE;
        cpu.flags.set_bits(flags::IF);
    });
    assert_eq!(world.emulator.run_at_most(Entry::Resume, 1).unwrap(), Exit::Attention);
    assert!(world.emulator.inject(Event::external(0x40)));
    assert_eq!(world.run_to_handler(), 0x40);
    assert_eq!(world.frame(false).rip, CODE + 1);
    world.emulator.wake();
    assert_eq!(world.run_to_handler(), DB);
    assert_eq!((world.frame(false).rip, world.cpu().dr6 & 0xf), (CODE + 1, 1));
}

#[test]
fn an_nmi_that_comes_after_a_single_step_interrupts_its_handler() {
    let mut world = World::new(0x10_0000);
    world.code(CODE, 64, |a| a.nop());
    world.change(|cpu| cpu.flags.set_bits(flags::TF));
    assert_eq!(world.emulator.run_at_most(Entry::Resume, 1).unwrap(), Exit::Attention);
    assert!(world.emulator.inject(Event::nmi()));
    assert_eq!(world.run_to_handler(), NMI);
    assert_eq!(world.frame(false).rip, HANDLERS + DB * 16);
}

#[test]
fn x87_is_not_available_before_its_exceptions_wait_and_those_come_before_the_operand() {
    let operand: Code = |a| a.fld(qword_ptr(NOWHERE));
    let wait = |cpu: &mut Cpu| {
        // A division by zero that is not masked has happened.
        cpu.fpu.control = 0x037b;
        cpu.fpu.status = 0x8084;
        cpu.cr0.0 |= Cr0::NE;
    };
    assert_eq!(raised(operand, |_| {}), PF);
    assert_eq!(raised(operand, wait), MF);
    for bit in [Cr0::EM, Cr0::TS] {
        let code = |cpu: &mut Cpu| {
            wait(cpu);
            cpu.cr0.0 |= bit;
        };
        assert_eq!(raised(operand, code), NM);
    }
    let wide: Code = |a| a.movq(mm0, qword_ptr(NOWHERE));
    assert_eq!(raised(wide, |_| {}), PF);
    assert_eq!(raised(wide, wait), MF);
    let gone = |bits: u64| {
        move |cpu: &mut Cpu| {
            wait(cpu);
            cpu.cr0.0 |= bits;
        }
    };
    assert_eq!(raised(wide, gone(Cr0::TS)), NM);
    assert_eq!(raised(wide, gone(Cr0::TS | Cr0::EM)), UD);
}

#[test]
fn sse_is_undefined_then_not_available_then_misaligned_then_not_there() {
    let misaligned: Code = |a| a.movaps(xmm0, xmmword_ptr(NOWHERE + 8));
    let aligned: Code = |a| a.movaps(xmm0, xmmword_ptr(NOWHERE));
    assert_eq!(raised(aligned, |_| {}), PF);
    assert_eq!(raised(misaligned, |_| {}), GP);
    assert_eq!(raised(misaligned, |cpu| cpu.cr0.0 |= Cr0::TS), NM);
    assert_eq!(raised(misaligned, |cpu| cpu.cr0.0 |= Cr0::TS | Cr0::EM), UD);
    let without = |cpu: &mut Cpu| {
        cpu.cr0.0 |= Cr0::TS;
        cpu.cr4.0 &= !Cr4::OSFXSR;
    };
    assert_eq!(raised(misaligned, without), UD);
}

#[test]
fn fxsave_is_not_available_before_its_area_is_misaligned_or_not_there() {
    let misaligned: Code = |a| a.fxsave(ptr(NOWHERE + 8));
    assert_eq!(raised(misaligned, |_| {}), GP);
    assert_eq!(raised(misaligned, |cpu| cpu.cr0.0 |= Cr0::TS), NM);
    assert_eq!(raised(|a| a.fxsave(ptr(NOWHERE)), |_| {}), PF);
}

#[test]
fn an_operand_is_canonical_then_aligned_then_there() {
    let check = |cpu: &mut Cpu| {
        cpu.cr0.0 |= Cr0::AM;
        cpu.flags.set_bits(flags::AC);
        cpu.gpr.set(gpr::RBX, NOT_CANONICAL + 1);
    };
    assert_eq!(raised(|a| a.mov(eax, dword_ptr(rbx)), check), GP);
    assert_eq!(raised(|a| a.mov(eax, dword_ptr(NOWHERE + 1)), check), AC);
    assert_eq!(raised(|a| a.mov(eax, dword_ptr(NOWHERE + 1)), |_| {}), PF);
}

#[test]
fn of_two_pages_the_first_is_missed_first_and_a_change_is_a_write() {
    for (address, missed) in [(NOWHERE - 2, NOWHERE), (NOWHERE + 0xffe, NOWHERE + 0xffe)] {
        both(|mut world| {
            world.user();
            world.code(USER, 64, |a| a.add(dword_ptr(address), 1));
            assert_eq!(world.run_to_handler(), PF);
            assert_eq!(world.cpu().cr2, missed);
            assert_eq!(world.frame(true).code, Some(1 << 1 | 1 << 2), "written, by level 3");
        });
    }
}

#[test]
fn what_is_pushed_is_read_before_the_stack_is_looked_at_and_what_is_popped_is_stored_after() {
    let lost = |cpu: &mut Cpu| cpu.gpr.set(gpr::RSP, NOT_CANONICAL);
    assert_eq!(raised(|a| a.push(qword_ptr(NOWHERE)), lost), PF);
    assert_eq!(raised(|a| a.push(qword_ptr(DATA)), lost), SS);
    assert_eq!(raised(|a| a.pop(qword_ptr(NOWHERE)), lost), SS);
    assert_eq!(raised(|a| a.pop(qword_ptr(NOWHERE)), |_| {}), PF);
}

#[test]
fn a_near_call_reads_its_operand_then_pushes_then_looks_where_it_goes() {
    let bad_target = |cpu: &mut Cpu| cpu.gpr.set(gpr::RBX, NOT_CANONICAL);
    let all_bad = |cpu: &mut Cpu| {
        bad_target(cpu);
        cpu.gpr.set(gpr::RSP, NOT_CANONICAL);
    };
    assert_eq!(raised(|a| a.call(qword_ptr(NOWHERE)), all_bad), PF);
    assert_eq!(raised(|a| a.call(rbx), all_bad), SS);
    assert_eq!(raised(|a| a.call(rbx), bad_target), GP);
    both(|mut world| {
        world.user();
        world.code(USER, 64, |a| a.jmp(rbx));
        world.change(bad_target);
        assert_eq!(world.run_to_handler(), GP);
        assert_eq!(world.frame(true).rip, USER, "at the jump");
    });
}

#[test]
fn a_privilege_level_is_wrong_before_an_operand_is() {
    let rows: [Code; 6] = [
        |a| a.lgdt(ptr(NOWHERE)),
        |a| a.lidt(ptr(NOWHERE)),
        |a| a.lmsw(word_ptr(NOWHERE)),
        |a| a.lldt(word_ptr(NOWHERE)),
        |a| a.ltr(word_ptr(NOWHERE)),
        |a| a.invlpg(ptr(rbx)),
    ];
    for code in rows {
        assert_eq!(raised(code, |cpu| cpu.gpr.set(gpr::RBX, NOT_CANONICAL)), GP);
    }
    for code in [
        (|a| a.sgdt(ptr(NOWHERE))) as Code,
        |a| a.sidt(ptr(NOWHERE)),
        |a| a.smsw(word_ptr(NOWHERE)),
    ] {
        assert_eq!(raised(code, |_| {}), PF);
        assert_eq!(raised(code, |cpu| cpu.cr4.0 |= Cr4::UMIP), GP);
    }
    // At level 0 a value is looked at last.
    both(|mut world| {
        world.change(|cpu| {
            cpu.dr7 |= 1 << 13;
            cpu.gpr.set(gpr::RAX, 1 << 32);
        });
        world.code(CODE, 64, |a| a.mov(dr7, rax));
        assert_eq!(world.run_to_handler(), DB);
        world.change(|cpu| cpu.rip = CODE);
        world.emulator.wake();
        assert_eq!(world.run_to_handler(), GP);
    });
}

#[test]
fn a_port_is_refused_before_a_string_is_looked_at_and_asked_after_it() {
    let rows: [Code; 2] = [|a| a.insb(), |a| a.outsb()];
    for code in rows {
        for is_open in [false, true] {
            both(|mut world| {
                world.user();
                world.write(world.tables + TSS + IO_MAP, 8, if is_open { 0 } else { u64::MAX });
                world.code(USER, 64, code);
                world.change(|cpu| {
                    cpu.gpr.set(gpr::RDX, 0x21);
                    cpu.gpr.set(gpr::RSI, NOWHERE);
                    cpu.gpr.set(gpr::RDI, NOWHERE);
                });
                assert_eq!(world.run_to_handler(), if is_open { PF } else { GP });
                assert_eq!(world.trace, [], "no device is asked");
            });
        }
    }
}

#[test]
fn elements_wrap_around_with_the_address_size() {
    both(|mut world| {
        world.user();
        // vmaskmovps xmm0, xmm1, [edi]: the second element; and HLT, which is not for level 3.
        world.code(USER, 64, |a| a.db(&[0x67, 0xc4, 0xe2, 0x71, 0x2c, 0x07, 0xf4]));
        world.change(|cpu| {
            cpu.cr4.0 |= Cr4::OSXSAVE;
            cpu.xcr0 = 7;
            cpu.gpr.set(gpr::RDI, 0xffff_ffff);
            cpu.fpu.vectors[1] = [1 << 63, 0, 0, 0, 0, 0, 0, 0];
        });
        world.write(3, 4, 0x1234_5678);
        assert_eq!(world.run_to_handler(), GP);
        assert_eq!(world.frame(true).rip, USER + 6);
        assert_eq!(world.cpu().fpu.vectors[0][0], 0x1234_5678 << 32);
    });
}

#[test]
fn an_operand_of_which_nothing_is_selected_is_aligned_and_may_be_anywhere() {
    // vmovdqa32 [rdi] {k6}, zmm0, and HLT, which is not for level 3.
    for (address, code) in [(NOT_CANONICAL, 6), (NOWHERE, 6), (NOT_CANONICAL + 4, 0)] {
        both(|mut world| {
            world.user();
            world.code(USER, 64, |a| a.db(&[0x62, 0xf1, 0x7d, 0x4e, 0x7f, 0x07, 0xf4]));
            world.change(|cpu| {
                cpu.cr4.0 |= Cr4::OSXSAVE;
                cpu.xcr0 = 0xe7;
                cpu.gpr.set(gpr::RDI, address);
            });
            assert_eq!(world.run_to_handler(), GP);
            assert_eq!(world.frame(true).rip, USER + code);
        });
    }
}

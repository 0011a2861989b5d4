//! Delivery of exceptions and interrupts in long mode and real mode.

use iced_x86::code_asm::*;
use reprise_emulator::cpu::{Cr0, Cr4, Efer, Seg, Segment, TableRegister, flags, gpr};
use reprise_emulator::{Emulator, Entry, Event, Exit};

use crate::world::*;

const UD: u64 = 6;
const DF: u64 = 8;
const NP: u64 = 11;
const GP: u64 = 13;
const PF: u64 = 14;

#[test]
fn an_exception_in_user_mode_is_handled_on_the_kernel_stack() {
    both(|mut world| {
        world.user();
        world.change(|cpu| cpu.flags.set_bits(flags::IF | flags::CF));
        world.code(USER, 64, |a| a.ud2());
        assert_eq!(world.run_to_handler(), UD);
        let expected = Frame {
            code: None,
            rip: USER,
            cs: u64::from(USER64),
            flags: flags::IF | flags::CF | flags::RF | 2,
            rsp: USER_STACK,
            ss: u64::from(USER_DATA),
        };
        assert_eq!(world.frame(false), expected);
        let cpu = world.cpu();
        assert_eq!(cpu.cpl(), 0);
        assert_eq!(cpu.segments[Seg::Ss].selector, 0);
        assert_eq!(cpu.segments[Seg::Cs].selector, CODE64);
        assert!(!cpu.flags.interrupt() && !cpu.flags.any(flags::RF));
        assert_eq!(world.get(gpr::RSP), world.tables + STACK0 - 40);
    });
}

#[test]
fn at_the_same_privilege_the_stack_is_only_aligned() {
    both(|mut world| {
        let top = world.tables + STACK - 0x18;
        world.change(|cpu| cpu.gpr.set(gpr::RSP, top));
        world.code(CODE, 64, |a| a.ud2());
        assert_eq!(world.run_to_handler(), UD);
        assert_eq!(world.get(gpr::RSP), (top & !15) - 40);
        let frame = world.frame(false);
        assert_eq!((frame.rsp, frame.ss), (top, u64::from(DATA0)));
        assert_eq!(world.cpu().segments[Seg::Ss].selector, DATA0);
    });
}

#[test]
fn the_interrupt_stack_table_counts_at_the_same_privilege_too() {
    both(|mut world| {
        world.gate(UD, 0x8e, 1);
        world.code(CODE, 64, |a| a.ud2());
        assert_eq!(world.run_to_handler(), UD);
        assert_eq!(world.get(gpr::RSP), ((world.tables + IST1) & !15) - 40);
    });
}

#[test]
fn a_selector_that_does_not_fit_is_the_error_code() {
    both(|mut world| {
        world.user();
        world.code(USER, 64, |a| {
            a.mov(eax, u32::from(DATA0))?;
            a.mov(ds, eax)
        });
        assert_eq!(world.run_to_handler(), GP);
        let frame = world.frame(true);
        assert_eq!((frame.code, frame.rip), (Some(u64::from(DATA0)), USER + 5));
    });
}

#[test]
fn a_page_fault_tells_address_and_reason() {
    both(|mut world| {
        world.user();
        world.code(USER, 64, |a| {
            a.mov(rbx, 0x1234_5678u64)?;
            a.mov(byte_ptr(rbx), al)
        });
        assert_eq!(world.run_to_handler(), PF);
        // A write by user code to a page that is not present.
        assert_eq!(world.frame(true).code, Some(6));
        assert_eq!(world.cpu().cr2, 0x1234_5678);
    });
}

#[test]
fn a_software_interrupt_returns_behind_itself() {
    both(|mut world| {
        world.user();
        world.gate(0x80, 0xef, 0);
        world.change(|cpu| cpu.flags.set_bits(flags::IF));
        world.code(USER, 64, |a| a.int(0x80));
        assert_eq!(world.run_to_handler(), 0x80);
        let frame = world.frame(false);
        assert_eq!((frame.rip, frame.flags), (USER + 2, flags::IF | 2));
        // A trap gate leaves IF as it is.
        assert!(world.cpu().flags.interrupt());
    });
}

#[test]
fn a_software_interrupt_needs_a_gate_of_its_privilege() {
    both(|mut world| {
        world.user();
        world.code(USER, 64, |a| a.int(0x80));
        assert_eq!(world.run_to_handler(), GP);
        let frame = world.frame(true);
        assert_eq!((frame.code, frame.rip), (Some(0x80 * 8 + 2), USER));
    });
}

#[test]
fn an_exception_needs_no_privilege_for_its_gate() {
    both(|mut world| {
        world.user();
        world.code(USER, 64, |a| a.int1());
        assert_eq!(world.run_to_handler(), 1);
        assert_eq!(world.frame(false).rip, USER + 1);
    });
}

#[test]
fn an_absent_gate_names_its_vector_and_says_external() {
    both(|mut world| {
        world.gate(UD, 0x0e, 0);
        world.code(CODE, 64, |a| a.ud2());
        assert_eq!(world.run_to_handler(), NP);
        assert_eq!(world.frame(true).code, Some(UD * 8 + 3));
        // Only the second delivery's frame is on the stack.
        assert_eq!(world.get(gpr::RSP), world.tables + STACK - 48);
    });
}

#[test]
fn a_contributory_exception_on_the_way_to_another_is_a_double_fault() {
    both(|mut world| {
        world.gate(GP, 0x0e, 0);
        world.gate(DF, 0x8e, 1);
        world.code(CODE, 64, |a| {
            a.mov(eax, 0x7ff8)?;
            a.mov(ds, eax)
        });
        assert_eq!(world.run_to_handler(), DF);
        let frame = world.frame(true);
        assert_eq!((frame.code, frame.rip), (Some(0), CODE + 5));
    });
}

#[test]
fn a_page_fault_on_the_way_to_a_page_fault_leaves_its_own_address() {
    both(|mut world| {
        world.gate(DF, 0x8e, 1);
        world.change(|cpu| cpu.gpr.set(gpr::RSP, 0x7777_0000));
        world.code(CODE, 64, |a| {
            a.mov(rbx, 0x1234_5678u64)?;
            a.mov(al, byte_ptr(rbx))
        });
        assert_eq!(world.run_to_handler(), DF);
        assert_eq!(world.cpu().cr2, 0x7776_fff8);
    });
}

#[test]
fn a_fault_on_the_way_to_a_double_fault_shuts_down() {
    both(|mut world| {
        world.change(|cpu| {
            cpu.idtr = TableRegister {
                base: cpu.idtr.base,
                limit: 0,
            }
        });
        world.code(CODE, 64, |a| a.ud2());
        assert_eq!(world.run(), Exit::Shutdown);
        assert_eq!(world.cpu().rip, CODE);
        // It stays down.
        assert_eq!(world.run(), Exit::Shutdown);
    });
}

#[test]
fn exceptions_without_an_instruction_between_them_come_to_an_end_too() {
    let mut world = World::new(0x10_0000);
    world.code(CODE, 64, |a| a.ud2());
    world.code(HANDLERS + 6 * 16, 64, |a| a.ud2());
    let before = world.emulator.counters();
    assert_eq!(world.emulator.run_at_most(Entry::Resume, 1).unwrap(), Exit::Attention);
    let after = world.emulator.counters();
    assert_eq!(after.events - before.events, Emulator::DELIVERIES);
    assert_eq!(after.instructions, before.instructions);
}

#[test]
fn an_nmi_holds_off_the_next_until_iret() {
    both(|mut world| {
        world.code(CODE, 64, |a| a.hlt());
        assert!(world.emulator.inject(Event::nmi()));
        assert_eq!(world.run_to_handler(), 2);
        assert!(!world.cpu().accepts_nmi());
        world.emulator.wake();
        assert_eq!(world.run(), Exit::Halt);
        assert_eq!(world.cpu().rip, CODE + 1);
        assert!(world.cpu().accepts_nmi());
    });
}

#[test]
fn an_interrupt_is_no_fault_and_repeats_nothing() {
    both(|mut world| {
        world.change(|cpu| cpu.flags.set_bits(flags::IF));
        world.code(CODE, 64, |a| a.hlt());
        assert!(world.emulator.inject(Event::external(0x40)));
        assert_eq!(world.run_to_handler(), 0x40);
        assert_eq!(world.frame(false).flags, flags::IF | 2);
        assert!(!world.cpu().flags.interrupt());
    });
}

#[test]
fn a_trap_after_each_instruction_while_tf_is_set() {
    both(|mut world| {
        world.change(|cpu| cpu.flags.set_bits(flags::TF));
        world.code(CODE, 64, |a| {
            a.nop()?;
            a.hlt()
        });
        assert_eq!(world.run_to_handler(), 1);
        let frame = world.frame(false);
        assert_eq!((frame.rip, frame.flags), (CODE + 1, flags::TF | 2));
        assert_eq!(world.cpu().dr6 & 1 << 14, 1 << 14);
        assert!(!world.cpu().flags.any(flags::TF));
    });
}

#[test]
fn the_code_segment_of_a_handler_must_be_64_bit() {
    both(|mut world| {
        let gate = world.tables + IDT + UD * 16 + 2;
        world.write(gate, 2, u64::from(CODE32));
        world.code(CODE, 64, |a| a.ud2());
        assert_eq!(world.run_to_handler(), GP);
        assert_eq!(world.frame(true).code, Some(u64::from(CODE32) | 1));
    });
}

#[test]
fn a_task_state_segment_too_short_for_the_stack_is_invalid() {
    both(|mut world| {
        world.user();
        world.gate(10, 0x8e, 1);
        world.change(|cpu| cpu.tr.limit = 10);
        world.code(USER, 64, |a| a.ud2());
        // #TS cannot reach its own stack either: a double fault, and then the end.
        assert_eq!(world.run(), Exit::Shutdown);
    });
}

/// In real mode at [`CODE`], with the vector table at the tables' base.
fn real(world: &mut World) {
    let base = world.tables;
    world.change(|cpu| {
        cpu.cr0 = Cr0(Cr0::ET);
        cpu.cr4 = Cr4(0);
        cpu.efer = Efer(0);
        cpu.idtr = TableRegister { base, limit: 0x3ff };
        cpu.segments[Seg::Cs] = Segment::real_mode((CODE >> 4) as u16);
        cpu.segments[Seg::Ss] = Segment::real_mode((DATA >> 4) as u16);
        cpu.gpr.set(gpr::RSP, 0xffff_1000);
        cpu.rip = 0;
    });
}

#[test]
fn real_mode_goes_through_the_vector_table_and_back() {
    both(|mut world| {
        real(&mut world);
        let vector = world.tables + 0x21 * 4;
        world.write(vector, 4, (USER >> 4) << 16 | 0x10);
        world.change(|cpu| cpu.flags.set_bits(flags::IF | flags::AC | flags::ZF));
        world.code(USER + 0x10, 16, |a| {
            a.hlt()?;
            a.iret()
        });
        world.code(CODE, 16, |a| {
            a.int(0x21)?;
            a.hlt()
        });
        assert_eq!(world.run(), Exit::Halt);
        assert_eq!(world.cpu().segments[Seg::Cs].base, USER);
        assert_eq!(world.cpu().rip, 0x11);
        assert!(!world.cpu().flags.any(flags::IF | flags::AC));
        assert_eq!(world.get(gpr::RSP), 0xffff_0ffa);
        assert_eq!(world.read(DATA + 0xffa, 2), 2);
        assert_eq!(world.read(DATA + 0xffc, 2), CODE >> 4);
        assert_eq!(world.read(DATA + 0xffe, 2), flags::IF | flags::ZF | 2);
        world.emulator.wake();
        assert_eq!(world.run(), Exit::Halt);
        assert_eq!(world.cpu().segments[Seg::Cs].base, CODE);
        assert_eq!(world.cpu().rip, 3);
        assert_eq!(world.get(gpr::RSP), 0xffff_1000);
        assert_eq!(world.cpu().flags.bits(), flags::IF | flags::ZF | 2);
    });
}

#[test]
fn real_mode_pushes_no_error_code() {
    both(|mut world| {
        real(&mut world);
        world.write(world.tables + GP * 4, 4, (USER >> 4) << 16);
        world.code(USER, 16, |a| a.hlt());
        // A word across the end of the segment.
        world.code(CODE, 16, |a| {
            a.mov(bx, 0xffffu32)?;
            a.mov(ax, word_ptr(bx))
        });
        world.change(|cpu| cpu.segments[Seg::Ds] = Segment::real_mode(0));
        assert_eq!(world.run(), Exit::Halt);
        assert_eq!(world.get(gpr::RSP), 0xffff_0ffa);
        assert_eq!(world.read(DATA + 0xffa, 2), 3);
    });
}

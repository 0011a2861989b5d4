//! Breakpoints and RF (SDM Vol. 3, Debug, Branch Profile, TSC).

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use reprise_emulator::cpu::{Cr4, flags, gpr};
use reprise_emulator::{Event, Exit};

use crate::world::*;

const DB: u64 = 1;
/// DR6 without a reason.
const NONE: u64 = 0xffff_0ff0;

/// Enables DR0 at `address`, with what it watches and how long it is as DR7 codes it.
fn arm(world: &mut World, address: u64, control: u64) {
    world.change(|cpu| {
        cpu.dr[0] = address;
        cpu.dr7 = 0x400 | 1 | control << 16;
    });
}

#[test]
fn a_breakpoint_on_an_instruction_is_a_fault_before_it() {
    both(|mut world| {
        world.code(CODE, 64, |a| {
            a.mov(eax, 1)?;
            a.mov(ecx, 2)
        });
        arm(&mut world, CODE + 5, 0);
        assert_eq!(world.run_to_handler(), DB);
        let frame = world.frame(false);
        assert_eq!((frame.rip, frame.flags & flags::RF), (CODE + 5, 0));
        assert_eq!((world.get(gpr::RAX), world.get(gpr::RCX)), (1, 0));
        assert_eq!(world.cpu().dr6, NONE | 1);
    });
}

#[test]
fn rf_lets_one_instruction_pass_its_breakpoint() {
    both(|mut world| {
        world.code(CODE, 64, |a| {
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            a.inc(eax)?;
            a.jmp(again)
        });
        arm(&mut world, CODE, 0);
        for times in 0..3 {
            assert_eq!(world.run_to_handler(), DB);
            assert_eq!(world.get(gpr::RAX), times);
            // The handler sets RF in the image that it returns with.
            let image = world.get(gpr::RSP) + 16;
            let set = world.read(image, 8) | flags::RF;
            world.write(image, 8, set);
            world.emulator.wake();
        }
    });
}

#[test]
fn a_fault_pushes_rf_so_that_its_instruction_is_not_reported_twice() {
    both(|mut world| {
        world.code(CODE, 64, |a| a.ud2());
        world.change(|cpu| cpu.flags.set_bits(flags::RF));
        arm(&mut world, CODE, 0);
        assert_eq!(world.run_to_handler(), 6);
        assert_eq!(world.frame(false).flags & flags::RF, flags::RF);
    });
}

#[test]
fn a_watched_store_is_a_trap_behind_it() {
    both(|mut world| {
        world.code(CODE, 64, |a| {
            a.mov(rdx, qword_ptr(DATA))?;
            a.add(qword_ptr(DATA + 4), 1)?;
            a.ud2()
        });
        // Four bytes, stores only.
        arm(&mut world, DATA + 8, 0b1101);
        assert_eq!(world.run_to_handler(), DB);
        assert_eq!(world.frame(false).rip, CODE + 8 + 9);
        assert_eq!(world.read(DATA + 4, 8), 1, "the store is made");
        assert_eq!(world.cpu().dr6, NONE | 1);
    });
}

#[test]
fn a_watched_load_that_faults_does_not_match() {
    both(|mut world| {
        world.code(CODE, 64, |a| {
            a.xor(ecx, ecx)?;
            a.div(qword_ptr(DATA))
        });
        arm(&mut world, DATA, 0b0011);
        assert_eq!(world.run_to_handler(), 0, "division by zero");
        assert_eq!(world.cpu().dr6, NONE);
    });
}

#[test]
fn a_repeated_store_stops_behind_the_iteration_that_matches() {
    both(|mut world| {
        world.code(CODE, 64, |a| a.rep().stosb());
        world.change(|cpu| {
            cpu.gpr.set(gpr::RCX, 100);
            cpu.gpr.set(gpr::RDI, DATA);
        });
        arm(&mut world, DATA + 10, 0b0001);
        assert_eq!(world.run_to_handler(), DB);
        assert_eq!((world.get(gpr::RCX), world.get(gpr::RDI)), (89, DATA + 11));
        let frame = world.frame(false);
        assert_eq!((frame.rip, frame.flags & flags::RF), (CODE, flags::RF));
    });
}

#[test]
fn ports_are_watched_with_debug_extensions() {
    both(|mut world| {
        world.code(CODE, 64, |a| {
            a.in_(al, 0x60)?;
            a.hlt()
        });
        arm(&mut world, 0x60, 0b0010);
        assert_eq!(world.run(), Exit::Halt);
        assert!(world.cpu().rip < HANDLERS, "without CR4.DE nothing matches");
        world.change(|cpu| {
            cpu.cr4.0 |= Cr4::DE;
            cpu.rip = CODE;
            cpu.activity = Default::default();
        });
        assert_eq!(world.run_to_handler(), DB);
        assert_eq!(world.frame(false).rip, CODE + 2);
    });
}

#[test]
fn mov_to_ss_holds_off_a_breakpoint_on_the_next_instruction() {
    both(|mut world| {
        world.code(CODE, 64, |a| {
            a.mov(eax, u32::from(DATA0))?;
            a.mov(ss, eax)?;
            a.inc(ecx)?;
            a.ud2()
        });
        arm(&mut world, CODE + 7, 0);
        assert_eq!(world.run_to_handler(), 6);
        assert_eq!(world.get(gpr::RCX), 1);
    });
}

/// MOV SS from where a breakpoint watches, then what `write` says.
fn watched_load_of_ss(world: &mut World, write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) {
    world.write(DATA, 2, u64::from(DATA0));
    world.code(CODE, 64, |a| {
        a.mov(ss, word_ptr(DATA))?;
        write(a)
    });
    arm(world, DATA, 0b0111);
}

#[test]
fn what_a_load_of_ss_meets_is_told_behind_the_next_instruction() {
    for stepping in [false, true] {
        both(|mut world| {
            watched_load_of_ss(&mut world, |a| {
                a.inc(ecx)?;
                a.ud2()
            });
            world.change(|cpu| cpu.flags.set_bits(if stepping { flags::TF } else { 0 }));
            assert_eq!(world.run_to_handler(), DB);
            assert_eq!((world.get(gpr::RCX), world.frame(false).rip), (1, CODE + 7 + 2));
            let step = if stepping { 1 << 14 } else { 0 };
            assert_eq!(world.cpu().dr6, NONE | 1 | step);
            assert_eq!(world.cpu().breakpoints, 0);
        });
    }
}

#[test]
fn what_a_load_of_ss_meets_is_told_before_the_handler_of_an_interrupt_that_follows() {
    both(|mut world| {
        watched_load_of_ss(&mut world, |a| a.int(0x40));
        assert_eq!(world.run_to_handler(), DB);
        assert_eq!(world.frame(false).rip, HANDLERS + 0x40 * 16);
    });
}

#[test]
fn a_fault_takes_the_place_of_what_a_load_of_ss_has_met() {
    both(|mut world| {
        watched_load_of_ss(&mut world, |a| a.ud2());
        assert_eq!(world.run_to_handler(), 6);
        assert_eq!((world.cpu().dr6, world.cpu().breakpoints), (NONE, 0));
    });
}

#[test]
fn what_the_delivery_of_an_event_pushes_is_told_before_its_handler() {
    // SS, RSP, RFLAGS, CS, RIP; the error code.
    for (slot, vector) in [(1, 6), (3, 6), (5, 6), (6, 13)] {
        both(|mut world| {
            world.code(CODE, 64, |a| if vector == 6 { a.ud2() } else { a.ltr(ax) });
            let stack = world.tables + STACK;
            arm(&mut world, stack - 8 * slot, 0b1001);
            assert_eq!(world.run_to_handler(), DB, "{slot}");
            assert_eq!(world.frame(false).rip, HANDLERS + vector * 16, "{slot}");
            assert_eq!(world.cpu().dr6, NONE | 1);
        });
    }
}

#[test]
fn a_delivery_that_comes_to_nothing_has_met_nothing() {
    both(|mut world| {
        // It pushes on a stack of its own before its target turns out not to be canonical, and #GP(0) comes in its place.
        world.gate(6, 0x8e, 1);
        world.write(world.tables + IDT + 6 * 16 + 8, 8, 0x8000);
        world.code(CODE, 64, |a| a.ud2());
        let stack = world.tables + (IST1 & !0xf);
        arm(&mut world, stack - 8, 0b1001);
        assert_eq!(world.run_to_handler(), 13);
        assert_eq!(world.cpu().dr6, NONE);
    });
}

#[test]
fn what_far_returns_pop_is_watched() {
    both(|mut world| {
        world.code(CODE, 64, |a| a.db(&[0x48, 0xca, 0x40, 0]));
        let stack = world.tables + STACK - 0x100;
        world.write(stack, 8, CODE + 0x40);
        world.write(stack + 8, 8, u64::from(CODE64));
        world.change(|cpu| cpu.gpr.set(gpr::RSP, stack));
        arm(&mut world, stack + 8, 0b1011);
        assert_eq!(world.run_to_handler(), DB);
        assert_eq!(world.frame(false).rip, CODE + 0x40);
    });
}

#[test]
fn an_interrupt_between_iterations_pushes_rf() {
    for is_armed in [false, true] {
        both(|mut world| {
            world.code(CODE, 64, |a| a.rep().stosb());
            if is_armed {
                arm(&mut world, CODE + 7, 0);
            }
            world.change(|cpu| {
                cpu.gpr.set(gpr::RCX, 1 << 20);
                cpu.gpr.set(gpr::RDI, DATA);
                cpu.flags.set_bits(flags::DF);
            });
            let exit = world.emulator.run_at_most(reprise_emulator::Entry::Resume, 1).unwrap();
            assert_eq!(exit, Exit::Attention);
            assert_eq!(world.cpu().rip, CODE);
            assert!(world.emulator.inject(Event::external(0x40)));
            assert_eq!(world.run_to_handler(), 0x40);
            assert_eq!(world.frame(false).flags & flags::RF, flags::RF);
        });
    }
}

#[test]
fn a_gather_that_met_a_watched_element_is_reported_before_a_later_one_faults() {
    both(|mut world| {
        // vpgatherdd xmm0, [rax + xmm1], xmm2
        world.code(CODE, 64, |a| a.db(&[0xc4, 0xe2, 0x69, 0x90, 0x04, 0x08]));
        world.change(|cpu| {
            cpu.cr4.0 |= Cr4::OSXSAVE;
            cpu.xcr0 = 7;
            cpu.gpr.set(gpr::RAX, DATA);
            cpu.fpu.vectors[1] = [0x7fff_f000 << 32, 0, 0, 0, 0, 0, 0, 0];
            cpu.fpu.vectors[2] = [u64::MAX, 0, 0, 0, 0, 0, 0, 0];
        });
        arm(&mut world, DATA, 0b1111);
        assert_eq!(world.run_to_handler(), DB);
        let frame = world.frame(false);
        assert_eq!((frame.rip, frame.flags & flags::RF), (CODE, flags::RF));
        assert_eq!(
            world.cpu().fpu.vectors[2][0],
            u64::MAX << 32,
            "the first element is done"
        );
        assert_eq!(world.cpu().dr6, NONE | 1);
    });
}

//! 32-bit protected mode and virtual-8086 mode: gates, stack switches, and the returns from them.

use iced_x86::code_asm::*;
use reprise_emulator::Exit;
use reprise_emulator::cpu::{Attributes, Cr0, Cr4, Efer, Mode, Seg, Segment, flags, gpr};

use crate::world::*;

const UD: u64 = 6;
const GP: u64 = 13;

/// In 32-bit protected mode without paging at CPL 0, with the tables of that mode; handlers begin with HLT, then IRETD.
pub fn legacy(world: &mut World) {
    let tables = world.tables;
    for vector in 0..64 {
        gate(world, vector, 0x8e);
        world.code(HANDLERS + vector * 16, 32, |a| {
            a.hlt()?;
            a.iretd()
        });
    }
    world.write(tables + TSS + 4, 4, tables + STACK0);
    world.write(tables + TSS + 8, 4, u64::from(DATA0));
    world.change(|cpu| {
        cpu.cr0 = Cr0(Cr0::PE | Cr0::ET);
        cpu.cr4 = Cr4(0);
        cpu.efer = Efer(0);
        cpu.idtr.limit = 64 * 8 - 1;
        cpu.segments[Seg::Cs] = Segment::flat(CODE32, Attributes(0xc09b));
    });
}

fn gate(world: &mut World, vector: u64, kind: u64) {
    let handler = HANDLERS + vector * 16;
    let low = handler & 0xffff | u64::from(CODE32) << 16 | kind << 40 | (handler >> 16) << 48;
    world.write(world.tables + IDT + vector * 8, 8, low);
}

/// User mode at [`USER`].
fn user(world: &mut World) {
    world.change(|cpu| {
        cpu.segments[Seg::Cs] = Segment::flat(USER32, Attributes(0xc0fb));
        for seg in [Seg::Ss, Seg::Ds, Seg::Es] {
            cpu.segments[seg] = Segment::flat(USER_DATA, Attributes(0xc0f3));
        }
        cpu.gpr.set(gpr::RSP, USER_STACK);
        cpu.rip = USER;
    });
}

/// The lowest `n` doublewords on the stack.
pub fn top<const N: usize>(world: &World) -> [u64; N] {
    let top = world.get(gpr::RSP);
    core::array::from_fn(|i| world.read(top + 4 * i as u64, 4))
}

#[test]
fn at_the_same_privilege_no_stack_pointer_is_pushed() {
    both(|mut world| {
        legacy(&mut world);
        world.code(CODE, 32, |a| {
            a.int(0x20)?;
            a.hlt()
        });
        assert_eq!(world.run_to_handler(), 0x20);
        assert_eq!(world.get(gpr::RSP), world.tables + STACK - 12);
        assert_eq!(top(&world), [CODE + 2, u64::from(CODE32), 2]);
        world.emulator.wake();
        assert_eq!(world.run(), Exit::Halt);
        assert_eq!(world.cpu().rip, CODE + 3);
        assert_eq!(world.get(gpr::RSP), world.tables + STACK);
    });
}

#[test]
fn the_task_state_segment_has_the_stack_of_the_kernel() {
    both(|mut world| {
        legacy(&mut world);
        user(&mut world);
        world.code(USER, 32, |a| {
            a.mov(eax, u32::from(DATA0))?;
            a.mov(ds, eax)
        });
        assert_eq!(world.run_to_handler(), GP);
        assert_eq!(world.get(gpr::RSP), world.tables + STACK0 - 24);
        let code = u64::from(DATA0);
        let image = flags::RF | 2;
        assert_eq!(
            top(&world),
            [
                code,
                USER + 5,
                u64::from(USER32),
                image,
                USER_STACK,
                u64::from(USER_DATA)
            ]
        );
        assert_eq!(world.cpu().segments[Seg::Ss].selector, DATA0);
        assert_eq!(world.cpu().cpl(), 0);
    });
}

#[test]
fn a_handler_returns_to_user_mode() {
    both(|mut world| {
        legacy(&mut world);
        user(&mut world);
        gate(&mut world, 0x20, 0xee);
        world.change(|cpu| cpu.flags.set_bits(flags::IF));
        world.code(USER, 32, |a| {
            a.int(0x20)?;
            a.ud2()
        });
        assert_eq!(world.run_to_handler(), 0x20);
        assert!(!world.cpu().flags.interrupt());
        world.emulator.wake();
        assert_eq!(world.run_to_handler(), UD);
        let image = flags::IF | flags::RF | 2;
        assert_eq!(
            top(&world),
            [USER + 2, u64::from(USER32), image, USER_STACK, u64::from(USER_DATA)]
        );
    });
}

#[test]
fn an_instruction_that_runs_over_the_code_segment_s_limit_is_a_protection_fault() {
    // On one page, and with the limit at a page's end.
    for at in [CODE, CODE + 0xffe] {
        both(|mut world| {
            legacy(&mut world);
            world.code(at, 32, |a| a.mov(eax, 0x1234_5678));
            world.change(|cpu| {
                cpu.segments[Seg::Cs].limit = at as u32 + 1;
                cpu.rip = at;
            });
            assert_eq!(world.run_to_handler(), GP);
            assert_eq!(top(&world), [0, at]);
            assert_eq!(world.get(gpr::RAX), 0);
        });
    }
}

#[test]
fn a_16_bit_gate_pushes_words() {
    both(|mut world| {
        legacy(&mut world);
        let handler = 0x8000;
        let low = handler | u64::from(CODE32) << 16 | 0x86 << 40 | 0xdead << 48;
        world.write(world.tables + IDT + 0x20 * 8, 8, low);
        world.code(handler, 32, |a| a.hlt());
        world.code(CODE, 32, |a| a.int(0x20));
        assert_eq!(world.run(), Exit::Halt);
        assert_eq!(world.cpu().rip, handler + 1);
        assert_eq!(world.get(gpr::RSP), world.tables + STACK - 6);
        assert_eq!(top(&world), [u64::from(CODE32) << 16 | ((CODE + 2) & 0xffff)]);
    });
}

#[test]
fn a_stack_segment_of_the_wrong_privilege_ends_every_way_into_the_kernel() {
    both(|mut world| {
        legacy(&mut world);
        user(&mut world);
        world.write(world.tables + TSS + 8, 4, u64::from(USER_DATA));
        world.code(USER, 32, |a| a.ud2());
        // The handler of #TS needs the same stack: a double fault, and the end.
        assert_eq!(world.run(), Exit::Shutdown);
    });
}

#[test]
fn a_call_gate_copies_parameters_and_a_return_releases_them() {
    both(|mut world| {
        legacy(&mut world);
        user(&mut world);
        let low = CODE & 0xffff | u64::from(CODE32) << 16 | 2 << 32 | 0xec << 40 | (CODE >> 16) << 48;
        world.write(world.tables + u64::from(GATE), 8, low);
        world.code(USER, 32, |a| {
            a.push(0x11)?;
            a.push(0x22)?;
            a.db(&[0x9a, 0, 0, 0, 0, GATE as u8, 0])?;
            a.ud2()
        });
        // hlt; retf 8
        world.code(CODE, 32, |a| a.db(&[0xf4, 0xca, 8, 0]));
        assert_eq!(world.run(), Exit::Halt);
        assert_eq!((world.cpu().cpl(), world.cpu().rip), (0, CODE + 1));
        let back = USER + 11;
        assert_eq!(
            top(&world),
            [
                back,
                u64::from(USER32),
                0x22,
                0x11,
                USER_STACK - 8,
                u64::from(USER_DATA)
            ]
        );
        world.emulator.wake();
        assert_eq!(world.run_to_handler(), UD);
        let [ip, _, _, pointer] = top(&world);
        assert_eq!((ip, pointer), (back, USER_STACK));
    });
}

/// Enters virtual-8086 mode at [`USER`] by IRETD, with `image` as flags.
pub fn virtual_8086(world: &mut World, image: u64) {
    legacy(world);
    let frame = [
        0x10,
        USER >> 4,
        image | flags::VM | 2,
        0x800,
        USER_STACK >> 4,
        0x1111,
        0x2222,
        0x3333,
        0x4444,
    ];
    let stack = world.tables + STACK - 36;
    for (i, value) in (0..).zip(frame) {
        world.write(stack + 4 * i, 4, value);
    }
    world.change(|cpu| cpu.gpr.set(gpr::RSP, stack));
    world.code(CODE, 32, |a| a.iretd());
}

#[test]
fn virtual_8086_mode_is_left_with_all_its_segments_on_the_stack() {
    both(|mut world| {
        virtual_8086(&mut world, flags::IF);
        world.code(USER + 0x10, 16, |a| {
            a.mov(ax, 0x5555u32)?;
            a.mov(ds, ax)?;
            a.ud2()
        });
        assert_eq!(world.run_to_handler(), UD);
        assert_eq!(world.cpu().view.mode, Mode::Protected);
        assert_eq!(
            top(&world),
            [
                0x15,
                USER >> 4,
                flags::VM | flags::RF | flags::IF | 2,
                0x800,
                USER_STACK >> 4,
                0x1111,
                0x5555,
                0x3333,
                0x4444
            ]
        );
        for seg in [Seg::Ds, Seg::Es, Seg::Fs, Seg::Gs] {
            assert_eq!(world.cpu().segments[seg].selector, 0);
        }
    });
}

#[test]
fn virtual_8086_mode_runs_at_cpl_3_and_its_iopl_guards_the_interrupt_flag() {
    for (name, bytes) in [
        ("cli", &[0xfau8][..]),
        ("int 0x20", &[0xcd, 0x20]),
        ("popf", &[0x9d]),
        ("iret", &[0xcf]),
    ] {
        both(|mut world| {
            virtual_8086(&mut world, 0);
            world.code(USER + 0x10, 16, |a| a.db(bytes));
            assert_eq!(world.run_to_handler(), GP, "{name}");
            let [code, ip] = top(&world);
            assert_eq!((code, ip), (0, 0x10), "{name}");
        });
    }
    both(|mut world| {
        virtual_8086(&mut world, flags::IOPL | flags::IF);
        world.code(USER + 0x10, 16, |a| {
            a.cli()?;
            a.ud2()
        });
        assert_eq!(world.run_to_handler(), UD);
        let [_, _, image] = top(&world);
        assert_eq!(image & flags::IF, 0);
    });
}

#[test]
fn a_handler_returns_to_virtual_8086_mode() {
    both(|mut world| {
        virtual_8086(&mut world, flags::IF);
        world.code(USER + 0x10, 16, |a| a.ud2());
        assert_eq!(world.run_to_handler(), UD);
        // The handler mends the instruction.
        world.code(USER + 0x10, 16, |a| {
            a.nop()?;
            a.ud2()
        });
        world.emulator.wake();
        assert_eq!(world.run_to_handler(), UD);
        let [ip, _, _, _, _, extra] = top(&world);
        assert_eq!((ip, extra), (0x11, 0x1111));
    });
}

#[test]
fn sysenter_and_sysexit_cross_over_in_legacy_mode() {
    both(|mut world| {
        legacy(&mut world);
        user(&mut world);
        let stack = world.tables + STACK0;
        world.change(|cpu| {
            cpu.msr.sysenter_cs = 0x18;
            cpu.msr.sysenter_eip = CODE;
            cpu.msr.sysenter_esp = stack;
            cpu.gpr.set(gpr::RDX, USER + 2);
            cpu.gpr.set(gpr::RCX, USER_STACK - 0x100);
        });
        world.code(USER, 32, |a| {
            a.sysenter()?;
            a.ud2()
        });
        world.code(CODE, 32, |a| {
            a.hlt()?;
            a.sysexit()
        });
        assert_eq!(world.run(), Exit::Halt);
        assert_eq!((world.cpu().cpl(), world.get(gpr::RSP)), (0, stack));
        world.emulator.wake();
        assert_eq!(world.run_to_handler(), UD);
        let [ip, code, _, pointer, stack] = top(&world);
        assert_eq!((ip, pointer), (USER + 2, USER_STACK - 0x100));
        assert_eq!((code, stack), (0x2b, 0x33));
    });
}

#[test]
fn a_hypercall_returns_in_two_registers() {
    both(|mut world| {
        legacy(&mut world);
        world.change(|cpu| {
            cpu.gpr.set(gpr::RAX, 5);
            cpu.gpr.set(gpr::RDX, 0x55);
        });
        world.code(CODE, 32, |a| {
            a.vmmcall()?;
            a.hlt()
        });
        assert_eq!(world.run(), Exit::Halt);
        assert_eq!((world.get(gpr::RDX), world.get(gpr::RAX)), (7, 6));
    });
}

//! SYSCALL, SYSRET, IRET, far CALL, JMP and RET.

use iced_x86::code_asm::*;
use reprise_emulator::Exit;
use reprise_emulator::cpu::{Mode, Seg, flags, gpr};

use crate::world::*;

const UD: u64 = 6;
const NP: u64 = 11;
const SS: u64 = 12;
const GP: u64 = 13;

#[test]
fn syscall_and_sysret_lead_to_the_kernel_and_back() {
    both(|mut world| {
        world.user();
        world.change(|cpu| cpu.flags.set_bits(flags::IF | flags::CF | flags::AC));
        world.code(USER, 64, |a| {
            a.syscall()?;
            a.ud2()
        });
        world.code(HANDLERS + 0x800, 64, |a| {
            a.hlt()?;
            a.sysretq()
        });
        assert_eq!(world.run(), Exit::Halt);
        let cpu = world.cpu();
        assert_eq!((cpu.cpl(), cpu.rip), (0, HANDLERS + 0x801));
        assert_eq!(cpu.segments[Seg::Cs].selector, CODE64);
        assert_eq!(cpu.segments[Seg::Ss].selector, DATA0);
        assert_eq!(cpu.flags.bits(), flags::CF | 2);
        assert_eq!(world.get(gpr::RCX), USER + 2);
        assert_eq!(world.get(gpr::R11), flags::IF | flags::CF | flags::AC | 2);
        world.emulator.wake();
        assert_eq!(world.run_to_handler(), UD);
        let frame = world.frame(false);
        assert_eq!((frame.rip, frame.cs), (USER + 2, u64::from(USER64)));
        assert_eq!(frame.ss, u64::from(USER_DATA));
        assert_eq!(frame.flags & !flags::RF, flags::IF | flags::CF | flags::AC | 2);
    });
}

#[test]
fn syscall_is_undefined_unless_enabled() {
    both(|mut world| {
        world.change(|cpu| cpu.efer.0 &= !1);
        world.code(CODE, 64, |a| a.syscall());
        assert_eq!(world.run_to_handler(), UD);
    });
}

#[test]
fn sysenter_is_undefined_in_long_mode() {
    both(|mut world| {
        world.code(CODE, 64, |a| a.sysenter());
        assert_eq!(world.run_to_handler(), UD);
    });
}

/// Pushes a frame for IRETQ and executes it.
fn iretq(world: &mut World, frame: [u64; 5]) {
    let top = world.tables + STACK - 40;
    for (i, value) in (0..).zip(frame) {
        world.write(top + 8 * i, 8, value);
    }
    world.change(|cpu| cpu.gpr.set(gpr::RSP, top));
    world.code(CODE, 64, |a| a.iretq());
}

#[test]
fn iret_to_user_mode_restores_flags_and_drops_kernel_segments() {
    both(|mut world| {
        world.code(USER, 64, |a| a.ud2());
        let image = flags::IF | flags::ZF | flags::AC | 2;
        iretq(
            &mut world,
            [USER, u64::from(USER64), image, USER_STACK, u64::from(USER_DATA)],
        );
        assert_eq!(world.run_to_handler(), UD);
        let frame = world.frame(false);
        assert_eq!(frame.flags, image | flags::RF);
        assert_eq!((frame.cs, frame.rsp), (u64::from(USER64), USER_STACK));
        assert_eq!(world.cpu().segments[Seg::Ds].selector, 0);
    });
}

#[test]
fn iret_in_64_bit_mode_takes_a_null_stack_segment_of_its_privilege() {
    both(|mut world| {
        world.code(USER, 64, |a| a.hlt());
        iretq(&mut world, [USER, u64::from(CODE64), 2, DATA, 0]);
        assert_eq!(world.run(), Exit::Halt);
        assert_eq!((world.cpu().cpl(), world.get(gpr::RSP)), (0, DATA));
    });
}

#[test]
fn iret_checks_selectors_in_order() {
    let rows = [
        ("a null code segment", [USER, 0, 2, DATA, 0], GP, 0),
        (
            "no code segment",
            [USER, u64::from(DATA0), 2, DATA, 0],
            GP,
            u64::from(DATA0),
        ),
        (
            "a conflict of privilege",
            [USER, u64::from(CODE64) | 3, 2, DATA, 0],
            GP,
            u64::from(CODE64),
        ),
        ("beyond the table", [USER, 0x7ff8, 2, DATA, 0], GP, 0x7ff8),
        (
            "a null stack for user mode",
            [USER, u64::from(USER64), 2, DATA, 3],
            GP,
            0,
        ),
        (
            "a kernel stack for user mode",
            [USER, u64::from(USER64), 2, DATA, u64::from(DATA0) | 3],
            GP,
            u64::from(DATA0),
        ),
        (
            "an absent stack",
            [USER, u64::from(CODE64), 2, DATA, u64::from(ABSENT)],
            SS,
            u64::from(ABSENT),
        ),
        (
            "an address that is not canonical",
            [1 << 63, u64::from(CODE64), 2, DATA, 0],
            GP,
            0,
        ),
    ];
    for (name, frame, vector, code) in rows {
        both(|mut world| {
            iretq(&mut world, frame);
            assert_eq!(world.run_to_handler(), vector, "{name}");
            assert_eq!(world.frame(true).code, Some(code), "{name}");
            assert_eq!(world.frame(true).rip, CODE, "{name}");
        });
    }
}

#[test]
fn iret_with_nt_set_faults_in_long_mode() {
    both(|mut world| {
        iretq(&mut world, [USER, u64::from(CODE64), 2, DATA, 0]);
        world.change(|cpu| cpu.flags.set_bits(flags::NT));
        assert_eq!(world.run_to_handler(), GP);
    });
}

/// A far pointer with a 32-bit offset at [`DATA`].
fn pointer(world: &mut World, selector: u16, offset: u64) {
    world.write(DATA, 4, offset);
    world.write(DATA + 4, 2, u64::from(selector));
}

#[test]
fn a_far_call_pushes_and_a_far_return_takes_back() {
    both(|mut world| {
        pointer(&mut world, CODE64, USER);
        // call far dword [rbx]; hlt
        world.code(CODE, 64, |a| a.db(&[0xff, 0x1b, 0xf4]));
        world.change(|cpu| cpu.gpr.set(gpr::RBX, DATA));
        // hlt; retf
        world.code(USER, 64, |a| a.db(&[0xf4, 0xcb]));
        assert_eq!(world.run(), Exit::Halt);
        let top = world.tables + STACK - 8;
        assert_eq!((world.cpu().rip, world.get(gpr::RSP)), (USER + 1, top));
        assert_eq!(world.read(top, 8), u64::from(CODE64) << 32 | (CODE + 2));
        world.emulator.wake();
        assert_eq!(world.run(), Exit::Halt);
        assert_eq!((world.cpu().rip, world.get(gpr::RSP)), (CODE + 3, top + 8));
    });
}

#[test]
fn a_far_jump_to_32_bit_code_enters_compatibility_mode() {
    both(|mut world| {
        pointer(&mut world, CODE32, USER);
        world.code(CODE, 64, |a| a.db(&[0xff, 0x2b]));
        world.change(|cpu| {
            cpu.gpr.set(gpr::RBX, DATA);
            cpu.gpr.set(gpr::RCX, 0x55 << 32 | 1);
            cpu.gpr.set(gpr::RSP, 0x55 << 32 | 0x1000);
        });
        world.code(USER, 32, |a| {
            a.mov(eax, 0x1234u32)?;
            a.hlt()
        });
        assert_eq!(world.run(), Exit::Halt);
        assert_eq!(world.cpu().view.mode, Mode::Compatibility);
        assert_eq!(world.get(gpr::RAX), 0x1234);
        // As on AMD's family 25: of all registers, RSP alone loses its upper half.
        assert_eq!((world.get(gpr::RSP), world.get(gpr::RCX)), (0x1000, 0x55 << 32 | 1));
    });
}

#[test]
fn a_far_jump_checks_its_target() {
    for (name, selector, vector, code) in [
        ("null", 0, GP, 0),
        ("data", DATA0, GP, u64::from(DATA0)),
        ("less privilege", USER64, GP, u64::from(USER64 & !3)),
        ("a task", TASK, GP, u64::from(TASK)),
    ] {
        both(|mut world| {
            pointer(&mut world, selector, USER);
            world.code(CODE, 64, |a| a.db(&[0xff, 0x2b]));
            world.change(|cpu| cpu.gpr.set(gpr::RBX, DATA));
            assert_eq!(world.run_to_handler(), vector, "{name}");
            assert_eq!(world.frame(true).code, Some(code), "{name}");
        });
    }
}

/// A call gate at [`GATE`] to kernel code at [`CODE`]; byte 5 is `kind`.
fn call_gate(world: &mut World, kind: u64) {
    let low = CODE & 0xffff | u64::from(CODE64) << 16 | kind << 40 | (CODE >> 16 & 0xffff) << 48;
    let at = world.tables + u64::from(GATE);
    world.write(at, 8, low);
    world.write(at + 8, 8, 0);
}

#[test]
fn a_call_gate_leads_to_the_kernel_and_a_far_return_to_user_mode() {
    both(|mut world| {
        call_gate(&mut world, 0xec);
        world.user();
        pointer(&mut world, GATE, 0xdead);
        world.change(|cpu| cpu.gpr.set(gpr::RBX, DATA));
        world.code(USER, 64, |a| {
            a.db(&[0xff, 0x1b])?;
            a.ud2()
        });
        // hlt; retfq
        world.code(CODE, 64, |a| a.db(&[0xf4, 0x48, 0xcb]));
        assert_eq!(world.run(), Exit::Halt);
        assert_eq!((world.cpu().cpl(), world.cpu().rip), (0, CODE + 1));
        let top = world.tables + STACK0 - 32;
        assert_eq!(world.get(gpr::RSP), top);
        let words = [0, 1, 2, 3].map(|i| world.read(top + 8 * i, 8));
        assert_eq!(words, [USER + 2, u64::from(USER64), USER_STACK, u64::from(USER_DATA)]);
        world.emulator.wake();
        assert_eq!(world.run_to_handler(), UD);
        let frame = world.frame(false);
        assert_eq!((frame.rip, frame.cs), (USER + 2, u64::from(USER64)));
        assert_eq!((frame.rsp, frame.ss), (USER_STACK, u64::from(USER_DATA)));
    });
}

#[test]
fn a_call_gate_keeps_out_whom_it_does_not_know() {
    for (name, kind, vector) in [("of the kernel's", 0x8c, GP), ("absent", 0x6c, NP)] {
        both(|mut world| {
            call_gate(&mut world, kind);
            world.user();
            pointer(&mut world, GATE, 0);
            world.change(|cpu| cpu.gpr.set(gpr::RBX, DATA));
            world.code(USER, 64, |a| a.db(&[0xff, 0x1b]));
            assert_eq!(world.run_to_handler(), vector, "{name}");
            assert_eq!(world.frame(true).code, Some(u64::from(GATE)), "{name}");
        });
    }
}

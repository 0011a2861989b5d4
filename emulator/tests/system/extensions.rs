//! CR4.VME and CR4.PVI: the virtual interrupt flag, and interrupts that stay in a virtual-8086 program (SDM Vol. 3,
//! 8086 Emulation).

use iced_x86::code_asm::*;
use reprise_emulator::cpu::{Cr4, flags};

use crate::legacy::{top, virtual_8086};
use crate::world::*;

const GP: u64 = 13;

/// In virtual-8086 mode with the extensions; `redirected` are the vectors whose handlers lie outside.
fn extended(world: &mut World, image: u64, redirected: &[u8]) {
    virtual_8086(world, image);
    world.change(|cpu| cpu.cr4.0 |= Cr4::VME);
    // The I/O map begins behind the redirection map.
    let map = IO_MAP + 32;
    world.write(world.tables + TSS + 0x66, 2, map);
    for byte in 0..32 {
        let bits = redirected.iter().filter(|vector| u64::from(**vector) / 8 == byte);
        let bits = bits.fold(0u64, |bits, vector| bits | 1 << (vector % 8));
        world.write(world.tables + TSS + IO_MAP + byte, 1, bits);
    }
}

#[test]
fn the_virtual_interrupt_flag_takes_the_place_of_the_real_one() {
    both(|mut world| {
        extended(&mut world, flags::IF | flags::VIF, &[]);
        world.code(USER + 0x10, 16, |a| {
            a.pushf()?;
            a.cli()?;
            a.pushf()?;
            a.pop(ax)?;
            a.pop(bx)?;
            a.push(bx)?;
            a.popf()?;
            a.ud2()
        });
        assert_eq!(world.run_to_handler(), 6);
        let (cleared, set) = (world.get(0) & 0xffff, world.get(3) & 0xffff);
        assert_eq!((cleared, set), (flags::IOPL | 2, flags::IOPL | flags::IF | 2));
        let [_, _, image] = top(&world);
        assert_eq!(image & (flags::VIF | flags::IF | flags::IOPL), flags::VIF | flags::IF);
    });
}

#[test]
fn an_interrupt_that_waits_is_let_in_by_a_fault() {
    for code in [&[0xfbu8][..], &[0x68, 0x02, 0x02, 0x9d]] {
        both(|mut world| {
            extended(&mut world, flags::IF | flags::VIP, &[]);
            world.code(USER + 0x10, 16, |a| a.db(code));
            assert_eq!(world.run_to_handler(), GP, "{code:x?}");
        });
    }
}

#[test]
fn an_interrupt_that_waits_for_nothing_any_more_is_a_fault_before_any_instruction() {
    let both_flags = flags::VIP | flags::VIF;
    let rows = [
        (both_flags, true),
        (flags::VIP, false),
        (flags::VIF, false),
        (both_flags | flags::IOPL, false),
    ];
    for (image, is_let_in) in rows {
        both(|mut world| {
            extended(&mut world, image, &[]);
            world.code(USER + 0x10, 16, |a| a.ud2());
            assert_eq!(world.run_to_handler(), if is_let_in { GP } else { 6 });
        });
    }
    both(|mut world| {
        world.user();
        world.code(USER, 64, |a| a.ud2());
        world.change(|cpu| {
            cpu.flags.set_bits(both_flags);
            cpu.cr4.0 |= Cr4::PVI;
        });
        assert_eq!(world.run_to_handler(), GP);
        assert_eq!(world.frame(true).rip, USER);
    });
}

#[test]
fn single_steps_and_wide_flags_are_out_of_reach() {
    for code in [
        &[0x68, 0x02, 0x01, 0x9d][..],
        &[0x66, 0x9c],
        &[0x66, 0x9d],
        &[0x66, 0xcf],
    ] {
        both(|mut world| {
            extended(&mut world, flags::IF, &[]);
            world.code(USER + 0x10, 16, |a| a.db(code));
            assert_eq!(world.run_to_handler(), GP, "{code:x?}");
        });
    }
}

#[test]
fn an_interrupt_goes_to_the_programs_own_handler_and_back() {
    both(|mut world| {
        extended(&mut world, flags::IF | flags::VIF, &[]);
        world.write(0x21 * 4, 2, 0x80);
        world.write(0x21 * 4 + 2, 2, USER >> 4);
        world.code(USER + 0x10, 16, |a| {
            a.int(0x21)?;
            a.ud2()
        });
        world.code(USER + 0x80, 16, |a| {
            a.pop(ax)?;
            a.pop(bx)?;
            a.pop(cx)?;
            a.push(cx)?;
            a.push(bx)?;
            a.push(ax)?;
            a.pushf()?;
            a.pop(dx)?;
            a.iret()
        });
        assert_eq!(world.run_to_handler(), 6);
        let word = |register| world.get(register) & 0xffff;
        assert_eq!((word(0), word(3)), (0x12, USER >> 4));
        assert_eq!(word(1), flags::IOPL | flags::IF | 2, "VIF stands where IF does");
        assert_eq!(word(2), flags::IOPL | 2, "and is clear in the handler");
        let [ip, _, image] = top(&world);
        assert_eq!((ip, image & flags::VIF), (0x12, flags::VIF));
    });
}

#[test]
fn the_redirection_map_sends_an_interrupt_outside() {
    both(|mut world| {
        extended(&mut world, flags::IF, &[0x20]);
        world.code(USER + 0x10, 16, |a| a.int(0x20));
        assert_eq!(world.run_to_handler(), GP, "IOPL is below 3");
    });
    both(|mut world| {
        extended(&mut world, flags::IF | flags::IOPL, &[0x20]);
        let gate = world.tables + IDT + 0x20 * 8 + 5;
        world.write(gate, 1, 0xee);
        world.code(USER + 0x10, 16, |a| a.int(0x20));
        assert_eq!(world.run_to_handler(), 0x20);
    });
}

#[test]
fn without_a_redirection_map_there_is_no_interrupt() {
    both(|mut world| {
        extended(&mut world, flags::IF, &[]);
        world.write(world.tables + TSS + 0x66, 2, 16);
        world.code(USER + 0x10, 16, |a| a.int(0x20));
        assert_eq!(world.run_to_handler(), GP);
    });
}

#[test]
fn protected_mode_programs_have_the_virtual_flag_for_cli_and_sti() {
    both(|mut world| {
        world.user();
        world.change(|cpu| {
            cpu.cr4.0 |= Cr4::PVI;
            cpu.flags.set_bits(flags::IF);
        });
        world.code(USER, 64, |a| {
            a.sti()?;
            a.ud2()
        });
        assert_eq!(world.run_to_handler(), 6);
        assert_eq!(world.frame(false).flags & flags::VIF, flags::VIF);
    });
}

//! Protection keys and five levels of paging.

use iced_x86::code_asm::*;
use reprise_emulator::cpu::{Cr0, Cr4, Efer, gpr};

use crate::world::*;

const UD: u64 = 6;
const GP: u64 = 13;
const PF: u64 = 14;

/// Maps DATA's page with protection key 3 and leaves the rest as it is.
fn with_key(world: &mut World) {
    let table = 0x7_0000;
    for page in 0..512 {
        world.write(table + page * 8, 8, page << 12 | 0x67);
    }
    world.write(table + (DATA >> 12) * 8, 8, DATA | 0x67 | 3 << 59);
    world.write(PD, 8, table | 0x67);
    world.change(|cpu| cpu.cr4.0 |= Cr4::PKE);
}

#[test]
fn wrpkru_decides_at_once_what_may_be_touched() {
    both(|mut world| {
        with_key(&mut world);
        world.code(CODE, 64, |a| {
            a.mov(rbx, qword_ptr(DATA))?;
            a.mov(qword_ptr(DATA), rbx)?;
            a.xor(ecx, ecx)?;
            a.xor(edx, edx)?;
            a.mov(eax, 0b10 << 6)?;
            a.wrpkru()?;
            a.rdpkru()?;
            a.mov(rbx, qword_ptr(DATA))?;
            a.mov(qword_ptr(DATA), rbx)
        });
        assert_eq!(world.run_to_handler(), PF);
        assert_eq!(world.frame(true).code, Some(1 << 5 | 0b011));
        assert_eq!((world.cpu().cr2, world.cpu().fpu.pkru), (DATA, 0b10 << 6));
        assert_eq!((world.get(gpr::RAX), world.get(gpr::RDX)), (0b10 << 6, 0));
    });
}

#[test]
fn the_key_registers_are_there_only_with_cr4_pke() {
    for (name, pke, ecx_value, expected) in [("without", false, 0, UD), ("another register", true, 1, GP)] {
        both(|mut world| {
            world.change(|cpu| {
                cpu.cr4.0 |= if pke { Cr4::PKE } else { 0 };
                cpu.gpr.set(gpr::RCX, ecx_value);
                cpu.gpr.set(gpr::RDX, 0);
            });
            world.code(CODE, 64, |a| a.rdpkru());
            assert_eq!(world.run_to_handler(), expected, "{name}");
        });
    }
}

/// In 32-bit protected mode without paging, about to write `value` to CR4 and then to turn paging on.
#[test]
fn five_levels_are_chosen_before_long_mode_and_translate_57_bits() {
    both(|mut world| {
        // One more table on top, whose entries 0 and 1 lead to the same four levels.
        let root = 0x8_0000;
        world.write(root, 8, PML4 | 7);
        world.write(root + 8, 8, PML4 | 7);
        world.change(|cpu| {
            cpu.cr0.0 &= !Cr0::PG;
            cpu.efer.0 &= !Efer::LMA;
            cpu.cr3 = root;
            cpu.segments[reprise_emulator::cpu::Seg::Cs].attributes = reprise_emulator::cpu::Attributes(0xc09b);
            cpu.gpr.set(gpr::RAX, Cr4::PAE | Cr4::LA57);
            cpu.gpr.set(gpr::RBX, cpu.cr0.0 | Cr0::PG);
        });
        world.code(CODE, 32, |a| {
            a.mov(cr4, eax)?;
            a.mov(cr0, ebx)?;
            a.db(&[0xea, 0, 0, 2, 0, CODE64 as u8, 0])
        });
        let high = 1 << 48;
        world.write(DATA, 8, 0x1234_5678_9abc);
        world.code(USER, 64, |a| {
            a.mov(rcx, high + DATA)?;
            a.mov(rdx, qword_ptr(rcx))?;
            a.mov(rcx, 1u64 << 56)?;
            a.mov(rsi, qword_ptr(rcx))
        });
        assert_eq!(world.run_to_handler(), GP, "bit 56 is the sign");
        assert_eq!(world.get(gpr::RDX), 0x1234_5678_9abc);
        assert!(world.cpu().cr4.any(Cr4::LA57));
    });
}

#[test]
fn the_number_of_levels_stays_in_long_mode() {
    both(|mut world| {
        world.change(|cpu| cpu.gpr.set(gpr::RBX, cpu.cr4.0 | Cr4::LA57));
        world.code(CODE, 64, |a| a.mov(cr4, rbx));
        assert_eq!(world.run_to_handler(), GP);
    });
}

//! Mode switches, executed as a boot loader would.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use reprise_emulator::cpu::{Cr0, Efer, Mode, Seg, TableRegister, gpr};
use reprise_emulator::{Cpu, Exit};

use crate::world::*;

/// At the reset state, but for CS, which leads to [`CODE`].
fn reset(world: &mut World) {
    let base = world.tables;
    world.change(|cpu| {
        *cpu = Cpu::reset();
        cpu.segments[Seg::Cs].selector = (CODE >> 4) as u16;
        cpu.segments[Seg::Cs].base = CODE;
        cpu.rip = 0;
        cpu.gdtr = TableRegister { base, limit: 0x7f };
    });
}

/// A far jump with a 32-bit offset, in 16-bit code.
fn jump_far(a: &mut CodeAssembler, selector: u16, offset: u32) -> Result<(), IcedError> {
    let [b0, b1, b2, b3] = offset.to_le_bytes();
    let [s0, s1] = selector.to_le_bytes();
    a.db(&[0x66, 0xea, b0, b1, b2, b3, s0, s1])
}

fn enable(a: &mut CodeAssembler, register: AsmRegisterCr, bits: u32) -> Result<(), IcedError> {
    a.mov(eax, register)?;
    a.or(eax, bits as i32)?;
    a.mov(register, eax)
}

#[test]
fn from_reset_to_protected_mode_to_64_bit_mode() {
    both(|mut world| {
        reset(&mut world);
        world.code(CODE, 16, |a| {
            enable(a, cr0, Cr0::PE as u32)?;
            jump_far(a, CODE32, USER as u32)
        });
        world.code(USER, 32, |a| {
            a.mov(eax, u32::from(DATA0))?;
            a.mov(ss, eax)?;
            a.mov(ds, eax)?;
            a.hlt()?;
            enable(a, cr4, 1 << 5)?;
            a.mov(eax, PML4 as u32)?;
            a.mov(cr3, eax)?;
            a.mov(ecx, 0xc000_0080u32)?;
            a.rdmsr()?;
            a.or(eax, 0x100)?;
            a.wrmsr()?;
            enable(a, cr0, Cr0::PG as u32)?;
            a.hlt()?;
            let [o0, o1, o2, o3] = (USER as u32 + 0x1000).to_le_bytes();
            a.db(&[0xea, o0, o1, o2, o3, CODE64 as u8, 0])
        });
        world.code(USER + 0x1000, 64, |a| {
            a.mov(rax, 0x1122_3344_5566_7788u64)?;
            a.hlt()
        });
        assert_eq!(world.run(), Exit::Halt);
        assert_eq!(world.cpu().view.mode, Mode::Protected);
        assert_eq!(world.cpu().segments[Seg::Ds].limit, 0xffff_ffff);
        world.emulator.wake();
        assert_eq!(world.run(), Exit::Halt);
        assert_eq!(world.cpu().view.mode, Mode::Compatibility);
        assert!(world.cpu().efer.any(Efer::LMA));
        world.emulator.wake();
        assert_eq!(world.run(), Exit::Halt);
        assert_eq!(world.cpu().view.mode, Mode::Long);
        assert_eq!(world.get(gpr::RAX), 0x1122_3344_5566_7788);
    });
}

#[test]
fn from_64_bit_mode_back_to_real_mode() {
    both(|mut world| {
        world.write(DATA, 4, USER);
        world.write(DATA + 4, 2, u64::from(CODE32));
        world.change(|cpu| cpu.gpr.set(gpr::RBX, DATA));
        world.code(CODE, 64, |a| a.db(&[0xff, 0x2b]));
        world.code(USER, 32, |a| {
            a.mov(eax, cr0)?;
            a.and(eax, 0x7fff_ffff)?;
            a.mov(cr0, eax)?;
            a.mov(ecx, 0xc000_0080u32)?;
            a.rdmsr()?;
            a.hlt()?;
            // A 16-bit code segment first, so that its limit and size hold in real mode.
            a.db(&[0x66, 0xea, 0x00, 0x02, CODE16 as u8, 0])
        });
        world.code(0x200, 16, |a| {
            a.mov(ax, u32::from(DATA16))?;
            a.mov(ds, ax)?;
            a.mov(ss, ax)?;
            a.mov(eax, cr0)?;
            a.and(al, 0xfeu32 as i32)?;
            a.mov(cr0, eax)?;
            let [s0, s1] = ((CODE >> 4) as u16).to_le_bytes();
            a.db(&[0xea, 0x00, 0x03, s0, s1])
        });
        world.code(CODE + 0x300, 16, |a| {
            a.mov(ax, 0x1234u32)?;
            a.mov(ds, ax)?;
            a.hlt()
        });
        assert_eq!(world.run(), Exit::Halt);
        assert_eq!(world.cpu().view.mode, Mode::Protected);
        // LMA is gone, LME stays.
        assert_eq!(world.get(gpr::RAX) & (Efer::LMA | Efer::LME), Efer::LME);
        world.emulator.wake();
        assert_eq!(world.run(), Exit::Halt);
        let cpu = world.cpu();
        assert_eq!(cpu.view.mode, Mode::Real);
        assert_eq!(cpu.segments[Seg::Cs].base, CODE);
        assert_eq!(cpu.segments[Seg::Ds].base, 0x1_2340);
        assert_eq!(cpu.segments[Seg::Ds].limit, 0xffff);
    });
}

#[test]
fn limits_of_protected_mode_survive_in_real_mode() {
    both(|mut world| {
        reset(&mut world);
        world.write(0x10_0000 - 8, 8, 0xabcd);
        world.code(CODE, 16, |a| {
            a.mov(ebx, cr0)?;
            a.mov(eax, ebx)?;
            a.or(al, 1)?;
            a.mov(cr0, eax)?;
            a.mov(ax, u32::from(DATA0))?;
            a.mov(ds, ax)?;
            a.mov(cr0, ebx)?;
            a.xor(ax, ax)?;
            a.mov(ds, ax)?;
            a.mov(ecx, 0x10_0000u32 - 8)?;
            a.mov(eax, dword_ptr(ecx))?;
            a.hlt()
        });
        assert_eq!(world.run(), Exit::Halt);
        assert_eq!(world.get(gpr::RAX), 0xabcd);
    });
}

//! Programs in ring 3 whose kernel is in ring 0, in pages that are the kernel's alone.

use iced_x86::code_asm::*;
use reprise_emulator::cpu::{flags, gpr};
use reprise_emulator::{Cpu, event};
use reprise_hypervisor::VmEntry;
use vm_memory::{Bytes, GuestAddress};

use crate::world::{CODE, HANDLER, STACK, Start, World, io, on_each, what};

/// The program's page.
const PROGRAM: u64 = 0x6000;
/// The kernel's figures.
const CALLS: u64 = 0x4100;
const SUM: u64 = 0x4108;
/// The kernel's page fault handler.
const FAULT: u64 = 0x3000;
/// A table of 4-KiB pages for the first 2 MiB.
const PAGES: u64 = 0x1_8000;
/// A port at which the kernel says that it is done.
const DONE: u32 = 0x80;

/// A 64-bit processor at [`CODE`]. Only the program's page is its own, and page faults have a handler with a stack.
fn divided(world: &World) -> Cpu {
    const TASK: u64 = 0x5000;
    let mut cpu = world.cpu(Start::Long);
    let memory = &world.memory;
    for page in 0..512_u64 {
        let user = if page << 12 == PROGRAM { 4 } else { 0 };
        memory
            .write_obj(page << 12 | 0x63 | user, GuestAddress(PAGES + 8 * page))
            .unwrap();
    }
    for (table, next) in [(0x1_0000, 0x1_1000), (0x1_1000, 0x1_2000), (0x1_2000, PAGES)] {
        memory.write_obj(next | 0x67, GuestAddress(table)).unwrap();
    }
    let gate = GuestAddress(u64::from(event::PF) * 16);
    memory.write_obj([FAULT | 24 << 16 | 0x8e00 << 32, 0], gate).unwrap();
    memory.write_obj(0x7000_u64, GuestAddress(TASK + 4)).unwrap();
    (cpu.tr.base, cpu.tr.limit) = (TASK, 0x67);
    cpu
}

#[test]
fn a_program_calls_its_kernel_and_gets_control_back() {
    on_each(|hypervisor| {
        for (gives_up, has_smap) in [(false, false), (false, true), (true, false), (true, true)] {
            let world = World::new(hypervisor, 1);
            world.code(64, CODE, |a| {
                // EFER with SCE, the entry, its segments, and the flags that are off there.
                for (msr, low, high) in [
                    (0xc000_0080_u32, 0x501_u32, 0_u32),
                    (0xc000_0082, HANDLER as u32, 0),
                    (0xc000_0081, 0, 8 | 0x13 << 16),
                    (0xc000_0084, 0x200, 0),
                ] {
                    a.mov(ecx, msr)?;
                    a.mov(eax, low)?;
                    a.mov(edx, high)?;
                    a.wrmsr()?;
                }
                a.mov(rcx, PROGRAM)?;
                a.mov(r11d, 0x202)?;
                a.sysretq()
            });
            world.code(64, PROGRAM, |a| {
                for number in 1..=100_u32 {
                    a.mov(eax, number)?;
                    a.syscall()?;
                }
                a.jmp(PROGRAM)
            });
            world.code(64, HANDLER, |a| {
                let mut back = a.create_label();
                a.add(dword_ptr(SUM), eax)?;
                a.inc(dword_ptr(CALLS))?;
                if gives_up {
                    a.mov(rsi, 0x4000_u64)?;
                    a.cmpxchg16b(xmmword_ptr(rsi))?;
                }
                a.cmp(dword_ptr(CALLS), 300)?;
                a.jne(back)?;
                a.mov(rax, ss)?;
                a.pushfq()?;
                a.pop(rbx)?;
                a.out(DONE, eax)?;
                a.set_label(&mut back)?;
                a.sysretq()
            });
            // As Linux has it. No fault is to be seen here.
            world.code(64, FAULT, |a| {
                if has_smap {
                    a.clac()?;
                }
                a.cld()?;
                a.hlt()
            });
            let mut vcpu = world.vm.create_vcpu(0).unwrap();
            vcpu.set_cpu(&divided(&world)).unwrap();
            let exit = vcpu.run(VmEntry::Resume).unwrap();
            let cpu = vcpu.cpu().unwrap();
            assert_eq!(what(&io(exit)).1, u64::from(DONE), "{:#x}", cpu.rip);
            assert_eq!((world.read::<u32>(CALLS), world.read::<u32>(SUM)), (300, 3 * 5050));
            assert_eq!((cpu.cpl(), cpu.gpr.get(gpr::RAX)), (0, 0x10));
            assert_eq!(cpu.gpr.get(gpr::RBX) & (flags::IF | flags::RF), 0);
            let program = PROGRAM..PROGRAM + 0x1000;
            assert!(program.contains(&cpu.gpr.get(gpr::RCX)), "{cpu:x?}");
            assert_eq!(cpu.gpr.get(gpr::RSP), STACK);
        }
    });
}

//! Address spaces and privilege levels that take turns under translated code.

use iced_x86::code_asm::*;
use reprise_emulator::cpu::{Cr4, Efer};
use reprise_emulator::translate::Translation;

use crate::changing::{assembled, machine, prepare, run_to_halt};
use crate::machine::{CODE, DATA, HIGH_PDPT, Machine, PML4, Ring};
use crate::program::Program;
use crate::{at_once, mixed, starved};

/// Tables of another address space: in it one page leads elsewhere.
const OTHER: [u64; 4] = [0x3_4000, 0x3_5000, 0x3_6000, 0x3_7000];
/// CR3: translations of this PCID are kept.
const KEEP: u64 = 1 << 63;

#[test]
fn code_and_data_of_two_address_spaces_are_told_apart_however_cr3_is_loaded() {
    const PLACE: u64 = CODE + 0x3000;
    const OPERAND: u64 = DATA + 0x3008;
    for (pcid, keep) in [(0, 0), (0, KEEP), (5, 0), (5, KEEP)] {
        let mut machine = machine(|a| {
            let mut again = a.create_label();
            a.mov(ecx, 200)?;
            a.mov(r12, PML4 | pcid | keep)?;
            a.mov(r13, OTHER[0] | (pcid * 2) | keep)?;
            a.set_label(&mut again)?;
            a.mov(cr3, r12)?;
            a.mov(eax, PLACE as u32)?;
            a.call(rax)?;
            a.add(rdx, rax)?;
            a.add(rbx, qword_ptr(OPERAND))?;
            a.xchg(r12, r13)?;
            a.dec(ecx)?;
            a.jnz(again)?;
            a.hlt()
        });
        // The tables of the other space: the same but for two pages.
        let branch = |from: u64, to: u64| machine.write(from, &(to | 0x63).to_le_bytes());
        for level in 0..3 {
            branch(OTHER[level], OTHER[level + 1]);
        }
        // The stack may lie in the upper half, which is the same.
        branch(OTHER[0] + 8 * 511, HIGH_PDPT);
        for page in 0..0x40_u64 {
            let leaf = match page * 0x1000 {
                PLACE => PLACE - 0x1000,
                0x2_3000 => 0x2_2000,
                at => at,
            };
            machine.write(OTHER[3] + 8 * page, &(leaf | 0x63).to_le_bytes());
        }
        for (page, number) in [(PLACE, 1), (PLACE - 0x1000, 1000)] {
            let code = assembled(PLACE, |a| {
                a.mov(eax, number)?;
                a.ret()
            });
            machine.write(page, &code);
        }
        machine.write(OPERAND, &3u64.to_le_bytes());
        machine.write(OPERAND - 0x1000, &5000u64.to_le_bytes());
        machine.emulator.change(|cpu| cpu.cr4.0 |= Cr4::PCIDE);
        run_to_halt(&mut machine);
        let cpu = machine.emulator.cpu();
        assert_eq!(
            (cpu.gpr.get(2), cpu.gpr.get(3)),
            (100 * 1001, 100 * 5003),
            "{pcid} {keep:#x}"
        );
        assert!(machine.emulator.counters().translated > 1000);
    }
}

#[test]
fn programs_that_call_the_kernel_run_the_same_in_every_mix_of_tiers_and_keep_what_the_tlb_knows() {
    const KERNEL: u64 = CODE + 0x2000;
    const CALLS: u32 = 500;
    let program = |a: &mut CodeAssembler| {
        let mut again = a.create_label();
        a.mov(ebp, CALLS)?;
        a.mov(esi, DATA as u32)?;
        a.set_label(&mut again)?;
        a.mov(rdi, rbp)?;
        a.add(qword_ptr(rsi), rdi)?;
        a.syscall()?;
        a.add(rbx, rax)?;
        a.dec(ebp)?;
        a.jnz(again)?;
        // What a program may not do ends this one.
        a.hlt()
    };
    let kernel = assembled(KERNEL, |a| {
        a.mov(rax, qword_ptr(rsi + 0x1000))?;
        a.add(rax, rdi)?;
        a.mov(qword_ptr(rsi + 0x1000), rax)?;
        a.sysretq()
    });
    let full = Translation { buffer: 0, ..at_once() };
    let mut expected = None;
    for way in [
        None,
        Some(at_once()),
        Some(mixed(1)),
        Some(mixed(2)),
        Some(starved()),
        Some(full),
    ] {
        let mut machine = Machine::new(Ring::User);
        let (cpu, code) = prepare(&machine, &assembled(CODE, program));
        machine.load(&Program::of(&code), &cpu);
        machine.write(KERNEL, &kernel);
        machine.write(DATA, &[0; 8]);
        machine.write(DATA + 0x1000, &[0; 8]);
        machine.emulator.change(|cpu| {
            cpu.efer.0 |= Efer::SCE;
            (cpu.msr.lstar, cpu.msr.fmask) = (KERNEL, 0);
            cpu.msr.star = 0x10 << 48 | 8 << 32;
        });
        machine.emulator.set_translation(way).unwrap();
        let before = machine.retired();
        while !machine.is_shut_down() {
            machine.run(1 << 20);
        }
        let cpu = machine.emulator.cpu();
        let calls = u64::from(CALLS);
        let sums: Vec<u64> = (1..=calls)
            .rev()
            .scan(0, |sum, n| {
                *sum += n;
                Some(*sum)
            })
            .collect();
        assert_eq!(cpu.gpr.get(3), sums.iter().sum::<u64>(), "{way:?}");
        let outcome = (machine.retired() - before, cpu.gpr.clone(), cpu.flags);
        assert_eq!(*expected.get_or_insert(outcome.clone()), outcome, "{way:?}");
        let counters = machine.emulator.counters();
        if way == Some(at_once()) {
            assert!(counters.translated > 4 * calls, "{counters:?}");
            assert!(counters.walks < 30, "a change of rings flushes nothing: {counters:?}");
        }
    }
}

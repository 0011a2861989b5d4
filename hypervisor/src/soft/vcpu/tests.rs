//! Small guests on whole machines. Guest code is real-mode or flat 32-bit code at [`CODE`]; vectors lead to handlers that
//! the test places.

mod hypercalls;

use std::sync::mpsc;

use iced_x86::code_asm::*;
use vm_memory::{Bytes, GuestAddress};

use super::super::world::{CODE, IDT, World};
use super::*;
use crate::Vm;

const HANDLER: u64 = 0x2000;

/// Runs until the next device access, which must be a write to `port`; the value.
fn written(vcpu: &mut dyn Vcpu, port: u64) -> u64 {
    match vcpu.run(VmEntry::Resume).unwrap() {
        VmExit::Io(
            request @ IoRequest {
                access: Access::Write(value),
                ..
            },
        ) => {
            assert_eq!(
                (request.space, request.address),
                (crate::Space::Port, port),
                "value {value:#x}"
            );
            OWED.set(Some(request.id));
            value
        }
        exit => panic!("{exit:?}"),
    }
}

thread_local! {
    static OWED: std::cell::Cell<Option<RequestId>> = const { std::cell::Cell::new(None) };
}

/// Like [`written`], after answering the write before.
fn next_written(vcpu: &mut dyn Vcpu, port: u64) -> u64 {
    match vcpu.run(answer(OWED.take().unwrap(), 0)).unwrap() {
        VmExit::Io(
            request @ IoRequest {
                access: Access::Write(value),
                ..
            },
        ) => {
            assert_eq!(
                (request.space, request.address),
                (crate::Space::Port, port),
                "value {value:#x}"
            );
            OWED.set(Some(request.id));
            value
        }
        exit => panic!("{exit:?}"),
    }
}

fn answer(id: RequestId, value: u64) -> VmEntry {
    VmEntry::Answer(crate::Answer { id, value })
}

fn counter(vcpu: &dyn Vcpu, name: &str) -> u64 {
    vcpu.counters()
        .into_iter()
        .find(|(own, _)| *own == name)
        .expect("the counter is there")
        .1
}

/// INIT and start-up IPIs as messages: for vCPU 1.
const TO_1: u64 = 0xfee0_1000;
const INIT: u32 = 0x500;
const STARTUP: u32 = 0x600;
const NMI: u32 = 0x400;

#[test]
fn a_device_access_leaves_and_goes_on_with_its_answer() {
    let world = World::new(1);
    world.code(16, CODE, |a| {
        a.in_(al, 0x60)?;
        a.out(0x80, al)
    });
    let mut vcpu = world.real(0);
    let VmExit::Io(request) = vcpu.run(VmEntry::Resume).unwrap() else {
        panic!("a read")
    };
    assert_eq!(
        (request.space, request.address, request.size),
        (crate::Space::Port, 0x60, 1)
    );
    assert_eq!(request.access, Access::Read);
    assert!(matches!(
        vcpu.run(VmEntry::Resume),
        Err(VcpuError::AnswerOwed { waiting }) if waiting == request.id
    ));
    let VmExit::Io(request) = vcpu.run(answer(request.id, 0x5a)).unwrap() else {
        panic!("a write")
    };
    assert_eq!((request.address, request.access), (0x80, Access::Write(0x5a)));
    assert_eq!(counter(&*vcpu, "device_accesses"), 2);
}

#[test]
fn a_kick_before_the_run_and_one_during_sleep_both_interrupt_it() {
    let world = World::new(1);
    world.code(16, CODE, |a| a.hlt());
    let mut vcpu = world.real(0);
    let kick = vcpu.kick();
    kick.kick();
    kick.kick();
    assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::Interrupted);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(std::time::Duration::from_millis(5));
            kick.kick();
        });
        assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::Interrupted);
    });
}

#[test]
fn a_kick_interrupts_an_endless_loop() {
    let world = World::new(1);
    world.memory.write_slice(&[0xeb, 0xfe], GuestAddress(CODE)).unwrap();
    let mut vcpu = world.real(0);
    let kick = vcpu.kick();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(std::time::Duration::from_millis(5));
            kick.kick();
        });
        assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::Interrupted);
    });
}

#[test]
fn a_kick_during_a_device_access_waits_for_the_end_of_the_instruction() {
    let world = World::new(1);
    world.code(16, CODE, |a| {
        a.in_(al, 0x60)?;
        a.out(0x80, al)
    });
    let mut vcpu = world.real(0);
    let VmExit::Io(request) = vcpu.run(VmEntry::Resume).unwrap() else {
        panic!("a read")
    };
    vcpu.kick().kick();
    assert_eq!(vcpu.run(answer(request.id, 7)).unwrap(), VmExit::Interrupted);
    assert_eq!(vcpu.cpu().unwrap().rip, CODE + 2);
    assert_eq!(written(&mut *vcpu, 0x80), 7);
}

#[test]
fn an_interrupt_from_another_thread_ends_hlt() {
    let world = World::new(1);
    world.real_vector(0x41, HANDLER);
    world.code(16, CODE, |a| {
        a.sti()?;
        a.hlt()?;
        a.out(0x81, al)
    });
    world.code(16, HANDLER, |a| {
        a.out(0x80, al)?;
        a.iret()
    });
    let mut vcpu = world.real(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(std::time::Duration::from_millis(5));
            world.vm.signal_msi(0xfee0_0000, 0x41);
        });
        written(&mut *vcpu, 0x80);
    });
    next_written(&mut *vcpu, 0x81);
    assert_eq!(counter(&*vcpu, "interrupts"), 1);
}

#[test]
fn an_interrupt_waits_until_the_guest_lets_it_in() {
    let world = World::new(1);
    world.real_vector(0x41, HANDLER);
    world.code(16, CODE, |a| {
        a.cli()?;
        a.out(0x81, al)?;
        a.sti()?;
        a.nop()?;
        a.out(0x82, al)
    });
    world.code(16, HANDLER, |a| {
        a.out(0x80, al)?;
        a.iret()
    });
    let mut vcpu = world.real(0);
    world.vm.signal_msi(0xfee0_0000, 0x41);
    written(&mut *vcpu, 0x81);
    next_written(&mut *vcpu, 0x80);
    next_written(&mut *vcpu, 0x82);
}

#[test]
fn the_instruction_after_sti_is_not_interrupted() {
    let world = World::new(1);
    world.real_vector(0x41, HANDLER);
    world.code(16, CODE, |a| {
        a.sti()?;
        a.out(0x81, al)?;
        a.out(0x82, al)
    });
    world.code(16, HANDLER, |a| {
        a.out(0x80, al)?;
        a.iret()
    });
    let mut vcpu = world.real(0);
    world.vm.signal_msi(0xfee0_0000, 0x41);
    written(&mut *vcpu, 0x81);
    next_written(&mut *vcpu, 0x80);
    next_written(&mut *vcpu, 0x82);
}

#[test]
fn an_nmi_waits_for_the_end_of_the_one_before() {
    let world = World::new(1);
    world.real_vector(2, HANDLER);
    world.code(16, CODE, |a| {
        a.hlt()?;
        a.out(0x81, al)?;
        a.hlt()
    });
    world.code(16, HANDLER, |a| {
        a.inc(ax)?;
        a.out(0x80, al)?;
        a.iret()
    });
    let mut vcpu = world.real(0);
    world.vm.signal_msi(0xfee0_0000, NMI);
    assert_eq!(written(&mut *vcpu, 0x80), 1);
    world.vm.signal_msi(0xfee0_0000, NMI);
    assert_eq!(
        next_written(&mut *vcpu, 0x80),
        2,
        "not nested: at the first instruction after IRET"
    );
    assert_eq!(counter(&*vcpu, "nmis"), 2);
}

#[test]
fn an_interrupt_that_came_with_an_nmi_follows_it() {
    let world = World::new(1);
    world.real_vector(2, HANDLER);
    world.real_vector(0x41, HANDLER + 0x100);
    world.code(16, CODE, |a| {
        a.sti()?;
        a.nop()?;
        a.hlt()
    });
    world.code(16, HANDLER, |a| {
        a.out(0x80, al)?;
        a.iret()
    });
    world.code(16, HANDLER + 0x100, |a| a.out(0x81, al));
    let mut vcpu = world.real(0);
    world.vm.signal_msi(0xfee0_0000, 0x41);
    world.vm.signal_msi(0xfee0_0000, NMI);
    written(&mut *vcpu, 0x80);
    next_written(&mut *vcpu, 0x81);
}

#[test]
fn the_pit_interrupts_through_the_pics() {
    let world = World::new(1);
    world.real_vector(0x30, HANDLER);
    world.code(16, CODE, |a| {
        for (port, value) in [
            (0x20, 0x11),
            (0x21, 0x30),
            (0x21, 4),
            (0x21, 1),
            (0x21, 0xfe),
            (0x43, 0x34),
        ] {
            a.mov(al, value)?;
            a.out(port, al)?;
        }
        for _ in 0..2 {
            a.mov(al, 0x10)?;
            a.out(0x40, al)?;
        }
        a.sti()?;
        a.hlt()?;
        a.hlt()?;
        a.out(0x81, al)
    });
    world.code(16, HANDLER, |a| {
        a.mov(al, 0x20)?;
        a.out(0x20, al)?;
        a.iret()
    });
    let mut vcpu = world.real(0);
    written(&mut *vcpu, 0x81);
    assert!(counter(&*vcpu, "interrupts") >= 2, "one more if the host is slow");
}

#[test]
fn a_processor_starts_at_the_page_of_its_start_up_ipi() {
    let world = World::new(2);
    world.code(16, 0x7000, |a| {
        a.mov(ax, cs)?;
        a.out(0x80, ax)
    });
    let mut vcpu = world.vm.create_vcpu(1).unwrap();
    assert_eq!(vcpu.cpu().unwrap().activity, Activity::WaitForSipi);
    world.vm.signal_msi(TO_1, INIT);
    world.vm.signal_msi(TO_1, STARTUP | 7);
    world.vm.signal_msi(TO_1, STARTUP | 7);
    assert_eq!(written(&mut *vcpu, 0x80), 0x700);
}

#[test]
fn a_start_up_ipi_without_init_does_not_disturb_a_running_processor() {
    let world = World::new(2);
    world.code(16, CODE, |a| a.out(0x80, al));
    let mut vcpu = world.real(1);
    world.vm.signal_msi(TO_1, STARTUP | 7);
    written(&mut *vcpu, 0x80);
}

#[test]
fn init_cancels_an_instruction_that_waits_for_a_device() {
    let world = World::new(2);
    world.code(16, CODE, |a| a.in_(al, 0x60));
    let mut vcpu = world.real(1);
    let VmExit::Io(request) = vcpu.run(VmEntry::Resume).unwrap() else {
        panic!("a read")
    };
    world.vm.signal_msi(TO_1, INIT);
    let kick = vcpu.kick();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(std::time::Duration::from_millis(5));
            kick.kick();
        });
        assert_eq!(vcpu.run(answer(request.id, 1)).unwrap(), VmExit::Interrupted);
    });
    // Whether the kick came before or after, INIT is seen to.
    kick.kick();
    assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::Interrupted);
    assert_eq!(
        (counter(&*vcpu, "cancellations"), counter(&*vcpu, "stale_answers")),
        (1, 1)
    );
    assert_eq!(vcpu.cpu().unwrap().activity, Activity::WaitForSipi);
}

#[test]
fn rule_20_init_calls_whoever_waits_for_a_silent_device_and_ends_the_wait() {
    let world = World::new(2);
    world.code(16, CODE, |a| a.in_(al, 0x60));
    let mut vcpu = world.real(1);
    let (call, calls) = mpsc::channel();
    vcpu.on_call(Arc::new(move || call.send(()).unwrap()));
    assert_eq!(vcpu.waiting(), None);
    let VmExit::Io(request) = vcpu.run(VmEntry::Resume).unwrap() else {
        panic!("a read")
    };
    assert_eq!(vcpu.waiting(), Some(request));
    world.vm.signal_msi(TO_1, INIT);
    assert_eq!(calls.try_iter().count(), 1);
    assert_eq!(vcpu.waiting(), None);
    vcpu.kick().kick();
    assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::Interrupted, "the kick");
    vcpu.kick().kick();
    world.vm.signal_msi(TO_1, STARTUP | 2);
    world.code(16, HANDLER, |a| a.out(0x80, al));
    assert_eq!(
        vcpu.run(VmEntry::Resume).unwrap(),
        VmExit::Interrupted,
        "the second kick"
    );
    written(&mut *vcpu, 0x80);
    assert_eq!(counter(&*vcpu, "cancellations"), 1);
}

#[test]
fn rule_21_nothing_but_init_ends_the_wait_for_a_device() {
    const NMI: u32 = 4 << 8;
    let world = World::new(2);
    world.code(16, CODE, |a| {
        a.in_(al, 0x60)?;
        a.out(0x80, al)
    });
    let mut vcpu = world.real(1);
    vcpu.on_call(Arc::new(|| panic!("called")));
    let VmExit::Io(request) = vcpu.run(VmEntry::Resume).unwrap() else {
        panic!("a read")
    };
    for data in [NMI, STARTUP | 7, 0x41] {
        world.vm.signal_msi(TO_1, data);
    }
    vcpu.kick().kick();
    world.vm.set_paused(true);
    world.vm.set_paused(false);
    assert_eq!(vcpu.waiting(), Some(request));
    assert!(matches!(
        vcpu.run(VmEntry::Resume),
        Err(VcpuError::AnswerOwed { waiting }) if waiting == request.id
    ));
    assert_eq!(
        vcpu.run(answer(request.id, 7)).unwrap(),
        VmExit::Interrupted,
        "the kick, after the instruction"
    );
    assert_eq!(vcpu.cpu().unwrap().gpr.get(reprise_emulator::cpu::gpr::RAX) & 0xff, 7);
    assert_eq!((vcpu.waiting(), counter(&*vcpu, "cancellations")), (None, 0));
}

#[test]
fn a_triple_fault_shuts_down() {
    let world = World::new(1);
    world.code(16, CODE, |a| a.int3());
    let mut vcpu = world.real(0);
    let mut cpu = vcpu.cpu().unwrap();
    cpu.idtr.limit = 0;
    vcpu.set_cpu(&cpu).unwrap();
    assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::Shutdown);
}

#[test]
fn a_self_ipi_in_the_register_page_is_taken_and_its_end_lets_the_next_one_in() {
    let world = World::new(1);
    world.gate(IDT, 0x41, HANDLER);
    world.gate(IDT, 0x42, HANDLER + 0x100);
    world.code(32, CODE, |a| {
        a.mov(ebx, 0xfee0_0000u32)?;
        a.sti()?;
        a.mov(dword_ptr(ebx + 0x300), 0x4_4041)?;
        a.out(0x83, al)
    });
    world.code(32, HANDLER, |a| {
        // A second one of the same class waits for the end of this one.
        a.mov(dword_ptr(ebx + 0x300), 0x4_4042)?;
        a.sti()?;
        a.nop()?;
        a.out(0x80, al)?;
        a.mov(dword_ptr(ebx + 0xb0), 0)?;
        a.out(0x82, al)?;
        a.iretd()
    });
    world.code(32, HANDLER + 0x100, |a| {
        a.out(0x81, al)?;
        a.mov(dword_ptr(ebx + 0xb0), 0)?;
        a.iretd()
    });
    let mut vcpu = world.flat(0);
    written(&mut *vcpu, 0x80);
    next_written(&mut *vcpu, 0x81);
    next_written(&mut *vcpu, 0x82);
    next_written(&mut *vcpu, 0x83);
}

#[test]
fn the_tsc_deadline_timer_ends_hlt() {
    let world = World::new(1);
    world.gate(IDT, 0x41, HANDLER);
    world.code(32, CODE, |a| {
        a.mov(dword_ptr(0xfee0_0320u32), 2 << 17 | 0x41)?;
        a.rdtsc()?;
        a.add(eax, 2_000_000)?;
        a.adc(edx, 0)?;
        a.mov(ecx, 0x6e0)?;
        a.wrmsr()?;
        a.sti()?;
        a.hlt()?;
        a.rdmsr()?;
        a.or(eax, edx)?;
        a.out(0x81, al)
    });
    world.code(32, HANDLER, |a| a.iretd());
    let mut vcpu = world.flat(0);
    assert_eq!(written(&mut *vcpu, 0x81), 0, "the deadline reads 0 when it has passed");
}

#[test]
fn the_timer_interrupts_a_guest_that_never_stops_to_listen() {
    let world = World::new(1);
    world.gate(IDT, 0x41, HANDLER);
    world.code(32, CODE, |a| {
        a.mov(dword_ptr(0xfee0_0320u32), 0x41)?;
        a.mov(dword_ptr(0xfee0_0380u32), 1_000_000)?;
        a.sti()?;
        a.db(&[0xeb, 0xfe])
    });
    world.code(32, HANDLER, |a| a.out(0x81, al));
    written(&mut *world.flat(0), 0x81);
}

#[test]
fn an_ipi_reaches_the_other_processor_and_comes_back() {
    let world = World::new(2);
    world.gate(IDT, 0x41, HANDLER);
    // Each sends to the other what it is woken by; ESI is the other's id.
    let idle = |a: &mut CodeAssembler| {
        a.mov(dword_ptr(0xfee0_00f0u32), 0x1ff)?;
        a.sti()?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.hlt()?;
        a.jmp(again)
    };
    world.code(32, CODE, idle);
    world.code(32, HANDLER, |a| {
        a.inc(edi)?;
        a.mov(dword_ptr(0xfee0_00b0u32), 0)?;
        a.mov(dword_ptr(0xfee0_0310u32), esi)?;
        a.mov(dword_ptr(0xfee0_0300u32), 0x4041)?;
        a.cmp(edi, 100)?;
        let mut done = a.create_label();
        a.jne(done)?;
        a.out(0x80, al)?;
        a.set_label(&mut done)?;
        a.iretd()
    });
    let (sender, receiver) = mpsc::channel();
    std::thread::scope(|scope| {
        let mut kicks = Vec::new();
        for index in 0..2 {
            let mut vcpu = world.flat(index);
            let mut cpu = vcpu.cpu().unwrap();
            cpu.gpr.set(reprise_emulator::cpu::gpr::RSI, u64::from(1 - index) << 24);
            vcpu.set_cpu(&cpu).unwrap();
            kicks.push(vcpu.kick());
            let sender = sender.clone();
            scope.spawn(move || {
                let mut entry = VmEntry::Resume;
                loop {
                    match vcpu.run(entry).unwrap() {
                        VmExit::Io(request) => {
                            sender.send(index).unwrap();
                            entry = answer(request.id, 0);
                        }
                        VmExit::Interrupted => break,
                        VmExit::Shutdown => panic!("shut down"),
                    }
                }
            });
        }
        // A message to a processor that has not enabled its APIC yet is lost; one is enough to start them.
        let mut heard = std::collections::BTreeSet::new();
        while heard.len() < 2 {
            world.vm.signal_msi(0xfee0_0000, 0x41);
            if let Ok(index) = receiver.recv_timeout(std::time::Duration::from_millis(10)) {
                heard.insert(index);
            }
        }
        kicks.iter().for_each(|kick| kick.kick());
    });
}

#[test]
fn cpuid_and_kvmclock_are_there() {
    let world = World::new(1);
    world.code(32, CODE, |a| {
        a.mov(eax, 0x4000_0000u32)?;
        a.cpuid()?;
        a.mov(eax, ebx)?;
        a.out(0x80, eax)?;
        a.mov(ecx, 0x4b56_4d01u32)?;
        a.mov(eax, 0x4001u32)?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        a.mov(eax, dword_ptr(0x4018u32))?;
        a.out(0x80, eax)?;
        a.mov(ecx, 0x4b56_4dffu32)?;
        a.rdmsr()
    });
    world.gate(IDT, 13, HANDLER);
    world.code(32, HANDLER, |a| a.out(0x81, al));
    let mut vcpu = world.flat(0);
    assert_eq!(written(&mut *vcpu, 0x80), 0x4b4d_564b, "KVMK");
    assert_eq!(
        next_written(&mut *vcpu, 0x80),
        1 << 31,
        "the multiplier of a counter of 1 GHz"
    );
    next_written(&mut *vcpu, 0x81);
}

#[test]
fn a_paused_machine_fires_no_timer_and_a_continued_one_does() {
    let world = World::new(1);
    world.gate(IDT, 0x41, HANDLER);
    world.code(32, CODE, |a| {
        a.mov(dword_ptr(0xfee0_0320u32), 0x41)?;
        a.mov(dword_ptr(0xfee0_0380u32), 1_000)?;
        a.sti()?;
        a.hlt()
    });
    world.code(32, HANDLER, |a| a.out(0x81, al));
    let mut vcpu = world.flat(0);
    world.vm.set_paused(true);
    let kick = vcpu.kick();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            kick.kick();
        });
        assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::Interrupted);
        assert_eq!(counter(&*vcpu, "interrupts"), 0);
        scope.spawn(|| {
            std::thread::sleep(std::time::Duration::from_millis(5));
            world.vm.set_paused(false);
        });
        written(&mut *vcpu, 0x81);
    });
}

#[test]
fn a_line_interrupts_through_the_io_apic_the_guest_programmed() {
    let world = World::new(1);
    world.gate(IDT, 0x41, HANDLER);
    world.code(32, CODE, |a| {
        a.mov(dword_ptr(0xfec0_0000u32), 0x10 + 2 * 5)?;
        a.mov(dword_ptr(0xfec0_0010u32), 0x8041)?;
        a.sti()?;
        a.hlt()?;
        a.out(0x82, al)
    });
    world.code(32, HANDLER, |a| {
        a.out(0x81, al)?;
        a.mov(dword_ptr(0xfee0_00b0u32), 0)?;
        a.iretd()
    });
    let line = world.vm.interrupt_line(5).unwrap();
    line.set(true);
    let mut vcpu = world.flat(0);
    written(&mut *vcpu, 0x81);
    next_written(&mut *vcpu, 0x81);
    line.set(false);
    next_written(&mut *vcpu, 0x82);
}

//! Processors that start, restart and talk to each other.

use std::sync::mpsc;

use iced_x86::code_asm::*;

use super::*;

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
    let request = asked(&mut *vcpu);
    world.vm.signal_msi(TO_1, INIT);
    let kick = vcpu.kick();
    std::thread::scope(|scope| {
        soon(scope, || kick.kick());
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
    let request = asked(&mut *vcpu);
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

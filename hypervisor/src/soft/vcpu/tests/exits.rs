//! What leaves a vCPU: device accesses, kicks, shutdown.

use iced_x86::code_asm::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;

#[test]
fn a_device_access_leaves_and_goes_on_with_its_answer() {
    let world = World::new(1);
    world.code(16, CODE, |a| {
        a.in_(al, 0x60)?;
        a.out(0x80, al)
    });
    let mut vcpu = world.real(0);
    let request = asked(&mut *vcpu);
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
        soon(scope, || kick.kick());
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
        soon(scope, || kick.kick());
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
    let request = asked(&mut *vcpu);
    vcpu.kick().kick();
    assert_eq!(vcpu.run(answer(request.id, 7)).unwrap(), VmExit::Interrupted);
    assert_eq!(vcpu.cpu().unwrap().rip, CODE + 2);
    assert_eq!(written(&mut *vcpu, 0x80), 7);
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
    let request = asked(&mut *vcpu);
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
        written(&mut *vcpu, 0x80),
        1 << 31,
        "the multiplier of a counter of 1 GHz"
    );
    written(&mut *vcpu, 0x81);
}

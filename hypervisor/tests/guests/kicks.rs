//! Getting a vCPU out.

use std::time::Duration;

use iced_x86::code_asm::*;
use reprise_hypervisor::{VmEntry, VmExit};

use crate::world::{CODE, Start, World, answer, io, on_each};

#[test]
fn a_kick_before_the_run_interrupts_it_once() {
    on_each(|hypervisor| {
        let world = World::new(hypervisor, 1);
        world.code(16, CODE, |a| a.out(0x80, al));
        let mut vcpu = world.vcpu(0, Start::Real);
        let kick = vcpu.kick();
        kick.kick();
        kick.kick();
        assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::Interrupted);
        io(vcpu.run(VmEntry::Resume).unwrap());
    });
}

#[test]
fn a_kick_ends_sleep_and_loops_alike() {
    on_each(|hypervisor| {
        for sleeps in [true, false] {
            let world = World::new(hypervisor, 1);
            world.code(16, CODE, |a| match sleeps {
                true => a.hlt(),
                false => a.jmp(CODE),
            });
            let mut vcpu = world.vcpu(0, Start::Real);
            let kick = vcpu.kick();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    std::thread::sleep(Duration::from_millis(20));
                    kick.kick();
                });
                assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::Interrupted);
            });
        }
    });
}

#[test]
fn a_processor_that_waits_for_its_start_up_can_be_kicked() {
    on_each(|hypervisor| {
        let world = World::new(hypervisor, 2);
        let _bootstrap = world.vm.create_vcpu(0).unwrap();
        let mut vcpu = world.vm.create_vcpu(1).unwrap();
        let kick = vcpu.kick();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(20));
                kick.kick();
            });
            assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::Interrupted);
        });
    });
}

#[test]
fn an_access_that_is_under_way_is_not_disturbed_by_a_kick() {
    on_each(|hypervisor| {
        let world = World::new(hypervisor, 1);
        world.code(32, CODE, |a| {
            a.mov(eax, dword_ptr(0x3000_0ffe))?;
            a.out(0x80, eax)
        });
        let mut vcpu = world.vcpu(0, Start::Flat);
        let first = io(vcpu.run(VmEntry::Resume).unwrap());
        vcpu.kick().kick();
        let second = io(vcpu.run(answer(first.id, 0x2211)).unwrap());
        assert_eq!((second.address, second.size), (0x3000_1000, 2));
        assert_eq!(vcpu.run(answer(second.id, 0x4433)).unwrap(), VmExit::Interrupted);
        assert_eq!(vcpu.cpu().unwrap().gpr.get(0), 0x4433_2211);
        io(vcpu.run(VmEntry::Resume).unwrap());
    });
}

#[test]
fn many_kicks_from_another_thread_lose_nothing_and_leave_nothing() {
    on_each(|hypervisor| {
        let world = World::new(hypervisor, 1);
        world.code(16, CODE, |a| a.hlt());
        let mut vcpu = world.vcpu(0, Start::Real);
        let kick = vcpu.kick();
        let (seen, was_seen) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for _ in 0..200 {
                    kick.kick();
                    was_seen.recv().unwrap();
                }
            });
            for _ in 0..200 {
                assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::Interrupted);
                seen.send(()).unwrap();
            }
        });
    });
}

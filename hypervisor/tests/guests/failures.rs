//! Where a vCPU on KVM cannot go on: it says where it was and why, again and again, and never goes round in circles.

use std::time::Duration;

use iced_x86::code_asm::*;
use reprise_emulator::cpu::{Attributes, Mode, Segment};
use reprise_hypervisor::kvm::{Backing, KvmVcpuError};
use reprise_hypervisor::{Vcpu, VcpuError, VmEntry, VmExit};

use vm_memory::{Bytes, GuestAddress};

use crate::world::{CODE, DEVICE, HANDLER, Start, World, answer, io, kvm, on_each, what};

/// KVM_INTERNAL_ERROR_DELIVERY_EV.
const DELIVERY: u32 = 3;

/// A guest that raises #UD with its IDT at `idt`.
fn raising(world: &World, idt: u64) -> Box<dyn Vcpu> {
    world.code(64, CODE, |a| a.ud2());
    let mut cpu = world.cpu(Start::Long);
    cpu.idtr.base = idt;
    let mut vcpu = world.vm.create_vcpu(0).unwrap();
    vcpu.set_cpu(&cpu).unwrap();
    vcpu
}

#[test]
fn an_idt_in_a_device_ends_the_vcpu_as_this_hosts_kvm_sees_it() {
    let Some(kvm) = kvm() else { return };
    let world = World::new(&kvm, 1);
    let mut vcpu = raising(&world, DEVICE);
    for _ in 0..2 {
        match (vcpu.run(VmEntry::Resume), Backing::of_this_host()) {
            // The processor came out to KVM while it delivered the exception.
            (Err(VcpuError::Kvm { source }), Backing::Hardware) => {
                let KvmVcpuError::Internal {
                    rip,
                    mode,
                    bytes,
                    suberror,
                    ..
                } = &source
                else {
                    panic!("{source}")
                };
                assert_eq!((*rip, *mode, *suberror), (CODE, Mode::Long, DELIVERY));
                assert_eq!(bytes[..2], [0x0f, 0x0b]);
                assert!(source.to_string().contains("while an event was delivered"), "{source}");
            }
            // A KVM in software delivers it itself, does not find a gate, nor one for that.
            (Ok(VmExit::Shutdown), Backing::Module(_) | Backing::NoFlag) => {}
            (other, backing) => panic!("{other:?} on {backing}"),
        }
    }
}

#[test]
fn without_an_idt_an_exception_is_a_triple_fault() {
    on_each(|hypervisor| {
        let world = World::new(hypervisor, 1);
        let mut vcpu = raising(&world, 0x8000_0000);
        assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::Shutdown);
    });
}

#[test]
fn code_in_a_device_is_fetched_from_there() {
    on_each(|hypervisor| {
        let world = World::new(hypervisor, 1);
        world.code(64, CODE, |a| {
            a.mov(rbx, DEVICE)?;
            a.jmp(rbx)
        });
        // mov eax, 0x11223344; out 0x80, eax; a KVM says no more of them than that it cannot.
        let code = [0xb8, 0x44, 0x33, 0x22, 0x11, 0xe7, 0x80];
        let mut vcpu = world.vcpu(0, Start::Long);
        let mut entry = VmEntry::Resume;
        for _ in 0..100 {
            let request = io(vcpu.run(entry).unwrap());
            if request.address == 0x80 {
                assert_eq!(what(&request).3, reprise_hypervisor::Access::Write(0x1122_3344));
                return;
            }
            let offset = (request.address - DEVICE) as usize;
            let value = (0..usize::from(request.size)).rev().fold(0, |value, i| {
                value << 8 | u64::from(code.get(offset + i).copied().unwrap_or(0x90_u8))
            });
            entry = answer(request.id, value);
        }
        panic!("it does not come to an end");
    });
}

#[test]
fn a_guest_whose_exception_handler_faults_for_ever_can_be_kicked() {
    on_each(|hypervisor| {
        let world = World::new(hypervisor, 1);
        // Nobody has announced AVX-512; a KVM may leave it to the rescue to say so. The handler's stack is a new one each time.
        for place in [CODE, HANDLER] {
            world.code(64, place, |a| a.vpaddq(zmm0, zmm0, zmm1));
        }
        let gate = HANDLER & 0xffff | 24 << 16 | 1 << 32 | 0x8e00 << 32 | (HANDLER >> 16) << 48;
        world.memory.write_obj([gate, 0_u64], GuestAddress(6 * 16)).unwrap();
        let mut cpu = world.cpu(Start::Long);
        cpu.tr = Segment {
            selector: 0x20,
            attributes: Attributes(0x8b),
            limit: 0x67,
            base: 0x6000,
        };
        // IST1
        world.memory.write_obj(0x7000_u64, GuestAddress(0x6000 + 36)).unwrap();
        let mut vcpu = world.vm.create_vcpu(0).unwrap();
        vcpu.set_cpu(&cpu).unwrap();
        let kick = vcpu.kick();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    std::thread::sleep(Duration::from_millis(20));
                    kick.kick();
                });
                assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::Interrupted);
            }
        });
        assert_eq!(vcpu.cpu().unwrap().rip, HANDLER);
    });
}

//! Interrupts and doorbells as events, and the log of written memory.

use std::sync::Arc;

use iced_x86::code_asm::*;
use reprise_hypervisor::{
    Access, DoorbellAddress, HypervisorError, HypervisorKind, Message, RequestId, Space, Vcpu, VmEntry, VmExit,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::world::{CODE, DEVICE, HANDLER, Start, World, answer, io, on_each};

/// A guest that waits for interrupts 0x41 and 0x42, and writes which it was to port 0x80.
fn listening(world: &World) -> Box<dyn Vcpu> {
    world.code(32, CODE, |a| {
        a.mov(dword_ptr(0xfee0_00f0_u32), 0x1ff)?;
        a.mov(al, 1)?;
        a.out(0x80, al)?;
        a.sti()?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.hlt()?;
        a.jmp(again)
    });
    for (vector, handler) in [(0x41_u8, HANDLER), (0x42, HANDLER + 0x100)] {
        world.gate(vector, handler);
        world.code(32, handler, |a| {
            a.mov(dword_ptr(0xfee0_00b0_u32), 0)?;
            a.mov(al, i32::from(vector))?;
            a.out(0x80, al)?;
            a.add(esp, 12)?;
            a.sti()?;
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            a.hlt()?;
            a.jmp(again)
        });
    }
    world.vcpu(0, Start::Flat)
}

fn written(vcpu: &mut dyn Vcpu, entry: VmEntry) -> (u64, RequestId) {
    let request = io(vcpu.run(entry).unwrap());
    let Access::Write(value) = request.access else {
        panic!("{request:?} is no write")
    };
    (value, request.id)
}

/// Whether the guest sleeps on until it is kicked.
fn sleeps(vcpu: &mut dyn Vcpu, entry: VmEntry) {
    let kick = vcpu.kick();
    let thread = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(30));
        kick.kick();
    });
    assert_eq!(vcpu.run(entry).unwrap(), VmExit::Interrupted);
    thread.join().unwrap();
}

const TO_41: Message = Message {
    address: 0xfee0_0000,
    data: 0x41,
};
const TO_42: Message = Message {
    address: 0xfee0_0000,
    data: 0x42,
};

#[test]
fn an_event_interrupts_as_its_message_says_then() {
    on_each(|hypervisor| {
        let world = World::new(hypervisor, 1);
        let mut vcpu = listening(&world);
        let interrupt = world.vm.message_event().unwrap();
        interrupt.set(Some(TO_41)).unwrap();
        let (value, id) = written(&mut *vcpu, VmEntry::Resume);
        assert_eq!(value, 1);
        // As another process would.
        interrupt.event().try_clone().unwrap().write(1).unwrap();
        let (value, id) = written(&mut *vcpu, answer(id, 0));
        assert_eq!(value, 0x41);
        interrupt.set(Some(TO_42)).unwrap();
        interrupt.set(Some(TO_42)).unwrap();
        interrupt.signal();
        assert_eq!(written(&mut *vcpu, answer(id, 0)).0, 0x42);
    });
}

#[test]
fn what_is_signalled_while_masked_comes_once_when_it_is_masked_no_longer() {
    on_each(|hypervisor| {
        let world = World::new(hypervisor, 1);
        let mut vcpu = listening(&world);
        let interrupt = world.vm.message_event().unwrap();
        let (_, id) = written(&mut *vcpu, VmEntry::Resume);
        interrupt.signal();
        interrupt.signal();
        sleeps(&mut *vcpu, answer(id, 0));
        interrupt.set(Some(TO_41)).unwrap();
        let (value, id) = written(&mut *vcpu, VmEntry::Resume);
        assert_eq!(value, 0x41);
        interrupt.set(None).unwrap();
        interrupt.signal();
        sleeps(&mut *vcpu, answer(id, 0));
        interrupt.set(Some(TO_42)).unwrap();
        assert_eq!(written(&mut *vcpu, VmEntry::Resume).0, 0x42);
    });
}

#[test]
fn an_interrupts_place_is_free_when_it_is_gone() {
    on_each(|hypervisor| {
        let world = World::new(hypervisor, 1);
        let mut vcpu = listening(&world);
        let (_, id) = written(&mut *vcpu, VmEntry::Resume);
        for _ in 0..3 {
            let many: Vec<_> = (0..40).map(|_| world.vm.message_event().unwrap()).collect();
            many.iter().for_each(|interrupt| interrupt.set(Some(TO_42)).unwrap());
        }
        let interrupt = world.vm.message_event().unwrap();
        interrupt.set(Some(TO_41)).unwrap();
        interrupt.signal();
        assert_eq!(written(&mut *vcpu, answer(id, 0)).0, 0x41);
    });
}

#[test]
fn a_doorbell_rings_without_an_exit_and_is_a_device_access_again_when_it_is_gone() {
    on_each(|hypervisor| {
        let world = World::new(hypervisor, 1);
        world.code(32, CODE, |a| {
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            a.mov(eax, 7)?;
            a.mov(dword_ptr(DEVICE as i32), eax)?;
            a.mov(word_ptr((DEVICE + 4) as i32), ax)?;
            a.mov(eax, 8)?;
            a.mov(word_ptr((DEVICE + 4) as i32), ax)?;
            a.mov(dx, 0x700)?;
            a.out(dx, al)?;
            a.in_(al, 0x80)?;
            a.jmp(again)
        });
        let mut vcpu = world.vcpu(0, Start::Flat);
        let event = || Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let (any, seven, port) = (event(), event(), event());
        let at = |space, address, value| DoorbellAddress { space, address, value };
        let bells = [
            (at(Space::Memory, DEVICE, None), &any),
            (at(Space::Memory, DEVICE + 4, Some((7, 2))), &seven),
            (at(Space::Port, 0x700, None), &port),
        ]
        .map(|(at, event)| world.vm.doorbell(at, event).unwrap());
        let eight = io(vcpu.run(VmEntry::Resume).unwrap());
        assert_eq!(
            (eight.address, eight.access),
            (DEVICE + 4, Access::Write(8)),
            "not this value"
        );
        let read = io(vcpu.run(answer(eight.id, 0)).unwrap());
        assert_eq!(read.address, 0x80);
        for event in [&any, &seven, &port] {
            assert_eq!(event.read().unwrap(), 1);
        }
        drop(bells);
        let mut entry = answer(read.id, 0);
        for address in [DEVICE, DEVICE + 4, DEVICE + 4, 0x700, 0x80] {
            let request = io(vcpu.run(entry).unwrap());
            assert_eq!(request.address, address);
            entry = answer(request.id, 0);
        }
        assert!(any.read().is_err(), "nobody rang");
    });
}

#[test]
fn the_log_names_the_pages_that_were_written_and_no_others() {
    on_each(|hypervisor| {
        let world = World::new(hypervisor, 1);
        world.code(32, CODE, |a| {
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            a.in_(al, 0x80)?;
            a.mov(dword_ptr(0x2_0000), eax)?;
            a.mov(dword_ptr(0x2_1ffe), eax)?;
            a.mov(eax, dword_ptr(0x4_0000))?;
            a.jmp(again)
        });
        let mut vcpu = world.vcpu(0, Start::Flat);
        let id = io(vcpu.run(VmEntry::Resume).unwrap()).id;
        let logs = world.vm.log_writes(true);
        if hypervisor.kind() == HypervisorKind::Soft {
            assert!(matches!(logs, Err(HypervisorError::Unsupported { .. })));
            return;
        }
        assert_eq!(world.vm.written().unwrap(), []);
        let id = io(vcpu.run(answer(id, 0)).unwrap()).id;
        world.vm.memory_written(0x5_0fff, 2);
        assert_eq!(world.vm.written().unwrap(), [0x2_0000..0x2_3000, 0x5_0000..0x5_2000]);
        assert_eq!(world.vm.written().unwrap(), []);
        world.vm.log_writes(false).unwrap();
        vcpu.run(answer(id, 0)).unwrap();
        assert_eq!(world.vm.written().unwrap(), []);
    });
}

#[test]
fn a_model_specific_register_that_is_not_there_faults() {
    on_each(|hypervisor| {
        for write in [false, true] {
            let world = World::new(hypervisor, 1);
            world.gate(13, HANDLER);
            world.code(32, HANDLER, |a| a.out(0x81, al));
            world.code(32, CODE, |a| {
                a.mov(ecx, 0xdead_0000_u32)?;
                if write {
                    a.wrmsr()?;
                } else {
                    a.rdmsr()?;
                }
                a.out(0x80, al)
            });
            let mut vcpu = world.vcpu(0, Start::Flat);
            assert_eq!(io(vcpu.run(VmEntry::Resume).unwrap()).address, 0x81);
        }
    });
}

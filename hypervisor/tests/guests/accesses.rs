//! Device accesses: what is asked, and what becomes of the answer.

use iced_x86::code_asm::*;
use reprise_hypervisor::{Access, Space, VcpuError, VmEntry, VmExit};

use crate::world::{CODE, DEVICE, Start, World, answer, counter, io, on_each, what};

#[test]
fn a_port_is_read_and_written() {
    on_each(|hypervisor| {
        let world = World::new(hypervisor, 1);
        world.code(16, CODE, |a| {
            a.in_(al, 0x60)?;
            a.mov(dx, 0x3f8)?;
            a.out(dx, al)?;
            a.in_(eax, dx)?;
            a.out(0x80, ax)
        });
        let mut vcpu = world.vcpu(0, Start::Real);
        let read = io(vcpu.run(VmEntry::Resume).unwrap());
        assert_eq!(what(&read), (Space::Port, 0x60, 1, Access::Read));
        let write = io(vcpu.run(answer(read.id, 0x5a)).unwrap());
        assert_eq!(what(&write), (Space::Port, 0x3f8, 1, Access::Write(0x5a)));
        let read = io(vcpu.run(answer(write.id, 0)).unwrap());
        assert_eq!(what(&read), (Space::Port, 0x3f8, 4, Access::Read));
        let write = io(vcpu.run(answer(read.id, 0x1234_5678)).unwrap());
        assert_eq!(what(&write), (Space::Port, 0x80, 2, Access::Write(0x5678)));
        assert_eq!(counter(&*vcpu, "device_accesses"), 4);
    });
}

#[test]
fn without_the_answer_that_is_owed_the_vcpu_does_not_go_on() {
    on_each(|hypervisor| {
        let world = World::new(hypervisor, 1);
        world.code(16, CODE, |a| {
            a.in_(al, 0x60)?;
            a.out(0x80, al)
        });
        let mut vcpu = world.vcpu(0, Start::Real);
        assert_eq!(vcpu.waiting(), None);
        let read = io(vcpu.run(VmEntry::Resume).unwrap());
        assert_eq!(vcpu.waiting(), Some(read));
        for entry in [VmEntry::Resume, answer(reprise_hypervisor::RequestId(u64::MAX), 1)] {
            let refused = vcpu.run(entry);
            assert!(matches!(refused, Err(VcpuError::AnswerOwed { waiting }) if waiting == read.id));
        }
        assert_eq!(counter(&*vcpu, "stale_answers"), 1);
        let write = io(vcpu.run(answer(read.id, 7)).unwrap());
        assert_eq!(what(&write), (Space::Port, 0x80, 1, Access::Write(7)));
    });
}

#[test]
fn memory_that_is_a_device_is_read_and_written_with_every_width() {
    on_each(|hypervisor| {
        let world = World::new(hypervisor, 1);
        world.code(64, CODE, |a| {
            a.mov(rbx, DEVICE)?;
            a.mov(al, byte_ptr(rbx))?;
            a.mov(word_ptr(rbx + 2), ax)?;
            a.mov(eax, dword_ptr(rbx + 4))?;
            a.mov(qword_ptr(rbx + 8), rax)?;
            a.mov(rcx, qword_ptr(rbx + 16))?;
            a.add(dword_ptr(rbx + 24), ecx)?;
            a.out(0x80, al)
        });
        let mut vcpu = world.vcpu(0, Start::Long);
        let expected = [
            (DEVICE, 1, Access::Read, 0x11),
            (DEVICE + 2, 2, Access::Write(0x11), 0),
            (DEVICE + 4, 4, Access::Read, 0xdead_beef),
            (DEVICE + 8, 8, Access::Write(0xdead_beef), 0),
            (DEVICE + 16, 8, Access::Read, 0x0123_4567_89ab_cdef),
            (DEVICE + 24, 4, Access::Read, 0x1000_0000),
            (DEVICE + 24, 4, Access::Write(0x99ab_cdef), 0),
        ];
        let mut entry = VmEntry::Resume;
        for (address, size, access, value) in expected {
            let request = io(vcpu.run(entry).unwrap());
            assert_eq!(what(&request), (Space::Memory, address, size, access));
            entry = answer(request.id, value);
        }
        let write = io(vcpu.run(entry).unwrap());
        assert_eq!(what(&write), (Space::Port, 0x80, 1, Access::Write(0xef)));
        assert_eq!(vcpu.cpu().unwrap().gpr.get(1), 0x0123_4567_89ab_cdef);
    });
}

#[test]
fn an_access_across_two_pages_of_a_device_is_made_in_parts() {
    on_each(|hypervisor| {
        let world = World::new(hypervisor, 1);
        world.code(32, CODE, |a| {
            a.mov(ebx, (DEVICE + 0xffd) as u32)?;
            a.mov(eax, dword_ptr(ebx))?;
            a.out(0x80, eax)
        });
        let mut vcpu = world.vcpu(0, Start::Flat);
        let mut entry = VmEntry::Resume;
        for (address, size, value) in [(0xffd, 2, 0x2211), (0xfff, 1, 0x33), (0x1000, 1, 0x44)] {
            let request = io(vcpu.run(entry).unwrap());
            assert_eq!(what(&request), (Space::Memory, DEVICE + address, size, Access::Read));
            entry = answer(request.id, value);
        }
        let write = io(vcpu.run(entry).unwrap());
        assert_eq!(what(&write), (Space::Port, 0x80, 4, Access::Write(0x4433_2211)));
    });
}

#[test]
fn a_string_of_port_reads_is_the_same_whether_it_is_a_batch_or_one_by_one() {
    on_each(|hypervisor| {
        let world = World::new(hypervisor, 1);
        world.code(32, CODE, |a| {
            a.mov(edi, 0x4000)?;
            a.mov(ecx, 5)?;
            a.mov(dx, 0x1f0)?;
            a.cld()?;
            a.rep().insw()?;
            a.out(0x80, al)
        });
        let mut vcpu = world.vcpu(0, Start::Flat);
        let (mut entry, mut read) = (VmEntry::Resume, 0_u16);
        loop {
            let request = io(vcpu.run(entry).unwrap());
            assert_eq!(request.space, Space::Port);
            let value = match request.access {
                Access::Write(_) => break,
                Access::Read => {
                    read += 1;
                    0x1100 + u64::from(read)
                }
                Access::ReadTo { guest, count } => {
                    use vm_memory::{Bytes, GuestAddress};
                    for index in 0..count {
                        read += 1;
                        let place = GuestAddress(guest + 2 * u64::from(index));
                        world.memory.write_obj(0x1100 + read, place).unwrap();
                    }
                    count.into()
                }
                access => panic!("{access:?}"),
            };
            assert_eq!((request.address, request.size), (0x1f0, 2));
            entry = answer(request.id, value);
        }
        assert_eq!(read, 5, "no element is asked for twice");
        assert_eq!(world.read::<[u16; 5]>(0x4000), [0x1101, 0x1102, 0x1103, 0x1104, 0x1105]);
        let cpu = vcpu.cpu().unwrap();
        assert_eq!((cpu.gpr.get(7), cpu.gpr.get(1)), (0x400a, 0));
    });
}

#[test]
fn a_store_of_what_a_device_says_is_made_once_it_has_said_it() {
    on_each(|hypervisor| {
        let world = World::new(hypervisor, 1);
        world.code(64, CODE, |a| {
            a.mov(rbx, DEVICE)?;
            a.push(qword_ptr(rbx))?;
            a.out(0x80, al)
        });
        let mut vcpu = world.vcpu(0, Start::Long);
        let read = io(vcpu.run(VmEntry::Resume).unwrap());
        assert_eq!(
            vcpu.cpu().unwrap().rip,
            CODE + 10,
            "the instruction has not been executed"
        );
        assert_eq!(world.read::<u64>(0x7ff8), 0);
        io(vcpu.run(answer(read.id, 0x1122_3344_5566_7788)).unwrap());
        assert_eq!(world.read::<u64>(0x7ff8), 0x1122_3344_5566_7788);
    });
}

#[test]
fn an_instruction_that_is_cancelled_stores_nothing() {
    on_each(|hypervisor| {
        for start in [Start::Long, Start::Flat] {
            let world = World::new(hypervisor, 1);
            let bits = if start == Start::Long { 64 } else { 32 };
            world.code(bits, CODE, |a| match start {
                Start::Long => a.push(qword_ptr(DEVICE)),
                _ => a.push(dword_ptr(DEVICE)),
            });
            world.code(bits, 0x3000, |a| a.out(0x80, eax));
            let mut vcpu = world.vcpu(0, start);
            let mut elsewhere = vcpu.cpu().unwrap();
            elsewhere.rip = 0x3000;
            elsewhere.gpr.set(0, 0x5555);
            let read = io(vcpu.run(VmEntry::Resume).unwrap());
            vcpu.set_cpu(&elsewhere).unwrap();
            assert_eq!(vcpu.waiting(), None);
            assert_eq!(*vcpu.cpu().unwrap(), *elsewhere);
            let write = io(vcpu.run(answer(read.id, u64::MAX)).unwrap());
            assert_eq!(what(&write), (Space::Port, 0x80, 4, Access::Write(0x5555)));
            assert_eq!(world.read::<[u64; 2]>(0x7ff0), [0, 0]);
            assert_eq!(
                (counter(&*vcpu, "stale_answers"), counter(&*vcpu, "cancellations")),
                (1, 1)
            );
        }
    });
}

#[test]
fn a_triple_fault_shuts_the_processor_down() {
    on_each(|hypervisor| {
        let world = World::new(hypervisor, 1);
        world.code(32, CODE, |a| {
            a.lidt(dword_ptr(0x5000))?;
            a.ud2()
        });
        let mut vcpu = world.vcpu(0, Start::Flat);
        assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::Shutdown);
        assert_eq!(
            vcpu.run(VmEntry::Resume).unwrap(),
            VmExit::Shutdown,
            "and it stays down"
        );
    });
}

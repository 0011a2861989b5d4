//! Interrupts: from lines, as messages, between processors, and from the timers.

use iced_x86::code_asm::*;
use reprise_hypervisor::{Access, RequestId, Vcpu, VmEntry, VmExit};

use crate::world::{CODE, HANDLER, Start, World, answer, io, on_each};

/// Runs on, answering writes with nothing, until a write to `port`: its value and name.
fn written(vcpu: &mut dyn Vcpu, mut entry: VmEntry, port: u64) -> (u64, RequestId) {
    loop {
        let request = io(vcpu.run(entry).unwrap());
        let Access::Write(value) = request.access else {
            panic!("{request:?} is no write")
        };
        if request.address == port {
            return (value, request.id);
        }
        entry = answer(request.id, 0);
    }
}

/// Programs the PICs as firmware does, vectors 0x20 and 0x28 up, only `line` of the master open; then waits for
/// interrupts.
fn listen(world: &World, line: u8) {
    world.code(16, CODE, |a| {
        for (port, value) in [
            (0x20, 0x11),
            (0xa0, 0x11),
            (0x21, 0x20),
            (0xa1, 0x28),
            (0x21, 4),
            (0xa1, 2),
            (0x21, 1),
            (0xa1, 1),
            (0x21, !(1 << i32::from(line)) & 0xff),
            (0xa1, 0xff),
        ] {
            a.mov(al, value)?;
            a.out(port, al)?;
        }
        a.mov(al, 1)?;
        a.out(0x80, al)?;
        a.sti()?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.hlt()?;
        a.jmp(again)
    });
    world.real_vector(0x20 + line, HANDLER);
    world.code(16, HANDLER, |a| {
        a.mov(al, 2)?;
        a.out(0x80, al)?;
        a.mov(al, 0x20)?;
        a.out(0x20, al)?;
        a.iret()
    });
}

#[test]
fn a_line_interrupts_through_the_pics_once_for_each_edge() {
    on_each(|hypervisor| {
        let world = World::new(hypervisor, 1);
        listen(&world, 4);
        let mut vcpu = world.vcpu(0, Start::Real);
        let (value, mut id) = written(&mut *vcpu, VmEntry::Resume, 0x80);
        assert_eq!(value, 1);
        let (one, other) = (world.vm.interrupt_line(4).unwrap(), world.vm.interrupt_line(4).unwrap());
        for _ in 0..3 {
            one.set(true);
            other.set(true);
            let interrupted = written(&mut *vcpu, answer(id, 0), 0x80);
            assert_eq!(interrupted.0, 2);
            one.set(false);
            one.set(true);
            other.set(false);
            // The line has not been down meanwhile.
            vcpu.kick().kick();
            let mut entry = answer(interrupted.1, 0);
            loop {
                match vcpu.run(entry).unwrap() {
                    VmExit::Interrupted => break,
                    VmExit::Io(request) => {
                        assert_ne!(request.address, 0x80);
                        entry = answer(request.id, 0);
                    }
                    exit => panic!("{exit:?}"),
                }
            }
            one.set(false);
            let pulse = world.vm.interrupt_line(4).unwrap();
            pulse.pulse();
            (_, id) = written(&mut *vcpu, VmEntry::Resume, 0x80);
        }
    });
}

#[test]
fn the_pit_interrupts_as_irq_0() {
    on_each(|hypervisor| {
        let world = World::new(hypervisor, 1);
        listen(&world, 0);
        // First, counter 0 to mode 2 with a count of 2000.
        world.code(16, 0x3000, |a| {
            for (port, value) in [(0x43, 0x34), (0x40, 0xd0), (0x40, 0x07)] {
                a.mov(al, value)?;
                a.out(port, al)?;
            }
            a.jmp(CODE)
        });
        let mut vcpu = world.vm.create_vcpu(0).unwrap();
        let mut cpu = world.cpu(Start::Real);
        cpu.rip = 0x3000;
        vcpu.set_cpu(&cpu).unwrap();
        let (value, mut id) = written(&mut *vcpu, VmEntry::Resume, 0x80);
        assert_eq!(value, 1);
        for _ in 0..3 {
            let interrupted = written(&mut *vcpu, answer(id, 0), 0x80);
            assert_eq!(interrupted.0, 2);
            id = interrupted.1;
        }
    });
}

#[test]
fn a_message_interrupts_its_processor() {
    on_each(|hypervisor| {
        let world = World::new(hypervisor, 1);
        world.code(32, CODE, |a| {
            // Switch the local APIC on.
            a.mov(dword_ptr(0xfee0_00f0_u32), 0x1ff)?;
            a.mov(al, 1)?;
            a.out(0x80, al)?;
            a.sti()?;
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            a.hlt()?;
            a.jmp(again)
        });
        world.gate(0x41, HANDLER);
        world.code(32, HANDLER, |a| {
            a.mov(al, 2)?;
            a.out(0x80, al)?;
            a.mov(dword_ptr(0xfee0_00b0_u32), 0)?;
            // Not IRET: not every KVM emulates it here.
            a.add(esp, 12)?;
            a.sti()?;
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            a.hlt()?;
            a.jmp(again)
        });
        let mut vcpu = world.vcpu(0, Start::Flat);
        let (value, id) = written(&mut *vcpu, VmEntry::Resume, 0x80);
        assert_eq!(value, 1);
        world.vm.signal_msi(0xfee0_0000, 0x41);
        world.vm.signal_msi(0x1234, 0x42);
        let (value, id) = written(&mut *vcpu, answer(id, 0), 0x80);
        assert_eq!(value, 2);
        world.vm.signal_msi(0xfee0_0000, 0x41);
        assert_eq!(written(&mut *vcpu, answer(id, 0), 0x80).0, 2);
    });
}

#[test]
fn a_second_processor_starts_where_the_first_one_says() {
    on_each(|hypervisor| {
        let world = World::new(hypervisor, 2);
        world.code(32, CODE, |a| {
            a.mov(dword_ptr(0xfee0_00f0_u32), 0x1ff)?;
            a.mov(dword_ptr(0xfee0_0310_u32), 1 << 24)?;
            // INIT, and the start-up IPI of page 3.
            a.mov(dword_ptr(0xfee0_0300_u32), 0x4500)?;
            a.mov(dword_ptr(0xfee0_0300_u32), 0x4603)?;
            a.mov(al, 1)?;
            a.out(0x80, al)?;
            a.hlt()
        });
        world.code(16, 0x3000, |a| {
            a.mov(ax, cs)?;
            a.out(0x81, ax)?;
            a.hlt()
        });
        let mut first = world.vcpu(0, Start::Flat);
        let mut second = world.vm.create_vcpu(1).unwrap();
        std::thread::scope(|scope| {
            let started = scope.spawn(move || written(&mut *second, VmEntry::Resume, 0x81).0);
            written(&mut *first, VmEntry::Resume, 0x80);
            assert_eq!(started.join().unwrap(), 0x300);
        });
    });
}

#[test]
fn lines_and_processors_beyond_those_there_are_are_refused() {
    on_each(|hypervisor| {
        use reprise_hypervisor::HypervisorError;
        let world = World::new(hypervisor, 2);
        assert!(world.vm.interrupt_line(23).is_ok());
        let refused = world.vm.interrupt_line(24).err();
        assert!(matches!(refused, Some(HypervisorError::Gsi { gsi: 24, max: 23 })));
        assert!(world.vm.create_vcpu(1).is_ok());
        for index in [1, 2] {
            let refused = world.vm.create_vcpu(index).err();
            assert!(matches!(refused, Some(HypervisorError::VcpuIndex { .. })), "{index}");
        }
    });
}

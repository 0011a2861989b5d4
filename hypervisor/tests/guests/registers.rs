//! The state of a processor: what is put in comes out, whatever holds it meanwhile.

use iced_x86::code_asm::{dword_ptr, eax, ecx, esp};
use reprise_emulator::Cpu;
use reprise_emulator::cpu::fpu::F80;
use reprise_emulator::cpu::{Activity, Attributes, Cr0, Cr4, Efer, Seg, Segment, Shadow, flags};
use reprise_emulator::event::{self, Event, Source};
use reprise_hypervisor::{Access, Hypervisor, StateError, VcpuError, VmEntry};

use crate::world::{CODE, HANDLER, Start, World, answer, io, on_each};

/// A processor that has something to lose in every register.
fn busy(world: &World, start: Start) -> Cpu {
    let mut cpu = world.cpu(start);
    for register in 0..16 {
        cpu.gpr
            .set(register, 0x0123_4567_89ab_cdef_u64.rotate_left(4 * u32::from(register)));
    }
    cpu.rip = 0x1234;
    cpu.flags
        .set_bits(flags::RESERVED_ONE | flags::STATUS | flags::IF | flags::DF | flags::IOPL | flags::AC | flags::ID);
    cpu.cr2 = 0xdead_b000;
    cpu.dr = [0x1000, 0x2000, 0x3000, 0x4000];
    cpu.dr6 = 0xffff_4ff1;
    cpu.dr7 = 0x0d01_0455;
    if start == Start::Long {
        cpu.cr2 = 0xffff_8000_dead_b000;
        cpu.cr0.0 |= Cr0::WP | Cr0::AM | Cr0::TS | Cr0::MP;
        cpu.cr4.0 |= Cr4::PGE | Cr4::OSFXSR | Cr4::OSXMMEXCPT | Cr4::DE;
        cpu.efer.0 |= Efer::SCE | Efer::NXE;
        cpu.segments[Seg::Fs].base = 0x7fff_1234_5000;
        cpu.segments[Seg::Gs].base = 0xffff_8888_0000_0000;
        cpu.segments[Seg::Es] = Segment::null(0);
        cpu.segments[Seg::Ds] = Segment::null(3);
        cpu.ldtr = Segment {
            selector: 0x40,
            attributes: Attributes(0x82),
            limit: 0x7f,
            base: 0x5000,
        };
        cpu.tr = Segment {
            selector: 0x48,
            attributes: Attributes(0x8b),
            limit: 0x67,
            base: 0xffff_8000_0000_6000,
        };
        cpu.idtr.base = 0xffff_8000_0000_7000;
        cpu.idtr.limit = 0xfff;
        cpu.msr.lstar = 0xffff_8000_0000_1000;
        cpu.msr.cstar = 0xffff_8000_0000_2000;
        cpu.msr.kernel_gs_base = 0x7fff_0000_1000;
    }
    cpu.msr.star = 0x0023_0010_0000_0000;
    cpu.msr.fmask = 0x4_7700;
    cpu.msr.sysenter_cs = 0x10;
    cpu.msr.sysenter_esp = 0x6_0000;
    cpu.msr.sysenter_eip = 0x7_0000;
    cpu.msr.pat = 0x0407_0600_0407_0106;
    cpu.msr.mtrr.default_type = 0xc06;
    cpu.msr.mtrr.fixed = [0x0606_0606_0606_0606; 11];
    cpu.msr.mtrr.variable[2] = 0xc000_0000;
    cpu.msr.mtrr.variable[3] = 0x3fff_c000_0800;
    cpu.fpu.control = 0x027f;
    // TOP is 5.
    cpu.fpu.status = 0x2900;
    cpu.fpu.tags = 0b1010_0110;
    cpu.fpu.mxcsr = 0x1fa0;
    for (i, register) in cpu.fpu.registers.iter_mut().enumerate() {
        *register = F80 {
            significand: 0x8000_0000_0000_0001 + i as u64,
            sign_exponent: 0x4000 + i as u16,
        };
    }
    for (i, vector) in cpu.fpu.vectors.iter_mut().enumerate().take(16) {
        vector[0] = 0x0123_4567_89ab_cdef_u64.wrapping_mul(i as u64 + 1);
        vector[1] = !vector[0];
    }
    cpu.refresh();
    cpu
}

/// What `cpu` becomes in a new vCPU of `hypervisor`.
fn through(hypervisor: &dyn Hypervisor, cpu: &Cpu) -> Cpu {
    let world = World::new(hypervisor, 1);
    let mut vcpu = world.vm.create_vcpu(0).unwrap();
    vcpu.set_cpu(cpu).unwrap_or_else(|error| panic!("{error:?}"));
    *vcpu.cpu().unwrap()
}

/// Fails naming the registers that differ.
#[track_caller]
fn same(one: &Cpu, other: &Cpu) {
    let leaves = |cpu: &Cpu| serde_json::to_value(cpu).unwrap();
    let (serde_json::Value::Object(one_fields), serde_json::Value::Object(other_fields)) = (leaves(one), leaves(other))
    else {
        panic!("a processor is an object")
    };
    let differ: Vec<_> = one_fields
        .iter()
        .filter(|(name, value)| other_fields[*name] != **value)
        .collect();
    assert!(
        differ.is_empty(),
        "{differ:?} against {:?}",
        differ.iter().map(|(name, _)| &other_fields[*name]).collect::<Vec<_>>()
    );
    assert!(
        one == other,
        "they differ in what is not saved: {:?}, {:?}",
        one.view,
        other.view
    );
}

#[track_caller]
fn survives(hypervisor: &dyn Hypervisor, cpu: &Cpu) {
    let once = through(hypervisor, cpu);
    same(&once, cpu);
    // Through the CPU in software, and back.
    let soft = through(&reprise_hypervisor::SoftHypervisor, &once);
    same(&soft, cpu);
    same(&through(hypervisor, &soft), cpu);
}

#[test]
fn registers_survive_in_every_mode() {
    on_each(|hypervisor| {
        let world = World::new(hypervisor, 1);
        for start in [Start::Real, Start::Flat, Start::Long] {
            survives(hypervisor, &busy(&world, start));
        }
    });
}

#[test]
fn what_holds_events_off_survives() {
    on_each(|hypervisor| {
        let world = World::new(hypervisor, 1);
        for shadow in [Shadow::Sti, Shadow::MovSs] {
            let mut cpu = world.cpu(Start::Flat);
            cpu.shadow = shadow;
            survives(hypervisor, &cpu);
        }
        let mut cpu = world.cpu(Start::Flat);
        cpu.nmi_blocked = true;
        survives(hypervisor, &cpu);
    });
}

#[test]
fn an_event_that_is_to_be_delivered_survives() {
    on_each(|hypervisor| {
        let world = World::new(hypervisor, 1);
        let fault = |vector, error_code, cr2| Event {
            vector,
            source: Source::Fault,
            error_code,
            cr2,
            length: 0,
        };
        let events = [
            Event::external(0x41),
            Event::nmi(),
            fault(event::UD, None, None),
            fault(event::GP, Some(0x18), None),
            fault(event::PF, Some(2), Some(0xdead_0000)),
        ];
        for event in events {
            let mut cpu = world.cpu(Start::Long);
            cpu.event = Some(event);
            survives(hypervisor, &cpu);
        }
    });
}

#[test]
fn what_the_processor_is_doing_survives() {
    on_each(|hypervisor| {
        let world = World::new(hypervisor, 1);
        for activity in [
            Activity::Running,
            Activity::Halted,
            Activity::WaitForSipi,
            Activity::Shutdown,
        ] {
            let mut cpu = world.cpu(Start::Flat);
            cpu.activity = activity;
            survives(hypervisor, &cpu);
        }
    });
}

#[test]
fn a_processor_begins_as_after_reset() {
    on_each(|hypervisor| {
        let world = World::new(hypervisor, 2);
        let cpus = [0, 1].map(|index| world.vm.create_vcpu(index).unwrap().cpu().unwrap());
        let mut reset = Cpu::reset();
        same(&cpus[0], &reset);
        reset.activity = Activity::WaitForSipi;
        same(&cpus[1], &reset);
    });
}

#[test]
fn a_state_that_no_processor_can_be_in_changes_nothing() {
    on_each(|hypervisor| {
        let world = World::new(hypervisor, 1);
        let mut vcpu = world.vcpu(0, Start::Flat);
        let before = vcpu.cpu().unwrap();
        let mut cpu = busy(&world, Start::Long);
        // A bit without a meaning.
        cpu.cr4.0 |= 1 << 31;
        let refused = vcpu.set_cpu(&cpu);
        assert!(matches!(
            refused,
            Err(VcpuError::State {
                source: StateError::Cpu { .. }
            })
        ));
        same(&vcpu.cpu().unwrap(), &before);
    });
}

#[test]
fn registers_that_kvm_does_not_have_are_the_emulators() {
    on_each(|hypervisor| {
        let world = World::new(hypervisor, 1);
        // HWCR is one that every processor of this make has, and some KVMs have not; the other one nobody has.
        world.code(32, CODE, |a| {
            for number in [0xc001_0015_u32, 0x1234_5678] {
                a.mov(ecx, number)?;
                a.rdmsr()?;
                a.out(0x80, eax)?;
                a.wrmsr()?;
            }
            a.hlt()
        });
        // General protection: the error code, then what the handler was called for.
        world.gate(13, HANDLER);
        world.code(32, HANDLER, |a| {
            a.mov(eax, dword_ptr(esp + 4))?;
            a.out(0x81, eax)
        });
        let mut vcpu = world.vcpu(0, Start::Flat);
        let first = io(vcpu.run(VmEntry::Resume).unwrap());
        assert_eq!(first.address, 0x80);
        let fault = io(vcpu.run(answer(first.id, 0)).unwrap());
        let rdmsr = CODE + 5 + 2 + 2 + 2 + 5;
        assert_eq!((fault.address, fault.access), (0x81, Access::Write(rdmsr)));
    });
}

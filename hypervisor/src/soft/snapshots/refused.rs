//! States that are another machine's.

use iced_x86::code_asm::*;
use reprise_emulator::cpu::Activity;
use reprise_emulator::cpuid::{CpuidEntry, CpuidRegisters};

use super::super::world::{CODE, World};
use crate::{Access, Answer, HypervisorError, IoRequest, StateError, VcpuError, VcpuState, Vm, VmEntry, VmExit};

/// What a vCPU says to its own state after `change`, and that nothing has changed then.
fn refused(change: impl FnOnce(&mut VcpuState)) -> Option<StateError> {
    let world = World::new(1);
    let mut vcpu = world.real(0);
    let sound = vcpu.state().unwrap();
    let mut state = sound.clone();
    state.cpu.rip = 0x1234;
    change(&mut state);
    match vcpu.restore(state) {
        Ok(()) => {
            assert_eq!(vcpu.cpu().unwrap().rip, 0x1234);
            None
        }
        Err(VcpuError::State { source }) => {
            assert_eq!(vcpu.state().unwrap(), sound, "nothing has changed");
            Some(source)
        }
        Err(error) => panic!("{error}"),
    }
}

fn leaf(state: &mut VcpuState, leaf: u32) -> &mut CpuidEntry {
    let found = state.cpuid.iter_mut().find(|entry| entry.leaf == leaf);
    found.expect("the leaf is there")
}

#[test]
fn a_cpu_model_that_announces_more_is_refused_by_the_leaf_that_does() {
    assert_eq!(refused(|_| ()), None);
    // IA32_ARCH_CAPABILITIES, which is not there.
    let error = refused(|state| leaf(state, 7).registers.edx |= 1 << 29).unwrap();
    let StateError::CpuModel {
        leaf: 7,
        subleaf: 0,
        saved: Some(saved),
        own: Some(own),
    } = error
    else {
        panic!("{error}")
    };
    assert_eq!(saved.edx ^ own.edx, 1 << 29);
    assert!(error.to_string().contains("leaf 0x7,"), "{error}");
}

#[test]
fn a_leaf_that_is_not_here_is_named_if_it_announces_something() {
    let more = |bits: u32| CpuidEntry {
        leaf: 0x12,
        subleaf: Some(3),
        registers: CpuidRegisters {
            ebx: bits,
            ..CpuidRegisters::default()
        },
    };
    assert!(matches!(
        refused(|state| state.cpuid.push(more(1))),
        Some(StateError::CpuModel {
            leaf: 0x12,
            subleaf: 3,
            saved: Some(_),
            own: None
        })
    ));
    assert_eq!(refused(|state| state.cpuid.push(more(0))), None);
}

#[test]
fn a_vcpu_goes_on_as_the_model_that_its_guest_knows() {
    let world = World::new(1);
    let mut vcpu = world.real(0);
    let mut state = vcpu.state().unwrap();
    // RDTSCP.
    leaf(&mut state, 0x8000_0001).registers.edx &= !(1 << 27);
    state.cpuid.retain(|entry| entry.leaf != 0x8000_0008);
    vcpu.restore(state.clone()).unwrap();
    assert_eq!(vcpu.state().unwrap(), state);
    world.code(16, CODE, |a| {
        a.mov(eax, 0x8000_0001_u32)?;
        a.cpuid()?;
        a.mov(eax, edx)?;
        a.mov(dx, 0x80)?;
        a.out(dx, eax)?;
        a.rdtscp()?;
        a.hlt()
    });
    world.real_vector(6, 0x3000);
    world.code(16, 0x3000, |a| a.out(0x81, al));
    let VmExit::Io(write) = vcpu.run(VmEntry::Resume).unwrap() else {
        panic!()
    };
    let Access::Write(announced) = write.access else {
        panic!()
    };
    assert_eq!(announced >> 27 & 1, 0);
    let next = vcpu.run(VmEntry::Answer(Answer { id: write.id, value: 0 })).unwrap();
    assert!(
        matches!(next, VmExit::Io(IoRequest { address: 0x81, .. })),
        "{next:?}: #UD"
    );
}

#[test]
fn the_order_of_leaves_is_no_difference() {
    assert_eq!(refused(|state| state.cpuid.reverse()), None);
}

#[test]
fn another_processors_state_is_another_model_as_it_has_another_id() {
    let world = World::new(2);
    let (first, mut second) = (world.real(0), world.real(1));
    let error = second.restore(first.state().unwrap()).unwrap_err();
    assert!(
        matches!(
            error,
            VcpuError::State {
                source: StateError::CpuModel { leaf: 1, .. }
            }
        ),
        "{error:?}"
    );
}

#[test]
fn the_first_register_that_is_wrong_is_named() {
    let register = |change: fn(&mut VcpuState)| match refused(change) {
        Some(StateError::Register { register, .. }) => register,
        Some(StateError::Cpu { source }) => source.register,
        other => panic!("{other:?}"),
    };
    assert_eq!(register(|state| state.cpu.cr0.0 |= 1 << 31), "CR0");
    assert_eq!(register(|state| state.cpu.efer.0 |= 1 << 63), "EFER");
    assert_eq!(register(|state| state.local_apic.apic_base = 1), "IA32_APIC_BASE");
    assert_eq!(register(|state| state.local_apic.irr[0] = 1), "IRR");
}

#[test]
fn a_machine_with_another_number_of_vcpus_is_refused_and_stays_as_it_is() {
    let (one, two) = (World::new(1), World::new(2));
    two.vm.set_paused(true);
    let before = two.vm.state().unwrap();
    let error = two.vm.restore(&one.vm.state().unwrap()).unwrap_err();
    assert!(matches!(
        error,
        HypervisorError::State {
            source: StateError::VcpuCount { saved: 1, own: 2 }
        }
    ));
    assert_eq!(two.vm.state().unwrap(), before);
}

#[test]
fn a_processor_that_waits_for_its_start_up_ipi_waits_on() {
    let world = World::new(2);
    let saved = world.vm.create_vcpu(1).unwrap().state().unwrap();
    assert_eq!(saved.cpu.activity, Activity::WaitForSipi);
    let other = World::new(2);
    let mut vcpu = other.real(1);
    vcpu.restore(saved).unwrap();
    assert_eq!(vcpu.cpu().unwrap().activity, Activity::WaitForSipi);
}

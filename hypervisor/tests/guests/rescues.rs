//! Instructions that a hypervisor may not emulate, on RAM and on a device, in ring 0 and ring 3: whatever runs them, memory,
//! registers and the device's accesses are the same in the end.
//!
//! A KVM in software gives most of them up in ring 0, and all of them on a device; there they are rescued. In ring 3 it leaves
//! those on RAM to the processor, as one that is hardware's does in ring 0 too: so the emulator is compared with that as well.
//! KVM is asked to announce what it does not offer; what needs a register that it does not have (AVX-512) is not there.

mod guest;

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use reprise_emulator::Cpu;
use reprise_emulator::cpu::Mode;
use reprise_hypervisor::kvm::{Backing, KvmVcpuError};
use reprise_hypervisor::{Access, Hypervisor, SoftHypervisor, Space, VcpuError, VmEntry};
use vm_memory::{Bytes, GuestAddress};

use crate::world::{CODE, DEVICE, HANDLER, World, answer, counter, io, kvm, on_each, what};

use guest::{DATA, DONE, begin, processor, program, same};

#[test]
fn a_guest_of_everything_that_fails_ends_the_same_in_both_rings() {
    for ring in [0, 3] {
        for wide in [false, true] {
            // What the processor executes itself, it must have.
            if ring == 3 && wide && !(is_x86_feature_detected!("avx2") && is_x86_feature_detected!("adx")) {
                eprintln!("skipped in ring 3: this processor has no AVX2");
                continue;
            }
            // More of the wide ones do not fit below the data.
            let left = same((ring, wide), |a| program(a, if wide { 10 } else { 20 }, wide));
            if let Some(kvm) = left {
                let software = kvm
                    .counters
                    .iter()
                    .filter(|(name, _)| ["rescues", "rescue_run_ahead"].contains(name));
                assert!(software.map(|(_, count)| count).sum::<u64>() > 20, "{:?}", kvm.counters);
            }
        }
    }
}

#[test]
fn what_only_a_kernel_executes_ends_the_same() {
    let software = Backing::of_this_host() != Backing::Hardware;
    let left = same((0, true), |a| {
        begin(a)?;
        a.fninit()?;
        for place in [DATA, DEVICE] {
            a.mov(rbx, place)?;
            a.xor(ecx, ecx)?;
            a.xgetbv()?;
            a.add(r15, rax)?;
            // XSETBV is KVM's; what it sets is seen by the next rescue.
            a.mov(eax, 3)?;
            a.xsetbv()?;
            a.xgetbv()?;
            a.add(r15, rax)?;
            a.mov(eax, 7)?;
            a.xsetbv()?;
            a.rdtscp()?;
            a.rdtsc()?;
            a.xor(eax, eax)?;
            a.xor(edx, edx)?;
            a.add(r14, rcx)?;
            a.clac()?;
            a.stac()?;
            a.pushfq()?;
            a.pop(r13)?;
            a.clac()?;
            if software {
                a.movdiri(qword_ptr(rbx + 40), rsi)?;
                a.movdiri(dword_ptr(rbx + 52), esi)?;
            }
            a.fld(dword_ptr(rbx))?;
            a.fxsave(byte_ptr(rbp + 0x1000))?;
            a.fxrstor(byte_ptr(rbp + 0x1000))?;
        }
        a.out(DONE as u32, al)
    });
    let Some(kvm) = left else { return };
    if software {
        let names: Vec<_> = kvm.counters.iter().map(|(name, _)| *name).collect();
        for name in ["rescued_xgetbv", "rescued_rdtscp", "rescued_clac", "rescued_movdiri"] {
            let ahead = kvm
                .counters
                .iter()
                .any(|(own, count)| *own == "rescue_run_ahead" && *count > 0);
            assert!(names.contains(&name) || ahead, "{name}: {:?}", kvm.counters);
        }
    }
}

#[test]
fn what_kvm_has_read_for_an_instruction_is_not_read_again() {
    let left = same((0, false), |a| {
        begin(a)?;
        a.mov(rbx, DEVICE)?;
        a.lock().cmpxchg16b(xmmword_ptr(rbx))?;
        a.out(DONE as u32, al)
    });
    let Some(kvm) = left else { return };
    let reads = kvm.accesses.iter().filter(|access| access.3 == Access::Read);
    assert_eq!(reads.count(), 2, "{:?}", kvm.accesses);
}

#[test]
fn rescued_instructions_are_counted_by_mnemonic() {
    let left = same((0, false), |a| {
        begin(a)?;
        a.mov(rbx, DEVICE)?;
        for _ in 0..3 {
            a.paddq(xmm0, xmmword_ptr(rbx))?;
        }
        a.out(DONE as u32, al)
    });
    let Some(kvm) = left else { return };
    let figure = |name| {
        kvm.counters
            .iter()
            .find(|(own, _)| *own == name)
            .map_or(0, |(_, count)| *count)
    };
    let moves = figure("rescued_paddq");
    assert_eq!(moves, figure("rescues"));
    assert!((1..=3).contains(&moves) && figure("rescue_state_transfers") == 2 * moves);
}

#[test]
fn where_failures_come_thick_software_runs_on() {
    let left = same((0, false), |a| {
        begin(a)?;
        a.mov(rbx, DEVICE)?;
        a.mov(ecx, 200)?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.paddq(xmm0, xmmword_ptr(rbx))?;
        a.paddd(xmm1, xmm0)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.out(DONE as u32, al)
    });
    let Some(kvm) = left else { return };
    let figure = |name| {
        kvm.counters
            .iter()
            .find(|(own, _)| *own == name)
            .map_or(0, |(_, count)| *count)
    };
    assert!(figure("rescues") < 20, "{:?}", kvm.counters);
    assert!(figure("rescue_run_ahead") > 500, "{:?}", kvm.counters);
}

#[test]
fn code_that_kvm_has_changed_is_not_executed_as_it_was() {
    // Software runs on over this code, and then the guest changes it with a store that is KVM's.
    same((0, false), |a| {
        begin(a)?;
        a.mov(rbx, DEVICE)?;
        a.xor(r8d, r8d)?;
        a.mov(r9d, 60)?;
        let (mut again, mut place) = (a.create_label(), a.create_label());
        a.set_label(&mut again)?;
        a.paddq(xmm0, xmmword_ptr(rbx))?;
        a.set_label(&mut place)?;
        a.add(r8d, 1)?;
        a.nop()?;
        a.lea(rdi, qword_ptr(place))?;
        // The immediate.
        a.mov(byte_ptr(rdi + 3), r9b)?;
        a.dec(r9d)?;
        a.jnz(again)?;
        a.out(DONE as u32, al)
    });
}

/// A guest's handler says at a port what it was called for.
fn faults(
    hypervisor: &dyn Hypervisor,
    vector: u8,
    write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Cpu {
    let world = World::new(hypervisor, 1);
    world.code(64, CODE, write);
    world.code(64, HANDLER, |a| a.out(DONE as u32, al));
    let gate = HANDLER & 0xffff | 24 << 16 | 0x8e00 << 32 | (HANDLER >> 16) << 48;
    let place = u64::from(vector) * 16;
    world.memory.write_obj([gate, 0], GuestAddress(place)).unwrap();
    let mut vcpu = world.vm.create_vcpu(0).unwrap();
    vcpu.set_cpu(&processor(&world, 0)).unwrap();
    let mut entry = VmEntry::Resume;
    loop {
        let request = io(vcpu.run(entry).unwrap());
        if request.space == Space::Port {
            break;
        }
        entry = answer(request.id, 0);
    }
    let mut cpu = *vcpu.cpu().unwrap();
    cpu.rip = 0;
    cpu
}

#[test]
fn an_instruction_that_faults_when_it_is_rescued_faults_as_on_the_processor() {
    let stack = |cpu: &Cpu| (cpu.gpr.get(4), cpu.cr2, cpu.flags.bits());
    let mut seen = Vec::new();
    on_each(|hypervisor| {
        // A page beyond those that there are; alignment; and #UD of what is meant to be undefined.
        let page = faults(hypervisor, 14, |a| {
            a.mov(rbx, 0x8000_0000_u64)?;
            a.paddq(xmm0, xmmword_ptr(rbx))
        });
        let aligned = faults(hypervisor, 13, |a| {
            a.mov(rbx, DEVICE + 8)?;
            a.movaps(xmm0, xmmword_ptr(rbx))
        });
        let undefined = faults(hypervisor, 6, |a| a.ud2());
        // Nobody has announced it.
        let vector = faults(hypervisor, 6, |a| a.vpaddq(zmm0, zmm0, zmm1));
        seen.push([stack(&page), stack(&aligned), stack(&undefined), stack(&vector)]);
    });
    assert!(seen.iter().all(|own| *own == seen[0]), "{seen:x?}");
    assert_eq!(seen[0][0].1, 0x8000_0000);
}

#[test]
fn what_nobody_can_execute_ends_the_vcpu_with_its_bytes() {
    let Some(kvm) = kvm() else { return };
    let world = World::new(&kvm, 1);
    // CLZERO.
    world
        .memory
        .write_slice(&[0x0f, 0x01, 0xfc], GuestAddress(CODE))
        .unwrap();
    let mut vcpu = world.vm.create_vcpu(0).unwrap();
    vcpu.set_cpu(&processor(&world, 0)).unwrap();
    for _ in 0..2 {
        let failed = vcpu.run(VmEntry::Resume);
        let Err(VcpuError::Kvm {
            source: KvmVcpuError::Emulation { failure },
        }) = failed
        else {
            panic!("{failed:?}")
        };
        assert_eq!((failure.rip, failure.mode, failure.bits), (CODE, Mode::Long, 64));
        assert_eq!(failure.bytes[..3], [0x0f, 0x01, 0xfc]);
        assert!(failure.to_string().contains("Clzero"), "{failure}");
    }
}

#[test]
fn a_vcpu_that_waits_in_a_rescue_shows_the_instruction_not_begun_and_can_be_put_elsewhere() {
    on_each(|hypervisor| {
        let world = World::new(hypervisor, 1);
        world.code(64, CODE, |a| {
            a.mov(rbx, DEVICE)?;
            a.paddq(xmm0, xmmword_ptr(rbx))?;
            a.out(DONE as u32, al)
        });
        let mut vcpu = world.vm.create_vcpu(0).unwrap();
        vcpu.set_cpu(&processor(&world, 0)).unwrap();
        let first = io(vcpu.run(VmEntry::Resume).unwrap());
        let second = io(vcpu.run(answer(first.id, 1)).unwrap());
        assert_eq!(second.address, DEVICE + 8);
        assert_eq!(vcpu.waiting(), Some(second));
        assert!(matches!(vcpu.run(VmEntry::Resume), Err(VcpuError::AnswerOwed { .. })));
        let cpu = vcpu.cpu().unwrap();
        assert_eq!((cpu.rip, cpu.fpu.vectors[0][0]), (CODE + 10, 0));
        let mut elsewhere = processor(&world, 0);
        elsewhere.rip = CODE + 14;
        vcpu.set_cpu(&elsewhere).unwrap();
        assert_eq!(vcpu.waiting(), None);
        let done = io(vcpu.run(VmEntry::Resume).unwrap());
        assert_eq!(what(&done).1, DONE);
        assert_eq!(vcpu.cpu().unwrap().fpu.vectors[0][0], 0);
        assert_eq!(counter(&*vcpu, "cancellations"), 1);
    });
}

#[test]
fn a_vcpu_that_waits_in_a_rescue_is_saved_and_goes_on_on_either_backend() {
    let Some(kvm) = kvm() else { return };
    let code = |a: &mut CodeAssembler| {
        a.mov(rbx, DEVICE)?;
        a.paddq(xmm0, xmmword_ptr(rbx))?;
        a.out(DONE as u32, al)
    };
    let world = World::new(&kvm, 1);
    world.code(64, CODE, code);
    let mut vcpu = world.vm.create_vcpu(0).unwrap();
    vcpu.set_cpu(&processor(&world, 0)).unwrap();
    let first = io(vcpu.run(VmEntry::Resume).unwrap());
    let second = io(vcpu.run(answer(first.id, 1)).unwrap());
    let state = vcpu.state().unwrap();
    for hypervisor in [&kvm as &dyn Hypervisor, &SoftHypervisor] {
        let again = World::new(hypervisor, 1);
        again.code(64, CODE, code);
        processor(&again, 0);
        let mut other = again.vm.create_vcpu(0).unwrap();
        other.restore(state.clone()).unwrap();
        let waiting = other.waiting().unwrap();
        assert_eq!(what(&waiting), what(&second));
        let exit = other.run(answer(waiting.id, 2)).unwrap();
        assert_eq!(what(&io(exit)).1, DONE);
        assert_eq!(other.cpu().unwrap().fpu.vectors[0][..2], [1, 2]);
    }
}

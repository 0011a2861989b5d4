use reprise_emulator::cpu::{Attributes, Mode, Seg, Segment};
use vm_memory::{Bytes, GuestAddress};

use super::super::KvmHypervisor;
use super::super::vm::KvmVm;
use super::*;
use crate::{CpuModel, GuestMemory, VmSettings};

#[test]
fn what_kvm_gives_up_for_besides_instructions_is_told_with_place_mode_bytes_and_reason() {
    let Ok(kvm) = KvmHypervisor::open() else {
        eprintln!("skipped: no KVM");
        return;
    };
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x2000)]).unwrap();
    // mov al, [0xd0000000]; ud2
    let code = [0xa0, 0, 0, 0, 0xd0, 0x0f, 0x0b];
    memory.write_slice(&code, GuestAddress(0x1000)).unwrap();
    let settings = VmSettings {
        vcpus: 1,
        memory,
        hyperv: false,
        model: CpuModel::Host,
    };
    let vm = KvmVm::new(&kvm, settings).unwrap();
    let mut vcpu = KvmVcpu::new(0, Arc::clone(&vm.machine)).unwrap();
    let mut cpu = vcpu.cpu().unwrap();
    for seg in Seg::ALL {
        cpu.segments[seg] = Segment::flat(16, Attributes(0xc093));
    }
    cpu.segments[Seg::Cs] = Segment::flat(8, Attributes(0xc09b));
    cpu.cr0.0 |= Cr0::PE;
    cpu.rip = 0x1000;
    vcpu.set_cpu(&cpu).unwrap();
    assert!(matches!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::Io(_)));
    let data = [0x8000_0306, 49, 0, 0];
    for (suberror, name) in [
        (2, "exceptions at the same time"),
        (3, "an exit while an event was delivered"),
        (4, "an exit that it does not know"),
    ] {
        let error = vcpu.unexpected(&Exit::Internal {
            suberror,
            length: 2,
            data,
        });
        let KvmVcpuError::Internal {
            rip, mode, bytes, data, ..
        } = &error
        else {
            panic!("{error:?}")
        };
        assert_eq!((*rip, *mode, &bytes[..7]), (0x1000, Mode::Protected, &code[..]));
        assert_eq!(data[..], [0x8000_0306, 49]);
        let text = error.to_string();
        for part in [name, "RIP 0x1000", "Protected mode", "a0, 00", "80000306"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
    let error = vcpu.unexpected(&Exit::FailEntry { reason: 0x8000_0021 });
    let text = error.to_string();
    assert!(text.contains("RIP 0x1000") && text.contains("0x80000021"), "{text}");
    let error = vcpu.unexpected(&Exit::Other(0x5a5));
    assert!(
        matches!(
            error,
            KvmVcpuError::UnknownExit {
                rip: 0x1000,
                reason: 0x5a5
            }
        ),
        "{error:?}"
    );
}

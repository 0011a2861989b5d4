//! An instruction that KVM cannot emulate, finished in the emulator.
//!
//! Goals: one rescue at most 3 times an ordinary access of a device in memory; a routine of 1000 SSE instructions, run ahead
//! over, at most 1.2 times the soft backend's time for it and one rescue.
//! - `access`: `mov rax, [rbx]` on a device, answered at once; KVM emulates it.
//! - `rescue, integer` and `rescue, vector`: `lock cmpxchg16b [rbx]` and `paddq xmm0, [rbx]`
//!   on RAM, each by itself: a port access in between keeps software from running on. The port's access is counted in.
//! - `access of a port`: what is to be taken off for that.
//! - `routine`: 1000 SSE instructions of a loop, on KVM and on the soft backend, from one port access to the next.
//!
//! Time is the thread's CPU time. Only a KVM in software gives up instructions on RAM; elsewhere these figures say nothing.
//!
//! `cargo bench -p reprise-hypervisor --bench rescue`

use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use reprise_emulator::cpu::{Attributes, Cr0, Cr4, Efer, Seg, Segment, gpr};
use reprise_hypervisor::{
    Answer, CpuModel, GuestMemory, Hypervisor, KvmHypervisor, RequestId, SoftHypervisor, Vcpu, Vm, VmEntry, VmExit,
    VmSettings,
};
use rustix::time::{ClockId, clock_gettime};
use vm_memory::{Bytes, GuestAddress};

const CODE: u64 = 0x1000;
const TABLES: u64 = 0x2000;
const DATA: u64 = 0x8000;
const DEVICE: u64 = 0x20_0000;

/// A vCPU in 64-bit mode that executes `code`, then jumps back to it, over and over. RAM and a device where they are.
struct Machine {
    /// Keeps the chipset.
    _vm: Arc<dyn Vm>,
    vcpu: Box<dyn Vcpu>,
    owed: Option<RequestId>,
}

impl Machine {
    fn new(hypervisor: &dyn Hypervisor, code: &[u8], rbx: u64) -> Machine {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x10_0000)]).expect("a megabyte");
        let back = -(code.len() as i32 + 5);
        let code = [code, &[0xe9], &back.to_le_bytes()].concat();
        memory.write_slice(&code, GuestAddress(CODE)).expect("in RAM");
        let tables = [
            (0, TABLES + 0x1003),
            (0x1000, TABLES + 0x2003),
            (0x2000, 0x83),
            (0x2008, DEVICE | 0x83),
        ];
        for (offset, entry) in tables {
            memory.write_obj(entry, GuestAddress(TABLES + offset)).expect("in RAM");
        }
        let settings = VmSettings {
            vcpus: 1,
            memory,
            hyperv: false,
            model: CpuModel::Host,
        };
        let vm = hypervisor.create_vm(settings).expect("one vCPU");
        let mut vcpu = vm.create_vcpu(0).expect("the first");
        let mut cpu = vcpu.cpu().expect("it has registers");
        for seg in Seg::ALL {
            cpu.segments[seg] = Segment::flat(16, Attributes(0xc093));
        }
        cpu.segments[Seg::Cs] = Segment::flat(8, Attributes(0xa09b));
        cpu.cr0.0 |= Cr0::PE | Cr0::PG | Cr0::NE | Cr0::MP;
        cpu.cr3 = TABLES;
        cpu.cr4 = Cr4(Cr4::PAE | Cr4::OSFXSR);
        cpu.efer = Efer(Efer::LME | Efer::LMA);
        cpu.rip = CODE;
        cpu.gpr.set(gpr::RBX, rbx);
        vcpu.set_cpu(&cpu).expect("a processor");
        Machine {
            _vm: vm,
            vcpu,
            owed: None,
        }
    }

    /// Answers the access that waits, and goes on to the next.
    fn next(&mut self) {
        let entry = self
            .owed
            .map_or(VmEntry::Resume, |id| VmEntry::Answer(Answer { id, value: 1 }));
        match self.vcpu.run(entry) {
            Ok(VmExit::Io(request)) => self.owed = Some(request.id),
            exit => panic!("{exit:?}"),
        }
    }
}

/// CPU time that this thread has used.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// `out 0x80, al` behind `code`.
fn then_port(code: &[u8]) -> Vec<u8> {
    [code, &[0xe6, 0x80]].concat()
}

/// mov ecx, 200; then as often paddq xmm0, [rbx]; pxor xmm1, xmm0; paddd xmm2, xmm1; dec ecx; jnz.
const ROUTINE: [u8; 21] = [
    0xb9, 200, 0, 0, 0, 0x66, 0x0f, 0xd4, 0x03, 0x66, 0x0f, 0xef, 0xc8, 0x66, 0x0f, 0xfe, 0xd1, 0xff, 0xc9, 0x75, 0xf0,
];

fn rescue(c: &mut Criterion) {
    let kvm = match KvmHypervisor::open() {
        Ok(kvm) => kvm,
        Err(error) => return eprintln!("there is nothing to measure: {error}"),
    };
    // lock cmpxchg16b [rbx]; paddq xmm0, [rbx]
    let (integer, vector) = ([0xf0, 0x48, 0x0f, 0xc7, 0x0b], [0x66, 0x0f, 0xd4, 0x03]);
    // mov rax, [rbx]
    let access = [0x48, 0x8b, 0x03];
    let cases: [(&str, &dyn Hypervisor, Vec<u8>, u64); 6] = [
        ("access", &kvm, access.to_vec(), DEVICE),
        ("access of a port", &kvm, then_port(&[]), DATA),
        ("rescue, integer", &kvm, then_port(&integer), DATA),
        ("rescue, vector", &kvm, then_port(&vector), DATA),
        ("routine on KVM", &kvm, then_port(&ROUTINE), DATA),
        (
            "routine on the soft backend",
            &SoftHypervisor,
            then_port(&ROUTINE),
            DATA,
        ),
    ];
    let mut group = c.benchmark_group("rescue");
    for (name, hypervisor, code, rbx) in cases {
        group.bench_function(name, |b| {
            let mut machine = Machine::new(hypervisor, &code, rbx);
            for _ in 0..1000 {
                machine.next();
            }
            b.iter_custom(|accesses| {
                let start = cpu_time();
                for _ in 0..accesses {
                    machine.next();
                }
                cpu_time() - start
            });
        });
    }
}

criterion_group!(benches, rescue);
criterion_main!(benches);

//! A device's register read by a guest, from the instruction to its retirement.
//!
//! Goal: at most 300 ns with a prompt device, interpreted and where the code around the read is translated. The guest executes the
//! same read over and over; one figure is one read with everything that belongs to it: first pass, exit, bus, device, answer,
//! second pass, retirement; translated code is left before it and entered again. Its jump back counts for next to nothing.
//! - `memory`: `mov eax, [rbx]`; `port`: `in eax, dx`. 32-bit code without paging.
//! - `memory, long mode`: the same read through four levels of page tables, as a 64-bit kernel makes it.
//!
//! Time is the thread's CPU time: whatever else the machine does at the moment is not counted.
//!
//! `cargo bench -p reprise-hypervisor --bench device`

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use reprise_devices::{Bus, Device, Response, Space as BusSpace};
use reprise_emulator::cpu::{Attributes, Cr0, Cr4, Efer, Seg, Segment, gpr};
use reprise_hypervisor::{
    Access, Answer, CpuModel, GuestMemory, Hypervisor, IoRequest, SoftHypervisor, Space, Translation, Vcpu, Vm,
    VmEntry, VmExit, VmSettings,
};
use rustix::time::{ClockId, clock_gettime};
use vm_memory::{Bytes, GuestAddress};

const CODE: u64 = 0x1000;
const TABLES: u64 = 0x2000;
const REGISTER: u64 = 0xd000_0004;
const PORT: u64 = 0x600;

/// A device whose register always reads the same.
struct Register;

impl Device for Register {
    fn name(&self) -> &str {
        "register"
    }

    fn read(&self, offset: u64, _: u8) -> Response {
        Response::Done(offset)
    }

    fn write(&self, _: u64, _: u8, _: u64) -> Response {
        Response::Done(0)
    }
}

/// A bus with as many ranges as a small machine has, and the register among them.
fn bus() -> Bus {
    let bus = Bus::new();
    for i in 0..10 {
        let start = if i == 5 { PORT } else { 0x100 * (i + 1) };
        bus.insert(BusSpace::Port, start, 8, Arc::new(Register)).expect("apart");
        bus.insert(BusSpace::Memory, 0xd000_0000 + 0x1000 * i, 0x1000, Arc::new(Register))
            .expect("apart");
    }
    bus
}

/// A machine whose vCPU is about to execute `code`, then jumps back to it, over and over.
struct Machine {
    /// Keeps the chipset.
    _vm: Arc<dyn Vm>,
    vcpu: Box<dyn Vcpu>,
    bus: Bus,
    owed: Option<IoRequest>,
}

impl Machine {
    fn new(hypervisor: &dyn Hypervisor, code: &[u8], long: bool) -> Machine {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x10_0000)]).expect("a megabyte");
        let back = 0u8.wrapping_sub(code.len() as u8 + 2);
        let code = [code, &[0xeb, back]].concat();
        memory.write_slice(&code, GuestAddress(CODE)).expect("in RAM");
        let vm = hypervisor
            .create_vm(VmSettings {
                vcpus: 1,
                memory: memory.clone(),
                hyperv: false,
                model: CpuModel::Host,
            })
            .expect("one vCPU");
        let mut vcpu = vm.create_vcpu(0).expect("the first");
        let mut cpu = vcpu.cpu().expect("software");
        for seg in Seg::ALL {
            cpu.segments[seg] = Segment::flat(16, Attributes(0xc093));
        }
        cpu.segments[Seg::Cs] = Segment::flat(8, Attributes(if long { 0xa09b } else { 0xc09b }));
        cpu.cr0.0 |= Cr0::PE;
        if long {
            // One to one: a page-table page for the code, and one for the register, each under tables of its own.
            let entry = |at: u64, value: u64| memory.write_obj(value | 0x67, GuestAddress(at)).expect("in RAM");
            entry(TABLES, TABLES + 0x1000);
            for (i, linear) in [CODE, REGISTER].into_iter().enumerate() {
                let [directory, table] = [1, 2].map(|n| TABLES + 0x1000 * (2 * i as u64 + n + 1));
                entry(TABLES + 0x1000 + 8 * (linear >> 30), directory);
                entry(directory + 8 * (linear >> 21 & 0x1ff), table);
                entry(table + 8 * (linear >> 12 & 0x1ff), linear & !0xfff);
            }
            cpu.cr3 = TABLES;
            cpu.cr4 = Cr4(Cr4::PAE);
            cpu.efer = Efer(Efer::LME | Efer::LMA);
            cpu.cr0.0 |= Cr0::PG;
        }
        cpu.rip = CODE;
        cpu.gpr.set(gpr::RBX, REGISTER);
        cpu.gpr.set(gpr::RDX, PORT);
        vcpu.set_cpu(&cpu).expect("software");
        Machine {
            _vm: vm,
            vcpu,
            bus: bus(),
            owed: None,
        }
    }

    /// Answers the read that waits, lets it retire, and goes on to the next.
    fn read(&mut self) {
        let entry = match self.owed {
            None => VmEntry::Resume,
            Some(request) => {
                let space = match request.space {
                    Space::Port => BusSpace::Port,
                    Space::Memory => BusSpace::Memory,
                };
                let Response::Done(value) = self.bus.read(space, request.address, request.size) else {
                    unreachable!("the device is prompt");
                };
                VmEntry::Answer(Answer { id: request.id, value })
            }
        };
        match self.vcpu.run(entry) {
            Ok(VmExit::Io(request)) if request.access == Access::Read => self.owed = Some(request),
            exit => panic!("{exit:?}"),
        }
    }
}

/// CPU time that this thread has used.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn read(c: &mut Criterion) {
    let cases: [(&str, &[u8], bool); 3] = [
        ("memory", &[0x8b, 0x03], false),
        ("memory, long mode", &[0x8b, 0x03], true),
        ("port", &[0xed], false),
    ];
    let tiers: [(&str, &dyn Hypervisor); 2] = [
        ("interpreted", &SoftHypervisor.interpreting()),
        ("translated", &SoftHypervisor.translating(Translation::default())),
    ];
    let mut group = c.benchmark_group("device register read");
    for (name, code, long) in cases {
        for (tier, hypervisor) in tiers {
            group.bench_function(format!("{name}, {tier}"), |b| {
                let mut machine = Machine::new(hypervisor, code, long);
                for _ in 0..100 {
                    machine.read();
                }
                b.iter_custom(|reads| {
                    let start = cpu_time();
                    for _ in 0..reads {
                        black_box(&mut machine).read();
                    }
                    cpu_time() - start
                });
            });
        }
    }
}

criterion_group!(benches, read);
criterion_main!(benches);

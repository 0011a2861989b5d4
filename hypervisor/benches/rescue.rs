//! An instruction that KVM cannot emulate, finished in the emulator.
//!
//! Goals: one rescue at most 3 times an ordinary access of a device in memory; a routine of 1000 SSE instructions, run ahead
//! over, at most 1.2 times the soft backend's time for it and one rescue.
//! - `access`: `mov rax, [rbx]` on a device, answered at once; KVM emulates it.
//! - `integer`, `vector` and `AVX`: `lock cmpxchg16b [rbx]`, `paddq xmm0, [rbx]` and `vpaddq ymm0, ymm0, [rbx]` on RAM, each by
//!   itself: a port access in between keeps software from running on, and is taken off.
//! - `routine`: 1000 SSE instructions of a loop, on KVM and on the soft backend, from one port access to the next, which is taken
//!   off on KVM.
//!
//! The machines take turns, so that whatever else the host does hits all of them; figures are medians of the rounds, in CPU time of
//! the thread. Only a KVM in software gives up instructions on RAM; elsewhere these figures say nothing.
//!
//! `cargo bench -p reprise-hypervisor --bench rescue`

use std::sync::Arc;
use std::time::Duration;

use iced_x86::CpuidFeature;
use reprise_emulator::CpuidTable;
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
        if has_avx(&*vcpu) {
            cpu.cr4.0 |= Cr4::OSXSAVE;
            cpu.xcr0 = 7;
        }
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

/// Rounds, and how often each machine goes on in one.
const ROUNDS: usize = 60;
const TURNS: u32 = 200;

fn has_avx(vcpu: &dyn Vcpu) -> bool {
    let state = vcpu.state().expect("it can be saved");
    CpuidTable::new(state.cpuid).announces(CpuidFeature::AVX)
}

/// Nanoseconds from one access to the next.
fn round(machine: &mut Machine) -> f64 {
    let start = cpu_time();
    (0..TURNS).for_each(|_| machine.next());
    (cpu_time() - start).as_nanos() as f64 / f64::from(TURNS)
}

fn median(figures: &mut [f64]) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn main() {
    let kvm = match KvmHypervisor::open() {
        Ok(kvm) => kvm.announcing_instructions(),
        Err(error) => return println!("skipped: {error}"),
    };
    // Run as a test, it shows that it works.
    let rounds = match std::env::args().any(|argument| argument == "--bench") {
        true => ROUNDS,
        false => 1,
    };
    // lock cmpxchg16b [rbx]; paddq xmm0, [rbx]; vpaddq ymm0, ymm0, [rbx]
    let (integer, vector, avx) = (
        [0xf0, 0x48, 0x0f, 0xc7, 0x0b],
        [0x66, 0x0f, 0xd4, 0x03],
        [0xc5, 0xfd, 0xd4, 0x03],
    );
    let mut machines = [
        // mov rax, [rbx]
        Machine::new(&kvm, &[0x48, 0x8b, 0x03], DEVICE),
        Machine::new(&kvm, &then_port(&[]), DATA),
        Machine::new(&kvm, &then_port(&integer), DATA),
        Machine::new(&kvm, &then_port(&vector), DATA),
        Machine::new(&kvm, &then_port(&avx), DATA),
        Machine::new(&kvm, &then_port(&ROUTINE), DATA),
        Machine::new(&SoftHypervisor, &then_port(&ROUTINE), DATA),
    ];
    let mut figures: [Vec<f64>; 7] = Default::default();
    for _ in 0..=rounds {
        for (machine, figures) in machines.iter_mut().zip(&mut figures) {
            figures.push(round(machine));
        }
    }
    // In the first round, they learn.
    let [access, port, integer, vector, avx, routine, soft] = figures.each_mut().map(|own| median(&mut own[1..]));
    let tell = |name: &str, figure: f64| println!("{name:<26}{figure:>9.0} ns");
    let times = |name: &str, figure: f64, goal: f64| println!("{name:<26}{figure:>9.2} times (at most {goal})");
    tell("access", access);
    for (name, own) in [("integer", integer), ("vector", vector), ("AVX", avx)] {
        tell(&format!("rescue, {name}"), own - port);
        times("  against an access", (own - port) / access, 3.0);
    }
    tell("routine on the soft backend", soft);
    tell("routine on KVM", routine - port);
    times(
        "  against soft and a rescue",
        (routine - port) / (soft + vector - port),
        1.2,
    );
}

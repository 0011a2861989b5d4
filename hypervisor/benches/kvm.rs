//! A device's register read by a guest on KVM, answered at once: this crate's vCPU beside a bare loop around `kvm-ioctls`.
//!
//! Goal: at most 5 % more. The guest executes `mov eax, [rbx]` and jumps back, in 32-bit code without paging; one figure is from
//! one read to the next. Both machines have the same memory and interrupt controllers in the kernel. They take turns, so that
//! whatever else the host does hits both; the figure is the median of the rounds, in CPU time of the thread.
//!
//! `cargo bench -p reprise-hypervisor --bench kvm`

use std::sync::Arc;
use std::time::Duration;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use reprise_emulator::cpu::{Attributes, Cr0, Seg, Segment, gpr};
use reprise_hypervisor::{
    Answer, CpuModel, GuestMemory, Hypervisor, KvmHypervisor, RequestId, Vcpu, Vm, VmEntry, VmExit, VmSettings,
};
use rustix::time::{ClockId, clock_gettime};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

const CODE: u64 = 0x1000;
const RAM: usize = 0x10_0000;
const REGISTER: u64 = 0xd000_0004;
/// `mov eax, [rbx]`, and back.
const READ_FOR_EVER: [u8; 4] = [0x8b, 0x03, 0xeb, 0xfc];

const ROUNDS: usize = 41;
const READS: u32 = 4000;

fn memory() -> GuestMemory {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), RAM)]).expect("a megabyte");
    memory.write_slice(&READ_FOR_EVER, GuestAddress(CODE)).expect("in RAM");
    memory
}

/// This crate's vCPU.
struct Ours {
    /// Keeps the machine.
    _vm: Arc<dyn Vm>,
    vcpu: Box<dyn Vcpu>,
    owed: RequestId,
}

impl Ours {
    fn new(kvm: &KvmHypervisor) -> Self {
        let settings = VmSettings {
            vcpus: 1,
            memory: memory(),
            hyperv: false,
            model: CpuModel::Host,
        };
        let vm = kvm.create_vm(settings).expect("a machine");
        let mut vcpu = vm.create_vcpu(0).expect("the first");
        let mut cpu = vcpu.cpu().expect("a new vCPU");
        for seg in Seg::ALL {
            cpu.segments[seg] = Segment::flat(16, Attributes(0xc093));
        }
        cpu.segments[Seg::Cs] = Segment::flat(8, Attributes(0xc09b));
        cpu.cr0.0 |= Cr0::PE;
        cpu.rip = CODE;
        cpu.gpr.set(gpr::RBX, REGISTER);
        vcpu.set_cpu(&cpu).expect("a state that there is");
        let VmExit::Io(read) = vcpu.run(VmEntry::Resume).expect("it runs") else {
            panic!("no device is read");
        };
        Self {
            _vm: vm,
            vcpu,
            owed: read.id,
        }
    }

    fn read(&mut self, value: u64) {
        let answer = Answer { id: self.owed, value };
        match self.vcpu.run(VmEntry::Answer(answer)) {
            Ok(VmExit::Io(request)) if request.address == REGISTER => self.owed = request.id,
            exit => panic!("{exit:?}"),
        }
    }
}

/// The same without this crate.
struct Bare {
    vcpu: VcpuFd,
    _vm: VmFd,
    _memory: GuestMemory,
}

impl Bare {
    fn new(kvm: &Kvm) -> Self {
        let memory = memory();
        let vm = kvm.create_vm().expect("a machine");
        vm.set_identity_map_address(0xfffb_c000).expect("no RAM there");
        vm.set_tss_address(0xfffb_d000).expect("no RAM there");
        vm.create_irq_chip().expect("interrupt controllers");
        let host = memory.get_host_address(GuestAddress(0)).expect("RAM");
        let region = kvm_userspace_memory_region {
            memory_size: RAM as u64,
            userspace_addr: host as u64,
            ..kvm_userspace_memory_region::default()
        };
        #[expect(unsafe_code, reason = "KVM is given memory, which it needs")]
        // SAFETY: the memory is mapped as long as the machine is there, and is the guest's.
        unsafe { vm.set_user_memory_region(region) }.expect("a memory slot");
        let vcpu = vm.create_vcpu(0).expect("the first");
        vcpu.set_cpuid2(&kvm.get_supported_cpuid(256).expect("a table"))
            .expect("CPUID");
        let mut system = vcpu.get_sregs().expect("registers");
        for segment in [
            &mut system.cs,
            &mut system.ds,
            &mut system.es,
            &mut system.fs,
            &mut system.gs,
            &mut system.ss,
        ] {
            (segment.base, segment.limit, segment.g, segment.db) = (0, u32::MAX, 1, 1);
            (segment.selector, segment.type_, segment.s, segment.present) = (16, 3, 1, 1);
        }
        (system.cs.selector, system.cs.type_) = (8, 11);
        system.cr0 |= 1;
        vcpu.set_sregs(&system).expect("flat segments");
        let mut registers = vcpu.get_regs().expect("registers");
        (registers.rip, registers.rbx, registers.rflags) = (CODE, REGISTER, 2);
        vcpu.set_regs(&registers).expect("registers");
        Self {
            vcpu,
            _vm: vm,
            _memory: memory,
        }
    }

    fn read(&mut self, value: u64) {
        match self.vcpu.run() {
            Ok(VcpuExit::MmioRead(REGISTER, data)) => data.copy_from_slice(&value.to_le_bytes()[..4]),
            exit => panic!("{exit:?}"),
        }
    }
}

/// CPU time that this thread has used.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Nanoseconds of one read.
fn round(mut read: impl FnMut(u64)) -> f64 {
    let start = cpu_time();
    (0..READS).for_each(|value| read(value.into()));
    (cpu_time() - start).as_nanos() as f64 / f64::from(READS)
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn main() {
    let (kvm, bare) = match (KvmHypervisor::open(), Kvm::new()) {
        (Ok(kvm), Ok(bare)) => (kvm, bare),
        (Err(error), _) => return println!("skipped: {error}"),
        (_, Err(error)) => return println!("skipped: {error}"),
    };
    // Run as a test, it shows that it works.
    let rounds = if std::env::args().any(|argument| argument == "--bench") {
        ROUNDS
    } else {
        1
    };
    let (mut ours, mut bare) = (Ours::new(&kvm), Bare::new(&bare));
    let (mut our_figures, mut bare_figures) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        our_figures.push(round(|value| ours.read(value)));
        bare_figures.push(round(|value| bare.read(value)));
    }
    let (ours, bare) = (median(our_figures), median(bare_figures));
    println!("register read on KVM: {ours:.0} ns");
    println!("bare kvm-ioctls loop: {bare:.0} ns");
    println!("difference:           {:+.1} %", (ours / bare - 1.0) * 100.0);
}

//! Small guests on whole machines of either backend.

use std::sync::Arc;

use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;
use reprise_emulator::Cpu;
use reprise_emulator::cpu::segment::Attributes;
use reprise_emulator::cpu::{Activity, Cr0, Cr4, Efer, Seg, Segment, gpr};
use reprise_hypervisor::{
    Access, Answer, CpuModel, GuestMemory, Hypervisor, IoRequest, RequestId, Space, Vcpu, Vm, VmEntry, VmExit,
    VmSettings,
};
use vm_memory::{Bytes, GuestAddress};

pub use crate::backends::{kvm, on_each};

/// Where guest code begins.
pub const CODE: u64 = 0x1000;
/// Where a second piece of it goes.
pub const HANDLER: u64 = 0x2000;
/// Where the stack begins.
pub const STACK: u64 = 0x8000;
/// The guest's memory ends here; devices are beyond.
pub const RAM_END: u64 = 0x10_0000;
/// A device in memory: the first gigabyte of linear addresses leads to the same physical ones.
pub const DEVICE: u64 = 0x3000_0000;

const GDT: u64 = 0x900;
const PAGE_TABLES: u64 = 0x10000;

/// The mode that a guest begins in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Real mode.
    Real,
    /// Flat 32-bit protected mode without paging.
    Flat,
    /// 64-bit mode, the first gigabyte mapped to itself.
    Long,
}

pub struct World {
    pub memory: GuestMemory,
    pub vm: Arc<dyn Vm>,
}

impl World {
    pub fn new(hypervisor: &dyn Hypervisor, vcpus: u32) -> Self {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), RAM_END as usize)]).unwrap();
        Self::with(hypervisor, vcpus, memory)
    }

    /// One with this memory.
    pub fn with(hypervisor: &dyn Hypervisor, vcpus: u32, memory: GuestMemory) -> Self {
        let settings = VmSettings {
            vcpus,
            memory: memory.clone(),
            hyperv: false,
            model: CpuModel::Host,
        };
        let vm = hypervisor.create_vm(settings).unwrap();
        Self { memory, vm }
    }

    /// Assembles code for `bits` at `address`.
    pub fn code(&self, bits: u32, address: u64, write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) {
        let mut assembler = CodeAssembler::new(bits).unwrap();
        write(&mut assembler).unwrap();
        let bytes = assembler.assemble(address).unwrap();
        self.memory.write_slice(&bytes, GuestAddress(address)).unwrap();
        self.vm.memory_written(address, bytes.len() as u64);
    }

    /// vCPU `index`, at [`CODE`].
    pub fn vcpu(&self, index: u32, start: Start) -> Box<dyn Vcpu> {
        let mut vcpu = self.vm.create_vcpu(index).unwrap();
        let cpu = self.cpu(start);
        vcpu.set_cpu(&cpu).unwrap();
        vcpu
    }

    /// A processor at [`CODE`], with its tables in memory.
    pub fn cpu(&self, start: Start) -> Cpu {
        let mut cpu = Cpu::reset();
        cpu.segments[Seg::Cs] = Segment::real_mode(0);
        cpu.segments[Seg::Cs].attributes = Attributes(0x9b);
        cpu.rip = CODE;
        cpu.gpr.set(gpr::RSP, STACK);
        cpu.activity = Activity::Running;
        if start == Start::Real {
            cpu.refresh();
            return cpu;
        }
        let descriptors: [u64; 4] = [0, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x00af_9b00_0000_ffff];
        for (descriptor, address) in descriptors.into_iter().zip((GDT..).step_by(8)) {
            self.memory.write_obj(descriptor, GuestAddress(address)).unwrap();
        }
        cpu.cr0.0 |= Cr0::PE | Cr0::NE;
        cpu.gdtr.base = GDT;
        cpu.gdtr.limit = 31;
        cpu.idtr.base = 0;
        cpu.idtr.limit = 0x7ff;
        for seg in Seg::ALL {
            cpu.segments[seg] = Segment::flat(16, Attributes(0xc093));
        }
        cpu.segments[Seg::Cs] = Segment::flat(8, Attributes(0xc09b));
        if start == Start::Long {
            // One page map, one pointer table, one directory of 2 MiB pages.
            let (pointers, directory) = (PAGE_TABLES + 0x1000, PAGE_TABLES + 0x2000);
            self.memory.write_obj(pointers | 3, GuestAddress(PAGE_TABLES)).unwrap();
            self.memory.write_obj(directory | 3, GuestAddress(pointers)).unwrap();
            for i in 0..512 {
                let entry: u64 = i << 21 | 0x83;
                self.memory.write_obj(entry, GuestAddress(directory + 8 * i)).unwrap();
            }
            cpu.cr3 = PAGE_TABLES;
            cpu.cr4.0 |= Cr4::PAE;
            cpu.cr0.0 |= Cr0::PG;
            cpu.efer.0 |= Efer::LME | Efer::LMA;
            cpu.segments[Seg::Cs] = Segment::flat(24, Attributes(0xa09b));
        }
        cpu.refresh();
        cpu
    }

    /// Makes real-mode `vector` lead to `handler`.
    pub fn real_vector(&self, vector: u8, handler: u64) {
        let place = GuestAddress(u64::from(vector) * 4);
        self.memory.write_obj(handler as u32, place).unwrap();
    }

    /// Makes 32-bit `vector` lead to `handler`: an interrupt gate.
    pub fn gate(&self, vector: u8, handler: u64) {
        let gate = handler & 0xffff | 8 << 16 | 0x8e00 << 32 | (handler >> 16) << 48;
        let place = GuestAddress(u64::from(vector) * 8);
        self.memory.write_obj(gate, place).unwrap();
    }

    pub fn read<T: vm_memory::ByteValued>(&self, address: u64) -> T {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }
}

/// The answer to the request of this id.
pub fn answer(id: RequestId, value: u64) -> VmEntry {
    VmEntry::Answer(Answer { id, value })
}

/// An exit that is a device access.
pub fn io(exit: VmExit) -> IoRequest {
    match exit {
        VmExit::Io(request) => request,
        other => panic!("{other:?} is no device access"),
    }
}

/// What an access is, but for its name.
pub fn what(request: &IoRequest) -> (Space, u64, u8, Access) {
    (request.space, request.address, request.size, request.access)
}

pub fn counter(vcpu: &dyn Vcpu, name: &str) -> u64 {
    let counters = vcpu.counters();
    let found = counters.into_iter().find(|(own, _)| *own == name);
    found.expect("the counter is there").1
}

//! A small machine for tests: guest code is assembled into its memory, and a vCPU is put to its start.

use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;
use reprise_emulator::cpu::segment::Attributes;
use reprise_emulator::cpu::{Activity, Cr0, Seg, Segment, gpr};
use vm_memory::{Bytes, GuestAddress};

use super::vm::SoftVm;
use crate::{CpuModel, GuestMemory, Vcpu, Vm, VmSettings};

/// Where [`World::real`] and [`World::flat`] begin.
pub(super) const CODE: u64 = 0x1000;
/// The interrupt descriptor table of [`World::flat`].
pub(super) const IDT: u64 = 0;
const STACK: u64 = 0x8000;
const GDT: u64 = 0x900;

/// A machine and its memory.
pub(super) struct World {
    pub(super) memory: GuestMemory,
    pub(super) vm: SoftVm,
}

impl World {
    /// One with a megabyte of memory.
    pub(super) fn new(vcpus: u32) -> Self {
        Self::with(
            vcpus,
            GuestMemory::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap(),
        )
    }

    /// One with this memory.
    pub(super) fn with(vcpus: u32, memory: GuestMemory) -> Self {
        Self::build(vcpus, memory, false)
    }

    /// One with a megabyte of memory and Hyper-V's interface.
    pub(super) fn hyperv(vcpus: u32) -> Self {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
        Self::build(vcpus, memory, true)
    }

    fn build(vcpus: u32, memory: GuestMemory, hyperv: bool) -> Self {
        let vm = SoftVm::new(VmSettings {
            vcpus,
            memory: memory.clone(),
            hyperv,
            model: CpuModel::Host,
        })
        .unwrap();
        Self { memory, vm }
    }

    /// Assembles code for `bits` at `address`.
    pub(super) fn code(
        &self,
        bits: u32,
        address: u64,
        write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) {
        let mut assembler = CodeAssembler::new(bits).unwrap();
        write(&mut assembler).unwrap();
        let bytes = assembler.assemble(address).unwrap();
        self.memory.write_slice(&bytes, GuestAddress(address)).unwrap();
    }

    /// Makes real-mode `vector` lead to `handler`.
    pub(super) fn real_vector(&self, vector: u8, handler: u64) {
        self.memory
            .write_obj(handler as u32, GuestAddress(u64::from(vector) * 4))
            .unwrap();
    }

    /// Makes 32-bit `vector` of the interrupt descriptor table at `idt` lead to `handler`: an interrupt gate.
    pub(super) fn gate(&self, idt: u64, vector: u8, handler: u64) {
        let gate = handler & 0xffff | 8 << 16 | 0x8e00 << 32 | (handler >> 16) << 48;
        self.memory
            .write_obj(gate, GuestAddress(idt + u64::from(vector) * 8))
            .unwrap();
    }

    /// vCPU `index` in real mode at [`CODE`].
    pub(super) fn real(&self, index: u32) -> Box<dyn Vcpu> {
        let mut vcpu = self.vm.create_vcpu(index).unwrap();
        let mut cpu = vcpu.cpu().unwrap();
        cpu.segments[Seg::Cs].selector = 0;
        cpu.segments[Seg::Cs].base = 0;
        cpu.rip = CODE;
        cpu.gpr.set(gpr::RSP, STACK);
        cpu.activity = Activity::Running;
        vcpu.set_cpu(&cpu).unwrap();
        vcpu
    }

    /// vCPU `index` in flat 32-bit protected mode at [`CODE`], the interrupt descriptor table at [`IDT`].
    pub(super) fn flat(&self, index: u32) -> Box<dyn Vcpu> {
        let descriptors = [0u64, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
        for (descriptor, address) in descriptors.into_iter().zip((GDT..).step_by(8)) {
            self.memory.write_obj(descriptor, GuestAddress(address)).unwrap();
        }
        let mut vcpu = self.real(index);
        let mut cpu = vcpu.cpu().unwrap();
        cpu.cr0.0 |= Cr0::PE;
        cpu.gdtr.base = GDT;
        cpu.gdtr.limit = 23;
        cpu.idtr.base = IDT;
        cpu.idtr.limit = 0x7ff;
        for seg in Seg::ALL {
            cpu.segments[seg] = Segment::flat(16, Attributes(0xc093));
        }
        cpu.segments[Seg::Cs] = Segment::flat(8, Attributes(0xc09b));
        vcpu.set_cpu(&cpu).unwrap();
        vcpu
    }
}

//! An instruction that KVM could not emulate: what is known of it.

use std::fmt;

use iced_x86::{Decoder, DecoderOptions, Instruction};
use kvm_bindings::kvm_sync_regs;
use kvm_ioctls::VcpuFd;
use reprise_emulator::cpu::{Cr0, Efer, Mode, flags};

use super::sys;

use crate::Space;

/// An instruction that KVM could not emulate. The vCPU stands at its start: nothing of it has been done but the reads in
/// [`obtained`](Self::obtained).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmulationFailure {
    /// The instruction's offset in CS.
    pub rip: u64,
    /// The bytes that KVM fetched from there on: up to 15, more than the instruction or, at the end of a page, less;
    /// none if KVM does not tell.
    pub bytes: Vec<u8>,
    /// The mode of the processor.
    pub mode: Mode,
    /// 16, 32 or 64: how the bytes are to be decoded.
    pub bits: u32,
    /// What devices have answered to this instruction already, in order.
    pub obtained: Vec<Obtained>,
}

/// A read that a device has answered for an instruction that has not ended yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Obtained {
    /// The address space.
    pub space: Space,
    /// The first byte.
    pub address: u64,
    /// The width in bytes: 1, 2, 4 or 8.
    pub size: u8,
    /// The answer.
    pub value: u64,
}

impl EmulationFailure {
    /// What KVM_RUN has just come out with, if it is that. Registers must have been asked for in the run structure
    /// ([`Rescuer::new`](super::rescue::Rescuer::new) does). [`obtained`](Self::obtained) is empty.
    pub fn of(vcpu: &mut VcpuFd) -> Option<Self> {
        let (bytes, length) = sys::emulation_failure(vcpu.get_kvm_run())?;
        Some(Self::at(&vcpu.sync_regs(), &bytes[..length], Vec::new()))
    }

    /// Of the instruction that a processor with these registers stands at.
    pub(super) fn at(came: &kvm_sync_regs, bytes: &[u8], obtained: Vec<Obtained>) -> Self {
        let (mode, bits) = mode(came);
        Self {
            rip: came.regs.rip,
            bytes: bytes.to_vec(),
            mode,
            bits,
            obtained,
        }
    }

    /// The instruction, if the bytes tell it.
    pub fn instruction(&self) -> Option<Instruction> {
        let instruction = Decoder::new(self.bits, &self.bytes, DecoderOptions::AMD).decode();
        (!instruction.is_invalid()).then_some(instruction)
    }
}

impl Obtained {
    /// The read of memory that KVM_RUN has just come out for, and that has been answered in the run structure since.
    pub(super) fn of(vcpu: &mut VcpuFd) -> Option<Self> {
        let (address, size, value) = sys::memory_read(vcpu.get_kvm_run())?;
        let space = Space::Memory;
        Some(Self {
            space,
            address,
            size,
            value,
        })
    }
}

/// The mode of a processor, and how instructions are decoded there.
pub(super) fn mode(came: &kvm_sync_regs) -> (Mode, u32) {
    let (system, cs) = (&came.sregs, &came.sregs.cs);
    let long = system.efer & Efer::LMA != 0;
    let mode = match (system.cr0 & Cr0::PE != 0, came.regs.rflags & flags::VM != 0) {
        (false, _) => Mode::Real,
        (_, true) => Mode::Virtual8086,
        _ if long && cs.l != 0 => Mode::Long,
        _ if long => Mode::Compatibility,
        _ => Mode::Protected,
    };
    let bits = match mode {
        Mode::Long => 64,
        _ if cs.db != 0 => 32,
        _ => 16,
    };
    (mode, bits)
}

impl fmt::Display for EmulationFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rip, bytes, mode, .. } = self;
        write!(f, "RIP {rip:#x}, {mode:?} mode, bytes {bytes:02x?}")?;
        if let Some(instruction) = self.instruction() {
            write!(f, ", {:?}", instruction.code())?;
        }
        Ok(())
    }
}

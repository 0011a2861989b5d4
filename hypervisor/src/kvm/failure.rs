//! An instruction that KVM could not emulate: what is known of it.

use std::fmt;

use iced_x86::{Decoder, DecoderOptions};
use reprise_emulator::cpu::Mode;

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

impl fmt::Display for EmulationFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            rip, bytes, mode, bits, ..
        } = self;
        write!(f, "RIP {rip:#x}, {mode:?} mode, bytes {bytes:02x?}")?;
        let instruction = Decoder::new(*bits, bytes, DecoderOptions::AMD).decode();
        if !instruction.is_invalid() {
            write!(f, ", {:?}", instruction.code())?;
        }
        Ok(())
    }
}

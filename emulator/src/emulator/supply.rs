//! Instruction bytes that come with an exit: hardware and hypervisors supply what they have fetched already.
//!
//! They seed the record of the instruction under RIP, so that every pass sees them and not what memory holds meanwhile.
//! They are believed only if they explain the exit: processors are known to supply zeros instead (AMD erratum 1096: a
//! data page that SMAP protects), and a hypervisor may lag behind a guest that writes its own code.

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, InstructionInfoFactory, OpAccess};

use super::Emulator;
use crate::cpu::Cr4;
use crate::request::Space;

/// Why the hypervisor came out with these bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// It could not execute the instruction.
    Emulation,
    /// An access to a port.
    Port {
        /// Its width: 1, 2 or 4 bytes.
        size: u8,
        /// Whether it writes.
        write: bool,
    },
    /// An access to memory.
    Memory {
        /// Whether it writes.
        write: bool,
    },
}

/// Supplied bytes that are not used; the instruction is fetched through the page tables instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SupplyError {
    /// An instruction is in flight, or an event is to be delivered first.
    #[error("the CPU is not at the start of an instruction")]
    Busy,
    /// Not 1 to 15 bytes, or none that make an instruction.
    #[error("{length} bytes are no whole instruction")]
    Incomplete {
        /// How many there are.
        length: usize,
    },
    /// Zeros in place of bytes that the processor could not fetch (AMD erratum 1096).
    #[error("all bytes are zero while SMAP is on")]
    Erratum1096,
    /// No instruction makes so many accesses.
    #[error("more answers were supplied than an instruction asks for")]
    TooMany,
    /// The bytes do not explain the exit.
    #[error("the instruction does not make the access that caused the exit")]
    Mismatch,
}

impl Emulator {
    /// Has the instruction under RIP begin with `bytes`, if they explain the exit that `cause` tells of.
    ///
    /// # Errors
    /// [`SupplyError`]; nothing has changed then.
    pub fn supply(&mut self, bytes: &[u8], cause: Cause) -> Result<(), SupplyError> {
        if self.cpu.event.is_some() || self.careful.has_begun() {
            return Err(SupplyError::Busy);
        }
        let length = bytes.len();
        if !(1..=15).contains(&length) {
            return Err(SupplyError::Incomplete { length });
        }
        if self.cpu.cr4.any(Cr4::SMAP) && bytes.iter().all(|byte| *byte == 0) {
            return Err(SupplyError::Erratum1096);
        }
        let instruction = Decoder::new(self.cpu.view.code.bits(), bytes, DecoderOptions::AMD).decode();
        // What is invalid may be cut off, or #UD: then it is the page tables that tell.
        if instruction.is_invalid() {
            return Err(SupplyError::Incomplete { length });
        }
        if !explains(&instruction, cause) {
            return Err(SupplyError::Mismatch);
        }
        let Ok(linear) = self.cpu.linear_code(self.cpu.rip) else {
            return Err(SupplyError::Mismatch);
        };
        self.kept = None;
        // Nothing is recorded yet, so there is room.
        self.careful.seed(linear, &bytes[..instruction.len()]);
        Ok(())
    }
}

impl Emulator {
    /// Gives an answer that was obtained for the instruction under RIP before it came here: a hypervisor had begun to
    /// emulate it, and asked the device. When the instruction asks the same (space, address and size), this is recorded
    /// as the answer and the device is not asked again. Forgotten when the instruction ends.
    ///
    /// # Errors
    /// [`SupplyError::Busy`] while an instruction is in flight that waits for something else; [`SupplyError::TooMany`].
    pub fn supply_answer(&mut self, space: Space, address: u64, size: u8, value: u64) -> Result<(), SupplyError> {
        if self.cpu.event.is_some() || self.careful.waiting_for().is_some() {
            return Err(SupplyError::Busy);
        }
        if self.careful.obtain(space, address, size, value) {
            Ok(())
        } else {
            Err(SupplyError::TooMany)
        }
    }
}

/// Whether `instruction` makes the access that caused the exit.
fn explains(instruction: &Instruction, cause: Cause) -> bool {
    match cause {
        Cause::Emulation => true,
        Cause::Port { size, write } => port_access(instruction.code()) == Some((size, write)),
        Cause::Memory { write } => {
            let mut factory = InstructionInfoFactory::new();
            let memory = factory.info(instruction).used_memory();
            memory.iter().any(|used| match used.access() {
                OpAccess::Read | OpAccess::CondRead => !write,
                OpAccess::Write | OpAccess::CondWrite => write,
                OpAccess::ReadWrite | OpAccess::ReadCondWrite => true,
                OpAccess::None | OpAccess::NoMemAccess => false,
            })
        }
    }
}

/// Width and direction of the port access that an instruction makes.
fn port_access(code: Code) -> Option<(u8, bool)> {
    Some(match code {
        Code::In_AL_imm8 | Code::In_AL_DX | Code::Insb_m8_DX => (1, false),
        Code::In_AX_imm8 | Code::In_AX_DX | Code::Insw_m16_DX => (2, false),
        Code::In_EAX_imm8 | Code::In_EAX_DX | Code::Insd_m32_DX => (4, false),
        Code::Out_imm8_AL | Code::Out_DX_AL | Code::Outsb_DX_m8 => (1, true),
        Code::Out_imm8_AX | Code::Out_DX_AX | Code::Outsw_DX_m16 => (2, true),
        Code::Out_imm8_EAX | Code::Out_DX_EAX | Code::Outsd_DX_m32 => (4, true),
        _ => return None,
    })
}

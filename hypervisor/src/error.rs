//! What can go wrong on the host's side of a virtual machine. A guest's own faults are never errors.

use crate::RequestId;

/// A virtual machine could not be made or changed.
#[derive(Debug, thiserror::Error)]
pub enum HypervisorError {
    /// More vCPUs than the backend has.
    #[error("{wanted} vCPUs asked for; this backend has 1 to {max}")]
    VcpuCount {
        /// How many were asked for.
        wanted: u32,
        /// How many there can be.
        max: u32,
    },
    /// No vCPU of this index, or it was made before.
    #[error("vCPU {index} does not exist or was already created")]
    VcpuIndex {
        /// The index asked for.
        index: u32,
    },
    /// Guest memory that the CPU cannot execute from.
    #[error("guest memory cannot be used")]
    Memory {
        /// What is wrong with it.
        source: reprise_emulator::RamError,
    },
    /// The host has no thread for the machine's timers.
    #[error("the host refused a thread for the timers")]
    Thread {
        /// What the host said.
        source: std::io::Error,
    },
    /// No such interrupt line.
    #[error("no interrupt line {gsi}; there are 0 to {max}")]
    Gsi {
        /// The line asked for.
        gsi: u32,
        /// The last line there is.
        max: u32,
    },
}

/// A vCPU cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// [`crate::VmEntry::Resume`] while a device access waits for its answer.
    #[error("vCPU was resumed while request {waiting:?} waits for its answer")]
    AnswerOwed {
        /// The request that waits.
        waiting: RequestId,
    },
    /// The emulator failed.
    #[error("the CPU in software failed at RIP {rip:#x}")]
    Emulator {
        /// The address of the instruction.
        rip: u64,
        /// What failed.
        source: reprise_emulator::Error,
    },
}

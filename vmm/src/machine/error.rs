//! Why a machine cannot be built, held, saved or restored.

use std::io;

use reprise_hypervisor::{HypervisorError, VcpuError};

use super::{BoardError, BoardStateError, MemoryError};
use crate::acpi::AcpiError;
use crate::boot::BootError;
use crate::console::ConsoleError;
use crate::snapshot::SnapshotError;

/// A machine cannot be built or paused.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// Nobody sees what the guest executes.
    #[error("a guest on KVM cannot be profiled; expected --hypervisor soft")]
    Profile,
    /// There is nothing to boot.
    #[error("`payload.kernel` is missing; expected the path of a vmlinux, bzImage, vmlinuz or Multiboot kernel")]
    NoKernel,
    /// Memory cannot be had.
    #[error("the machine cannot be given its memory")]
    Memory {
        /// Why.
        #[from]
        source: MemoryError,
    },
    /// The serial port's console cannot be opened.
    #[error("the serial port cannot be connected")]
    Console {
        /// Why.
        source: ConsoleError,
    },
    /// The virtio console's cannot.
    #[error("the virtio console cannot be connected")]
    VirtioConsole {
        /// Why.
        source: ConsoleError,
    },
    /// The kernel cannot be loaded.
    #[error("the machine cannot boot its payload")]
    Boot {
        /// Why.
        #[from]
        source: BootError,
    },
    /// The tables cannot be made.
    #[error("the ACPI tables cannot be written")]
    Acpi {
        /// Why.
        #[from]
        source: AcpiError,
    },
    /// The hypervisor refuses.
    #[error("the hypervisor cannot make the machine")]
    Hypervisor {
        /// Why.
        #[from]
        source: HypervisorError,
    },
    /// The devices cannot be wired.
    #[error("the devices cannot be wired")]
    Board {
        /// Why.
        #[from]
        source: BoardError,
    },
    /// A vCPU refuses its first state.
    #[error("vCPU {vcpu} cannot be given its first state")]
    FirstState {
        /// Which.
        vcpu: u32,
        /// Why.
        source: VcpuError,
    },
    /// What was saved is not whole, or not to be had.
    #[error(transparent)]
    Snapshot {
        /// Why.
        #[from]
        source: SnapshotError,
    },
    /// The memory is not what the configuration says.
    #[error("the snapshot has {found} bytes of memory; expected {expected}, as in its configuration")]
    MemorySize {
        /// What there is, in bytes.
        found: u64,
        /// What is expected, in bytes.
        expected: u64,
    },
    /// Another number of vCPUs was saved.
    #[error("the snapshot has the states of {saved} vCPUs; expected {own}, as in its configuration")]
    VcpuStates {
        /// How many were saved.
        saved: usize,
        /// How many there are.
        own: usize,
    },
    /// The devices cannot go on from what was saved.
    #[error("the devices cannot be restored")]
    Devices {
        /// Why.
        #[from]
        source: BoardStateError,
    },
    /// A vCPU is not there to tell its state.
    #[error("vCPU {vcpu} does not tell its state: it has ended, or the machine is not paused")]
    Mute {
        /// Which.
        vcpu: usize,
    },
    /// A vCPU's state cannot be told.
    #[error("the state of vCPU {vcpu} cannot be read")]
    State {
        /// Which.
        vcpu: u32,
        /// Why.
        source: VcpuError,
    },
    /// The host has no thread to give.
    #[error("the thread of vCPU {vcpu} cannot be started")]
    Thread {
        /// Of which vCPU.
        vcpu: u32,
        /// What the system says.
        source: io::Error,
    },
    /// A vCPU goes on although it was kicked.
    #[error("vCPU {vcpu} did not stop within {} seconds", super::PATIENCE.as_secs())]
    Unstoppable {
        /// Which.
        vcpu: usize,
    },
}

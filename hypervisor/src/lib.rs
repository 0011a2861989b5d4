//! Virtual machines and virtual CPUs, driven with owned values.
#![deny(unsafe_code)]

pub mod error;
pub mod exit;
pub mod soft;
pub mod vcpu;
pub mod vm;

pub use error::{HypervisorError, VcpuError};
pub use exit::{Access, Answer, IoRequest, RequestId, Space, VmEntry, VmExit};
pub use soft::SoftHypervisor;
pub use vcpu::{Kick, Vcpu};
pub use vm::{Hypervisor, HypervisorKind, InterruptLine, Vm, VmSettings};

/// Guest-physical memory, shared by the vCPUs and the devices.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;

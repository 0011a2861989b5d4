//! Virtual machines and virtual CPUs, driven with owned values.
//!
//! A [`Hypervisor`] makes a [`Vm`] with its interrupt controllers and timers; the [`Vm`] makes each [`Vcpu`] once. A thread
//! then owns the vCPU and runs it: the answer to the last exit is the argument of the next
//! [`run`](Vcpu::run). No device is ever called from inside, so a device may take its time to answer, and the thread may do
//! something else meanwhile: the vCPU waits between two calls, not in one.
//!
//! [`SoftHypervisor`] needs nothing from the host: its CPU is software. A guest that reads one port and writes what it read
//! to another:
//!
//! ```
//! use reprise_hypervisor::{
//!     Access, Answer, CpuModel, GuestMemory, Hypervisor, SoftHypervisor, VmEntry, VmExit, VmSettings,
//! };
//! use vm_memory::{Bytes, GuestAddress};
//!
//! let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x10000)])?;
//! //                    in al, 0x60  out 0x80, al
//! memory.write_slice(&[0xe4, 0x60, 0xe6, 0x80], GuestAddress(0x1000))?;
//! let vm = SoftHypervisor.create_vm(VmSettings { vcpus: 1, memory, hyperv: false, model: CpuModel::Host })?;
//! let mut vcpu = vm.create_vcpu(0)?;
//!
//! let mut cpu = vcpu.cpu()?;
//! cpu.segments[reprise_emulator::cpu::Seg::Cs].base = 0;
//! cpu.rip = 0x1000;
//! vcpu.set_cpu(&cpu)?;
//!
//! let VmExit::Io(read) = vcpu.run(VmEntry::Resume)? else { panic!() };
//! assert_eq!((read.address, read.access), (0x60, Access::Read));
//! let VmExit::Io(write) = vcpu.run(VmEntry::Answer(Answer { id: read.id, value: 7 }))? else { panic!() };
//! assert_eq!((write.address, write.access), (0x80, Access::Write(7)));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Map
//! - [`vm`], [`vcpu`]: what a backend is; [`exit`]: what crosses the boundary; [`signals`]: interrupts and doorbells as events;
//!   [`error`]: what can go wrong; [`model`]: which processor a guest sees.
//! - [`state`]: what a snapshot holds of a machine and its vCPUs.
//! - [`profile`]: looking at what a guest executes; [`reclaim`]: memory that goes back to the host.
//! - [`soft`]: the backend whose CPU is software; [`kvm`]: that which runs on the host's KVM; [`auto`]: which of them.
#![deny(unsafe_code)]

pub mod auto;
mod cpu_model;
pub mod error;
pub mod exit;
pub mod kvm;
pub mod model;
pub mod profile;
pub mod reclaim;
pub mod signals;
pub mod soft;
pub mod state;
#[cfg(test)]
mod testing;
mod tsc;
pub mod vcpu;
pub mod vm;

pub use error::{HypervisorError, StateError, VcpuError};
pub use exit::{Access, Answer, IoRequest, RequestId, Space, VmEntry, VmExit};
pub use kvm::KvmHypervisor;
pub use model::CpuModel;
pub use reclaim::Reclaim;
pub use reprise_emulator::translate::{Stress, Translation};
pub use signals::{Doorbell, DoorbellAddress, Message, MessageEvent};
pub use soft::{PacedSoft, SoftHypervisor, TieredSoft};
pub use state::{VcpuState, VmState};
pub use vcpu::{Kick, Vcpu};
pub use vm::{Hypervisor, HypervisorKind, InterruptLine, Vm, VmSettings};

/// Guest-physical memory, shared by the vCPUs and the devices.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;

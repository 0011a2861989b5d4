//! What can go wrong on the host's side of a virtual machine. A guest's own faults are never errors.

use reprise_emulator::InFlightError;
use reprise_emulator::cpu::CpuError;
use reprise_emulator::cpuid::CpuidRegisters;

use crate::RequestId;
use crate::kvm::{KvmError, KvmVcpuError};

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
    /// A processor model that does not work here.
    #[error("CPU model {model} needs {missing}, which does not work here")]
    CpuModel {
        /// The model's name.
        model: &'static str,
        /// The instruction set extension that is missing.
        missing: String,
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
    /// The host refuses something.
    #[error("the host refused {call}")]
    Host {
        /// What.
        call: &'static str,
        /// What it said.
        source: std::io::Error,
    },
    /// This backend has no such thing.
    #[error("{what} is not there on this backend")]
    Unsupported {
        /// What was asked for.
        what: &'static str,
    },
    /// No such interrupt line.
    #[error("no interrupt line {gsi}; there are 0 to {max}")]
    Gsi {
        /// The line asked for.
        gsi: u32,
        /// The last line there is.
        max: u32,
    },
    /// KVM cannot be used, or refuses something.
    #[error("KVM cannot run the machine")]
    Kvm {
        /// What is wrong with it.
        #[from]
        source: KvmError,
    },
    /// A saved state that this machine cannot go on from.
    #[error("the machine's saved state cannot be restored")]
    State {
        /// Why not.
        #[from]
        source: StateError,
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
    /// KVM cannot go on.
    #[error("the vCPU cannot go on under KVM")]
    Kvm {
        /// What is wrong.
        #[from]
        source: KvmVcpuError,
    },
    /// A state that this vCPU cannot go on from.
    #[error("the vCPU cannot be put into this state")]
    State {
        /// Why not.
        #[from]
        source: StateError,
    },
}

/// A saved state that this machine cannot go on from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// The machine had another number of vCPUs.
    #[error("the saved machine has {saved} vCPUs, this one has {own}")]
    VcpuCount {
        /// How many the saved machine has.
        saved: u32,
        /// How many this one has.
        own: u32,
    },
    /// The machine's guest found the other paravirtual interface.
    #[error("the saved machine has the interface of {}, this one that of {}", interface(*.saved), interface(!*.saved))]
    Interface {
        /// Whether the saved machine has Hyper-V's and this one KVM's, or the other way round.
        saved: bool,
    },
    /// The processor was another model: what CPUID answers differs.
    #[error(
        "the saved vCPU is another CPU model: CPUID leaf {leaf:#x}, subleaf {subleaf:#x} answers {saved:x?} there and {own:x?} here"
    )]
    CpuModel {
        /// The first leaf that differs.
        leaf: u32,
        /// And its subleaf.
        subleaf: u32,
        /// What the saved vCPU answers, if it has that leaf.
        saved: Option<CpuidRegisters>,
        /// What this one answers, if it has that leaf.
        own: Option<CpuidRegisters>,
    },
    /// The time-stamp counters ran at another frequency, and cannot be made to here.
    #[error(
        "the saved machine's time-stamp counters run at {saved} kHz; here they run at {own} kHz, and this host's KVM cannot scale them"
    )]
    TscFrequency {
        /// In the saved machine, in kHz.
        saved: u32,
        /// Here, in kHz.
        own: u32,
    },
    /// A register that no machine can show like this.
    #[error("{register} cannot be {value:#x}")]
    Register {
        /// The register.
        register: &'static str,
        /// Its value.
        value: u64,
    },
    /// A processor that cannot be in this state.
    #[error("the saved processor is in a state that there is not")]
    Cpu {
        /// What is wrong with it.
        #[from]
        source: CpuError,
    },
    /// Something in flight that is no instruction's.
    #[error("the saved instruction in flight is none")]
    InFlight {
        /// What is wrong with it.
        #[from]
        source: InFlightError,
    },
    /// An instruction that waits for what the platform answers at once.
    #[error("the saved instruction waits for {space:?}, which is no device")]
    NotADevice {
        /// What it waits for.
        space: reprise_emulator::Space,
    },
}

fn interface(hyperv: bool) -> &'static str {
    if hyperv { "Hyper-V" } else { "KVM" }
}

impl StateError {
    /// [`StateError::Register`] unless `legal`.
    pub(crate) fn unless(legal: bool, register: &'static str, value: impl Into<u64>) -> Result<(), Self> {
        if legal {
            return Ok(());
        }
        Err(Self::Register {
            register,
            value: value.into(),
        })
    }
}

//! What a snapshot holds of a virtual machine: plain data that another process, and another backend, can go on from.
//!
//! # Purpose
//! [`VmState`] is what the vCPUs share, [`VcpuState`] what each has of its own; guest memory and devices are somebody
//! else's. Fields bear the names that the specifications give their registers. A moment is in nanoseconds of the machine's
//! clock, which stands at [`VmState::clock`]: what has three milliseconds left has them left after a restore too. A tick is
//! one of the time-stamp counter.
//! # Taking
//! The machine is paused, no vCPU is inside `run`, and nobody touches an interrupt line or sends a message meanwhile. Should
//! somebody do so all the same, the order *devices, machine, vCPUs* is the safe one: it may save an interrupt without its
//! cause, which drivers shrug off, but never a cause without its interrupt.
//! # Interrupt lines
//! The levels of the interrupt controllers' pins are saved, the number of those who assert a line is not: who asserts it is
//! known to the devices, each of which raises its line again when *it* is restored. A pin that is up as saved does not rise
//! by that, so no edge is seen twice; and when the machine continues, pins are made to agree with who asserts them then, so
//! none is stuck.
//! # Restoring
//! Into a machine of the same shape that has not run yet. [`Vm::restore`](crate::Vm::restore) leaves it paused; vCPUs and
//! devices follow, in any order; then [`set_paused(false)`](crate::Vm::set_paused). A state may come from anywhere: what no
//! machine can be in is refused with a [`StateError`](crate::StateError), and nothing in it is a reason to panic.

mod io_apic;
mod local_apic;
mod pic;
mod pit;

use reprise_emulator::cpuid::CpuidEntry;
use reprise_emulator::{Cpu, InFlight};
use serde::{Deserialize, Serialize};

pub use io_apic::{IO_APIC_PINS, IoApicState};
pub use local_apic::{ApicTimerState, LocalApicState, LocalVectorTable};
pub use pic::{PicChipState, PicState};
pub use pit::{PitAccess, PitChannelState, PitState, PitWaitingCount};

/// What the vCPUs of a machine share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmState {
    /// The number of vCPUs.
    pub vcpus: u32,
    /// The machine's clock, in nanoseconds since the machine was made less the time it was paused; below 2⁶².
    pub clock: u64,
    /// The frequency of the vCPUs' time-stamp counters, in kHz.
    #[serde(default = "one_gigahertz")]
    pub tsc_khz: u32,
    /// The IO-APIC.
    pub io_apic: IoApicState,
    /// The two 8259A interrupt controllers.
    pub pic: PicState,
    /// The 8254 interval timer and port 0x61.
    pub pit: PitState,
    /// The index of the vCPU that a lowest-priority message is offered to first.
    pub lowest_priority_turn: u32,
    /// What Hyper-V's virtual processors share; none in a machine with KVM's interface.
    pub hyperv: Option<HypervState>,
}

/// The time-stamp counters' frequency in machines whose state does not tell it, in kHz.
fn one_gigahertz() -> u32 {
    1_000_000
}

/// The registers that Hyper-V's virtual processors share (TLFS).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HypervState {
    /// HV_X64_MSR_GUEST_OS_ID.
    pub guest_os_id: u64,
    /// HV_X64_MSR_HYPERCALL.
    pub hypercall: u64,
    /// HV_X64_MSR_REFERENCE_TSC.
    pub reference_tsc: u64,
}

/// What one vCPU has of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VcpuState {
    /// Everything that CPUID answers. A restored vCPU answers the same, and is refused where something that it announces is
    /// not there: a guest does not survive another CPU model.
    pub cpuid: Vec<CpuidEntry>,
    /// The architectural state of the processor.
    pub cpu: Box<Cpu>,
    /// The instruction that has begun and waits for a device, or for a hypercall, if there is one.
    pub in_flight: Option<InFlight>,
    /// The local APIC, and what is pending there.
    pub local_apic: LocalApicState,
    /// The platform's model-specific registers.
    pub msrs: PlatformMsrs,
    /// A KVM guest kicked this vCPU: its next HLT is over at once.
    pub unhalted: bool,
}

/// The model-specific registers of a vCPU that belong to the platform and not to the processor.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PlatformMsrs {
    /// IA32_TSC_ADJUST, in ticks.
    pub tsc_adjust: u64,
    /// What the time-stamp counter, less IA32_TSC_ADJUST, is ahead of the machine's clock in ticks.
    #[serde(default)]
    pub tsc_start: u64,
    /// MSR_KVM_WALL_CLOCK_NEW.
    pub kvm_wall_clock: u64,
    /// MSR_KVM_SYSTEM_TIME_NEW.
    pub kvm_system_time: u64,
    /// `version` of the kvmclock structure that was written last; even.
    pub kvm_clock_version: u32,
    /// MSR_KVM_STEAL_TIME.
    pub kvm_steal_time: u64,
    /// Nanoseconds stolen so far.
    pub kvm_stolen: u64,
    /// `version` of the steal time structure that was written last; even.
    pub kvm_steal_version: u32,
    /// What the steal time structure says of the vCPU: that it does not execute.
    pub kvm_preempted: bool,
    /// HV_X64_MSR_VP_ASSIST_PAGE.
    pub hv_vp_assist_page: u64,
}

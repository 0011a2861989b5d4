//! The loop at the middle of everything: run, see why the vCPU came out, ask the bus, form the entry, again.
//!
//! # Invariants
//! - The answer to the last exit is the argument of the next run. Nothing is borrowed across an exit, and no device is
//!   ever called while a vCPU is inside `run`.
//! - A device that answers late holds nobody: the vCPU is parked at its [`Seat`] until the answer is there, and meanwhile
//!   the machine can be paused, resumed, counted, saved and stopped.
//! - A vCPU that was saved parked begins with waiting for the same answer, and the access is not made again.

mod exchange;

use reprise_devices::Bus;
use reprise_hypervisor::{Answer, GuestMemory, IoRequest, Vcpu, VcpuError, Vm, VmEntry, VmExit};

use crate::events::Events;
use crate::machine::Seat;
use exchange::Outcome;

/// Why a vCPU runs no more.
#[derive(Debug)]
pub(crate) enum Ended {
    /// Its machine was stopped.
    Stopped,
    /// A triple fault.
    Shutdown,
    /// It cannot go on.
    Failed(VcpuError),
}

/// What a vCPU finds outside of itself.
#[derive(Clone, Copy)]
pub(crate) struct Outside<'a> {
    /// The devices.
    pub bus: &'a Bus,
    /// Guest memory, for accesses by reference.
    pub memory: &'a GuestMemory,
    /// Who is told what was written there.
    pub vm: &'a dyn Vm,
    /// Who is told that a device is gone.
    pub events: &'a Events,
}

/// Runs `vcpu` until its machine stops or it cannot go on.
pub(crate) fn run(vcpu: &mut dyn Vcpu, outside: Outside<'_>, seat: &Seat) -> Ended {
    let restored = seat.take_restored();
    let mut entry = match vcpu.waiting() {
        None => Some(VmEntry::Resume),
        Some(request) => enter(&request, exchange::resume(vcpu, outside, seat, request, restored)),
    };
    while let Some(next) = entry {
        entry = match vcpu.run(next) {
            Ok(VmExit::Io(request)) => enter(&request, exchange::make(vcpu, outside, seat, request)),
            Ok(VmExit::Interrupted) => {
                seat.publish(vcpu.counters());
                seat.may_go_on(vcpu).then_some(VmEntry::Resume)
            }
            Ok(VmExit::Shutdown) => return Ended::Shutdown,
            Err(error) => return Ended::Failed(error),
        }
    }
    Ended::Stopped
}

/// How to go on after an exchange; `None` if the machine was stopped.
fn enter(request: &IoRequest, outcome: Outcome) -> Option<VmEntry> {
    match outcome {
        Outcome::Answered(value) => Some(VmEntry::Answer(Answer { id: request.id, value })),
        Outcome::Cancelled => Some(VmEntry::Resume),
        Outcome::Stopped => None,
    }
}

#[cfg(test)]
mod tests;

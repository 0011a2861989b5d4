//! The loop at the middle of everything: run, see why the vCPU came out, ask the bus, form the entry, again.
//!
//! # Invariants
//! - The answer to the last exit is the argument of the next run. Nothing is borrowed across an exit, and no device is
//!   ever called while a vCPU is inside `run`.
//! - A device that answers late holds nobody: the vCPU leaves its [`Seat`] until the answer is there, and meanwhile the
//!   machine can be paused, resumed and stopped.

use reprise_devices::{Bus, Response, Space};
use reprise_hypervisor::{self as hypervisor, Access, Answer, IoRequest, Vcpu, VcpuError, VmEntry, VmExit};

use crate::machine::Seat;

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

/// Runs `vcpu` until its machine stops or it cannot go on.
pub(crate) fn run(vcpu: &mut dyn Vcpu, bus: &Bus, seat: &Seat) -> Ended {
    let mut entry = VmEntry::Resume;
    loop {
        entry = match vcpu.run(entry) {
            Ok(VmExit::Io(request)) => match ask(bus, &request) {
                Response::Done(value) => answer(&request, value),
                Response::Later(ticket) => {
                    seat.publish(vcpu.counters());
                    match seat.wait(&ticket) {
                        Some(value) => answer(&request, value),
                        None => return Ended::Stopped,
                    }
                }
            },
            Ok(VmExit::Interrupted) => {
                seat.publish(vcpu.counters());
                if !seat.may_go_on() {
                    return Ended::Stopped;
                }
                VmEntry::Resume
            }
            Ok(VmExit::Shutdown) => return Ended::Shutdown,
            Err(error) => return Ended::Failed(error),
        }
    }
}

fn ask(bus: &Bus, request: &IoRequest) -> Response {
    let space = match request.space {
        hypervisor::Space::Port => Space::Port,
        hypervisor::Space::Memory => Space::Memory,
    };
    match request.access {
        Access::Read => bus.read(space, request.address, request.size),
        Access::Write(value) => bus.write(space, request.address, request.size, value),
        // Nothing is moved at once yet: an answer of 0 elements asks for the first by itself.
        Access::ReadTo { .. } | Access::WriteFrom { .. } => Response::Done(0),
    }
}

fn answer(request: &IoRequest, value: u64) -> VmEntry {
    VmEntry::Answer(Answer { id: request.id, value })
}

#[cfg(test)]
mod tests;

//! One request of a vCPU, and how it is answered: asked of the bus, and waited for if need be.
//!
//! # Batches
//! A repeated string instruction asks for many accesses at once. Its elements are asked of the bus one after the other, and
//! their bytes moved between bus and guest memory here: devices know nothing of that memory. A device may be late with
//! any of them. The batch is then answered short after that element, so that the vCPU can take an interrupt, and its
//! registers are exact, as between two iterations on hardware.

use reprise_devices::{Response, Space, Ticket};
use reprise_hypervisor::{self as hypervisor, Access, IoRequest, Vcpu};
use vm_memory::{Bytes, GuestAddress};

use super::Outside;
use crate::machine::{Parked, Seat, Waited};

/// How an exchange ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// With this answer: the value read, or the number of elements that were moved.
    Answered(u64),
    /// Without an answer: the vCPU does not wait for it any more.
    Cancelled,
    /// The machine was stopped.
    Stopped,
}

/// Makes the access, or the batch of accesses, that `request` asks for.
pub(super) fn make(vcpu: &dyn Vcpu, outside: Outside<'_>, seat: &Seat, request: IoRequest) -> Outcome {
    let mut done = 0;
    while let Some(step) = Step::of(outside, request, done) {
        match step.ask(outside) {
            Response::Done(value) if step.guest.is_none() => return Outcome::Answered(value),
            Response::Done(value) => step.take(outside, value),
            Response::Later(ticket) => {
                tell_written(outside, request, 0, done);
                return wait(vcpu, outside, seat, step, ticket);
            }
        }
        done += 1;
    }
    tell_written(outside, request, 0, done);
    Outcome::Answered(u64::from(done))
}

/// Goes on with a request that was under way when the vCPU was saved, `restored` telling how far it was.
pub(super) fn resume(
    vcpu: &dyn Vcpu,
    outside: Outside<'_>,
    seat: &Seat,
    request: IoRequest,
    restored: Option<Parked>,
) -> Outcome {
    let restored = restored.filter(|parked| parked.request == request);
    let Some(mut step) = Step::of(outside, request, restored.map_or(0, |parked| parked.done)) else {
        // Only a state that was tampered with has moved more elements than were asked for. Nothing more is moved.
        return Outcome::Answered(0);
    };
    if let Some(parked) = restored {
        // What was written then, whatever is in guest memory now.
        step.access = parked.access;
    }
    let response = match restored.and_then(|parked| parked.answer) {
        Some(value) => Response::Done(value),
        None => step.resume(outside),
    };
    match response {
        Response::Done(value) => step.finish(outside, value),
        Response::Later(ticket) => wait(vcpu, outside, seat, step, ticket),
    }
}

/// Parks the vCPU until the answer to `step` is there.
fn wait(vcpu: &dyn Vcpu, outside: Outside<'_>, seat: &Seat, step: Step, ticket: Ticket) -> Outcome {
    let parked = Parked {
        request: step.request,
        done: step.done,
        access: step.access,
        answer: None,
    };
    match seat.park(parked, ticket, vcpu) {
        Waited::Answered { value, lost } => {
            if lost {
                tell_lost(outside, &step);
            }
            step.finish(outside, value)
        }
        Waited::Cancelled => Outcome::Cancelled,
        Waited::Stopped => Outcome::Stopped,
    }
}

/// One access of a request: all of it, or one element of a batch.
#[derive(Debug, Clone, Copy)]
struct Step {
    request: IoRequest,
    /// Elements of the batch before this one.
    done: u32,
    space: Space,
    address: u64,
    /// Read or write; never a batch.
    access: Access,
    /// Where in RAM the element is, of a batch.
    guest: Option<u64>,
}

impl Step {
    /// The access number `done` of `request`; `None` if there is none.
    fn of(outside: Outside<'_>, request: IoRequest, done: u32) -> Option<Self> {
        let (address, guest) = match request.access {
            Access::Read | Access::Write(_) => (done == 0).then_some((request.address, None))?,
            Access::ReadTo { .. } | Access::WriteFrom { .. } => {
                let (address, guest) = request.element(done)?;
                (address, Some(guest))
            }
        };
        let access = match (request.access, guest) {
            (Access::WriteFrom { .. }, Some(guest)) => Access::Write(load(outside, guest, request.size)),
            (Access::ReadTo { .. }, _) => Access::Read,
            (access, _) => access,
        };
        Some(Self {
            request,
            done,
            space: match request.space {
                hypervisor::Space::Port => Space::Port,
                hypervisor::Space::Memory => Space::Memory,
            },
            address,
            access,
            guest,
        })
    }

    fn ask(&self, outside: Outside<'_>) -> Response {
        match self.written() {
            None => outside.bus.read(self.space, self.address, self.request.size),
            Some(value) => outside.bus.write(self.space, self.address, self.request.size, value),
        }
    }

    fn resume(&self, outside: Outside<'_>) -> Response {
        let size = self.request.size;
        outside.bus.resume(self.space, self.address, size, self.written())
    }

    fn written(&self) -> Option<u64> {
        match self.access {
            Access::Write(value) => Some(value),
            _ => None,
        }
    }

    /// Puts what was read for an element into guest memory.
    fn take(&self, outside: Outside<'_>, value: u64) {
        if let (Some(guest), Access::Read) = (self.guest, self.access) {
            let bytes = value.to_le_bytes();
            let length = usize::from(self.request.size).min(bytes.len());
            // A request lies in RAM, and RAM stays where it is. Should it not, the bytes go where nobody is.
            if let Err(error) = outside.memory.write_slice(&bytes[..length], GuestAddress(guest)) {
                tracing::debug!(guest, %error, "an element of a batch has no memory to go to");
            }
        }
    }

    /// Takes the answer, and answers the request as far as it is done then.
    fn finish(&self, outside: Outside<'_>, value: u64) -> Outcome {
        if self.guest.is_none() {
            return Outcome::Answered(value);
        }
        self.take(outside, value);
        tell_written(outside, self.request, self.done, self.done + 1);
        Outcome::Answered(u64::from(self.done) + 1)
    }
}

/// The element at `guest`; ones where there is no memory.
fn load(outside: Outside<'_>, guest: u64, size: u8) -> u64 {
    let mut bytes = [0; 8];
    let length = usize::from(size).min(bytes.len());
    match outside.memory.read_slice(&mut bytes[..length], GuestAddress(guest)) {
        Ok(()) => u64::from_le_bytes(bytes),
        Err(_) => u64::MAX,
    }
}

/// Says that the elements `from..to` of a batch were put into guest memory.
fn tell_written(outside: Outside<'_>, request: IoRequest, from: u32, to: u32) {
    if let Access::ReadTo { guest, .. } = request.access
        && from < to
    {
        let bytes = |elements: u32| u64::from(elements) * u64::from(request.size);
        outside
            .vm
            .memory_written(guest.wrapping_add(bytes(from)), bytes(to - from));
    }
}

/// A device dropped its ticket. The first time it is told; a guest could have it told without end.
fn tell_lost(outside: Outside<'_>, step: &Step) {
    if let Some(device) = outside.bus.lost(step.space, step.address) {
        let address = format!("{} {:#x}", step.space, step.address);
        tracing::warn!(
            device,
            address,
            "a device does not answer any more; its registers read as ones"
        );
        outside
            .events
            .emit("device", "gone", &[("device", &device), ("address", &address)]);
    }
}

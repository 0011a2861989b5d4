//! What crosses the boundary of a vCPU: why it came out, and what it is given to go back in.
//!
//! Both are owned values. The answer to the last exit is the argument of the next [`run`](crate::Vcpu::run); nothing is
//! borrowed and no device is called while a vCPU is inside `run`.

use reprise_emulator::{Direction, Request};
use serde::{Deserialize, Serialize};

/// How a vCPU is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VmEntry {
    /// Nothing is owed: go on.
    Resume,
    /// The answer to the [`IoRequest`] of the last exit.
    Answer(Answer),
}

/// Why a vCPU came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VmExit {
    /// A device access; the vCPU continues when [`VmEntry::Answer`] brings its answer.
    Io(IoRequest),
    /// The vCPU was kicked, or has something for its owner to look at. Enter again with [`VmEntry::Resume`].
    Interrupted,
    /// A triple fault: the processor has shut down and needs a reset.
    Shutdown,
}

/// Names one device access; an answer must carry the name of the question. Unique within a vCPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RequestId(pub u64);

/// The address space of a device access.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Space {
    /// I/O ports, 16-bit addresses.
    Port,
    /// Guest-physical memory.
    Memory,
}

/// The direction of a device access.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Access {
    /// The device is asked for `size` bytes.
    Read,
    /// The device is given `size` bytes, in the low bytes of the value, the rest zero.
    Write(u64),
    /// The device is asked for `count` elements of `size` bytes, which go to RAM from guest-physical address `guest`
    /// upwards. Whoever answers writes them there, and says so with [`Vm::memory_written`](crate::Vm::memory_written).
    ReadTo {
        /// Where the first element goes; all lie in its page.
        guest: u64,
        /// How many, 2 or more.
        count: u32,
    },
    /// The device is given `count` elements of `size` bytes, which whoever answers reads from RAM at `guest` and up.
    WriteFrom {
        /// Where the first element is; all lie in its page.
        guest: u64,
        /// How many, 2 or more.
        count: u32,
    },
}

/// One access to one device register, or a batch of them that a repeated string instruction makes: each element of a
/// batch at a port is an access to `address`; those of a batch in memory lie one behind the other, from `address`
/// upwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoRequest {
    /// Names this access.
    pub id: RequestId,
    /// Which address space `address` is in.
    pub space: Space,
    /// The first byte accessed: a port number or a guest-physical address.
    pub address: u64,
    /// The width in bytes: 1, 2, 4 or 8 (ports: at most 4).
    pub size: u8,
    /// Read, write with the data, or a batch of either.
    pub access: Access,
}

impl IoRequest {
    /// The emulator's request as the owner of the vCPU knows it, as `id`. Only ports and memory are asked for outside.
    pub(crate) fn of(request: &Request, id: RequestId) -> IoRequest {
        IoRequest {
            id,
            space: match request.space {
                reprise_emulator::Space::Port => Space::Port,
                _ => Space::Memory,
            },
            address: request.address,
            size: request.size,
            access: match request.direction {
                Direction::Read => Access::Read,
                Direction::Write(value) => Access::Write(value),
                Direction::ReadTo { guest, count } => Access::ReadTo { guest, count },
                Direction::WriteFrom { guest, count } => Access::WriteFrom { guest, count },
            },
        }
    }

    /// Element `index` of a batch: the device's address, and where in RAM the element's bytes are. `None` if this is no
    /// batch, or one of fewer elements.
    pub fn element(&self, index: u32) -> Option<(u64, u64)> {
        let (Access::ReadTo { guest, count } | Access::WriteFrom { guest, count }) = self.access else {
            return None;
        };
        let moved = u64::from(index) * u64::from(self.size);
        let address = match self.space {
            Space::Port => self.address,
            Space::Memory => self.address.wrapping_add(moved),
        };
        (index < count).then(|| (address, guest.wrapping_add(moved)))
    }
}

/// What a device said to an [`IoRequest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The request that is answered.
    pub id: RequestId,
    /// The value read, in the low `size` bytes; ignored for a write. For a batch, how many elements were moved. The
    /// rest is asked for again; after 0, the first is asked for by itself.
    pub value: u64,
}

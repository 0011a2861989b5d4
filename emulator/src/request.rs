//! What the CPU asks of the world outside, and the answers.

use serde::{Deserialize, Serialize};

/// Names a request. Unique within a CPU.
pub type RequestId = u64;

/// Where a request is directed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Space {
    /// I/O ports; addresses have 16 bits.
    Port,
    /// Guest-physical memory that is not RAM.
    Memory,
    /// Model-specific registers that are not the processor's own; the address is the register's number. May be refused,
    /// which is #GP(0) for the guest.
    Msr,
    /// The task priority: CR8, 0 to 15.
    TaskPriority,
    /// A hypercall (VMCALL or VMMCALL); the arguments are in the CPU's registers, the value read becomes RAX, outside 64-bit mode
    /// EDX:EAX. May be refused, which is #UD for the guest.
    Hypercall,
}

/// The direction of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Direction {
    /// `size` bytes are wanted.
    Read,
    /// `size` bytes are given, in the low bytes, the rest zero.
    Write(u64),
    /// `count` elements of `size` bytes are wanted in RAM, from guest-physical address `guest` upwards. The answer's
    /// value is how many were moved; the rest is asked for again. 0 is an answer too: the first element is then asked
    /// for by itself.
    ReadTo {
        /// Where the first element goes; all lie in its page.
        guest: u64,
        /// How many, 2 or more.
        count: u32,
    },
    /// As [`ReadTo`](Self::ReadTo), but from RAM to the device.
    WriteFrom {
        /// Where the first element is; all lie in its page.
        guest: u64,
        /// How many, 2 or more.
        count: u32,
    },
}

/// One access outside the CPU and its RAM, or a batch of them: each element of a batch at a port is an access to
/// `address`; those of a batch in memory lie one behind the other, from `address` upwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Names this request.
    pub id: RequestId,
    /// Where it is directed.
    pub space: Space,
    /// First byte accessed, or register number.
    pub address: u64,
    /// Width in bytes: 1, 2, 4 or 8.
    pub size: u8,
    /// Read, or write with the data.
    pub direction: Direction,
}

impl Request {
    /// Element `index` of a batch: the device's address, and where in RAM the element's bytes are. `None` if this is no
    /// batch, or one of fewer elements.
    pub fn element(&self, index: u32) -> Option<(u64, u64)> {
        let (Direction::ReadTo { guest, count } | Direction::WriteFrom { guest, count }) = self.direction else {
            return None;
        };
        let moved = u64::from(index) * u64::from(self.size);
        let address = match self.space {
            Space::Memory => self.address.wrapping_add(moved),
            _ => self.address,
        };
        (index < count).then(|| (address, guest.wrapping_add(moved)))
    }
}

/// What the world said to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The request answered.
    pub id: RequestId,
    /// What became of it.
    pub reply: Reply,
}

/// The content of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Done; the value read, in the low bytes (0 for a write), or how many elements of a batch were moved.
    Value(u64),
    /// There is no such register, or it does not take this value, or no hypercall can be made. Only these can be refused.
    Refused,
}

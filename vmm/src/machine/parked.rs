//! A vCPU that waits for a device, as plain data.

use reprise_hypervisor::{Access, IoRequest};
use serde::{Deserialize, Serialize};

/// Where a vCPU is in the access that it waits for. With it, the vCPU's own state and the states of the devices, the access
/// is finished in another process without being made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parked {
    /// What the vCPU asked for.
    pub request: IoRequest,
    /// Elements of a batch that have been moved; 0 if it is none.
    pub done: u32,
    /// The access under way: the whole request, or one element of a batch. Never a batch itself.
    pub access: Access,
    /// The answer to it, if it has come meanwhile and the vCPU was held before it could take it.
    pub answer: Option<u64>,
}

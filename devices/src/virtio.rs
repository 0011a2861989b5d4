//! virtio devices behind PCI, as the virtio specification 1.2 has them: modern, with MSI-X.
//!
//! # Purpose
//! A [`VirtioDevice`] says what it is and brings a [`QueueHandler`] for each of its queues. [`VirtioPci`] does the rest: the
//! registers, feature negotiation, a thread for each queue, interrupts, pause and save.
//!
//! # Invariants
//! - No vCPU thread ever waits for a device: a notification rings a bell, and the queue's own thread works. A reset that finds
//!   it at work takes effect at once for the guest's memory rings, and the status register reads as zero when that thread has
//!   let go.
//! - Whatever a guest puts into its rings, a handler sees a [`Chain`] of no more segments than the queue has descriptors,
//!   those that it may read before those that it may write. A chain that is none is given back unused and counted; a ring that
//!   is none stops its device, which then asks to be reset.
//! - Where somebody else rings the bell for the guest ([`Doorbells`]), that is as if the guest had written to the device, but that
//!   no vCPU comes out for it.
//! - What a device writes to guest memory goes through [`Dma`], which tells whoever keeps decoded instructions.
//!
//! # Life
//! [`VirtioPci::new`] makes a function that is [added](crate::pci::PciRoot::add) to a bus. reset -FEATURES_OK-> negotiated
//! -DRIVER_OK-> running -[`VirtioPci::set_paused`]-> quiet, to be saved -> running. Dropped, it ends its threads.

pub mod balloon;
mod bell;
pub mod block;
pub mod chain;
pub mod console;
pub mod device;
pub mod dma;
pub mod doorbells;
mod interrupts;
pub mod net;
mod queue;
pub mod rate_limiter;
pub mod rng;
#[cfg(test)]
mod testing;
pub mod transport;
pub mod vsock;

pub use balloon::{Balloon, BalloonOptions, GiveBack};
pub use block::{Block, BlockError, BlockOptions, ImageFormat};
pub use chain::{Chain, ChainError};
pub use console::{Console, ConsoleSize};
pub use device::{
    ConfigChange, DeviceKind, DeviceStateError, Handled, QueueHandler, RemoteQueue, ResizeError, VirtioDevice,
};
pub use dma::{Dma, DmaError, MemoryWatcher};
pub use doorbells::Doorbells;
pub use net::{MacAddress, Net, NetOptions, Tap, TapError, TapOptions};
pub use rate_limiter::{Bucket, RateLimiter, RateLimits};
pub use rng::Rng;
pub use transport::{VirtioError, VirtioPci, VirtioState, VirtioStateError};
pub use vsock::Vsock;

//! Ranges of ports and guest-physical memory, and the devices behind them.
//!
//! # Purpose
//! A vCPU thread asks the bus on behalf of its guest. A device that knows its answer gives it at once
//! ([`Response::Done`]); one that must ask somebody else hands out a [`Ticket`] ([`Response::Later`]) and keeps the other
//! end, a [`Completion`], with which any thread answers, once. No vCPU thread is ever held inside a device.

// The full module is written by the devices work; this is the seam that its users build on.

/// One of the two address spaces of a bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Space {
    /// I/O ports.
    Port,
    /// Guest-physical memory.
    Memory,
}

/// What became of an access.
#[derive(Debug)]
pub enum Response {
    /// Finished: the value read (0 for a write), in the low bytes.
    Done(u64),
    /// The device will answer through the ticket.
    Later(Ticket),
}

/// The waiting end of a late answer.
#[derive(Debug)]
pub struct Ticket;

/// A device on the bus. Devices lock for themselves (`&self`), so that two vCPUs may be in two devices at once.
pub trait Device: Send + Sync {
    /// The name in logs, counters and device trees.
    fn name(&self) -> &str;
    /// Reads `size` bytes (1, 2, 4 or 8) at `offset` bytes from the start of the device's range.
    fn read(&self, offset: u64, size: u8) -> Response;
    /// Writes the low `size` bytes of `value` at `offset`.
    fn write(&self, offset: u64, size: u8, value: u64) -> Response;
}

//! A request: the buffers that a driver has chained together, and access to them as two streams of bytes.
//!
//! # Invariants
//! - A chain has no more segments than its queue has descriptors, indirect or not, and all that can be read come before all that
//!   can be written (virtio 1.2, "Driver Requirements: Message Framing" and "The Virtqueue Descriptor Table").
//! - Segments may lie anywhere, also outside guest memory: that is found out by the access.

use virtio_queue::DescriptorChain;
use vm_memory::GuestMemoryMmap;

use super::dma::{Dma, DmaError};
use crate::sys::{Gather, Scatter};

/// A chain that is none, or that does not hold what its device expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// It has no buffers at all, or its table cannot be read.
    #[error("there are no descriptors")]
    Empty,
    /// It does not end: it loops, leads nowhere, is longer than its queue or than 4 GiB.
    #[error("it does not end where a chain may end")]
    Endless,
    /// A buffer to read comes after one to write.
    #[error("a buffer to be read follows one to be written")]
    Order,
    /// It is shorter than a request must be.
    #[error("it is too short for a request")]
    Short,
    /// It is longer than a request may be.
    #[error("it is too long for a request")]
    Long,
    /// A buffer is not in guest memory.
    #[error(transparent)]
    Memory(#[from] DmaError),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    address: u64,
    length: u64,
}

/// Segments of a chain, kept from one chain to the next so that their memory is used again.
#[derive(Debug, Default)]
pub(super) struct Segments {
    readable: Vec<Segment>,
    writable: Vec<Segment>,
}

impl Segments {
    /// Takes the descriptors of `chain`, of which there may be `limit`.
    pub(super) fn gather(&mut self, chain: DescriptorChain<&GuestMemoryMmap>, limit: u16) -> Result<(), ChainError> {
        self.readable.clear();
        self.writable.clear();
        let mut ended = false;
        for descriptor in chain {
            if self.readable.len() + self.writable.len() >= limit.into() {
                return Err(ChainError::Endless);
            }
            let segment = Segment {
                address: descriptor.addr().0,
                length: descriptor.len().into(),
            };
            if descriptor.is_write_only() {
                self.writable.push(segment);
            } else if self.writable.is_empty() {
                self.readable.push(segment);
            } else {
                return Err(ChainError::Order);
            }
            ended = !descriptor.has_next();
        }
        if self.readable.is_empty() && self.writable.is_empty() {
            return Err(ChainError::Empty);
        }
        if ended { Ok(()) } else { Err(ChainError::Endless) }
    }

    pub(super) fn chain<'a>(&'a self, dma: &'a Dma) -> Chain<'a> {
        Chain {
            dma,
            readable: &self.readable,
            writable: &self.writable,
        }
    }
}

/// One request.
#[derive(Debug, Clone, Copy)]
pub struct Chain<'a> {
    dma: &'a Dma,
    readable: &'a [Segment],
    writable: &'a [Segment],
}

impl Chain<'_> {
    /// Bytes that the device may read.
    #[must_use]
    pub fn readable(&self) -> u64 {
        length(self.readable)
    }

    /// Bytes that the device may write; at most 4 GiB less one.
    #[must_use]
    pub fn writable(&self) -> u64 {
        length(self.writable)
    }

    /// Where the buffers are that the device may write: address and length of each, in order. They may lie anywhere.
    pub fn writable_buffers(&self) -> impl Iterator<Item = (u64, u64)> {
        self.writable.iter().map(|segment| (segment.address, segment.length))
    }

    /// Fills `bytes` from the readable part at `offset`.
    ///
    /// # Errors
    /// [`ChainError::Short`] or [`ChainError::Memory`].
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), ChainError> {
        read(self.dma, self.readable, offset, bytes)
    }

    /// Writes `bytes` to the writable part at `offset`.
    ///
    /// # Errors
    /// [`ChainError::Short`] or [`ChainError::Memory`]; what lies before may have been written.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), ChainError> {
        let mut rest = bytes;
        for (address, length) in parts(self.writable, offset, rest.len()) {
            let (part, behind) = rest.split_at(length);
            self.dma.write(address, part)?;
            rest = behind;
        }
        if rest.is_empty() {
            Ok(())
        } else {
            Err(ChainError::Short)
        }
    }

    /// Fills `bytes` from the writable part at `offset`: what was written there, if the guest has left it alone.
    pub(super) fn peek(&self, offset: u64, bytes: &mut [u8]) -> Result<(), ChainError> {
        read(self.dma, self.writable, offset, bytes)
    }

    /// Where `length` bytes of the writable part from `offset` on lie, but no more of them than lie in about `most` pieces; and
    /// how many that are. Whoever writes there says so with [`filled`](Self::filled).
    pub(super) fn scatter(&self, offset: u64, length: usize, most: usize) -> Result<(Scatter<'_>, usize), ChainError> {
        let (mut scatter, mut covered) = (Scatter::default(), 0);
        for (address, length) in parts(self.writable, offset, length).take(most) {
            for slice in self.dma.slices(address, length) {
                scatter.push_guest(&slice?);
            }
            covered += length;
        }
        Ok((scatter, covered))
    }

    /// `length` bytes of the writable part from `offset` on were written.
    pub(super) fn filled(&self, offset: u64, length: usize) {
        for (address, length) in parts(self.writable, offset, length) {
            self.dma.written(address, length as u64);
        }
    }

    /// Adds where `length` bytes of the readable part from `offset` on lie.
    pub(super) fn gather<'s>(&'s self, gather: &mut Gather<'s>, offset: u64, length: usize) -> Result<(), ChainError> {
        for (address, length) in parts(self.readable, offset, length) {
            for slice in self.dma.slices(address, length) {
                gather.push_guest(&slice?);
            }
        }
        Ok(())
    }

    /// The address of the byte at `offset` of the writable part.
    pub(super) fn writable_address(&self, offset: u64) -> Option<u64> {
        parts(self.writable, offset, 1).next().map(|(address, _)| address)
    }

    /// Writes to guest memory where an earlier chain led.
    pub(super) fn write_to(&self, address: u64, bytes: &[u8]) -> Result<(), ChainError> {
        Ok(self.dma.write(address, bytes)?)
    }
}

fn read(dma: &Dma, segments: &[Segment], offset: u64, bytes: &mut [u8]) -> Result<(), ChainError> {
    let mut rest = bytes;
    for (address, length) in parts(segments, offset, rest.len()) {
        let (part, behind) = rest.split_at_mut(length);
        dma.read(address, part)?;
        rest = behind;
    }
    if rest.is_empty() {
        Ok(())
    } else {
        Err(ChainError::Short)
    }
}

fn length(segments: &[Segment]) -> u64 {
    // At most 2^15 segments of less than 2^32 bytes.
    segments.iter().map(|segment| segment.length).sum()
}

/// Addresses and lengths of up to `wanted` bytes of `segments` from `offset` on.
fn parts(segments: &[Segment], offset: u64, wanted: usize) -> impl Iterator<Item = (u64, usize)> {
    let (mut skip, mut wanted) = (offset, wanted);
    segments.iter().filter_map(move |segment| {
        let skipped = skip.min(segment.length);
        skip -= skipped;
        let left = usize::try_from(segment.length - skipped).unwrap_or(usize::MAX);
        let length = left.min(wanted);
        wanted -= length;
        // Where an address wraps there is no memory either.
        (length > 0).then(|| (segment.address.saturating_add(skipped), length))
    })
}

#[cfg(test)]
mod tests;

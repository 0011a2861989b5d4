//! Frames to the guest.
//!
//! # Invariants
//! - A frame is read straight into the guest's buffers, with room of our own behind them: nothing is cut off for want of room in
//!   the guest, and what fits needs no copy.
//! - A frame that needs several chains is kept here until there are enough of them (virtio 1.2, "Processing of Incoming Packets").

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::header::{HEADER, NUM_BUFFERS};
use super::transmit::LEAST_FRAME;
use super::{FRAME, MRG_RXBUF, MacAddress, Shared, count};
use crate::virtio::chain::{Chain, ChainError};
use crate::virtio::device::{Handled, QueueHandler};

/// The most pieces of guest memory that a frame is read to at once.
const MOST_PIECES: usize = 256;
/// Frames that may be dropped in search of one for the guest, before others have their turn.
const SEARCH: u32 = 32;

/// Serves a receive queue.
pub(super) struct Receiver {
    shared: Arc<Shared>,
    pair: u16,
    mergeable: bool,
    /// A header and a frame, of which the beginning may be in guest memory instead.
    buffer: Box<[u8]>,
    waiting: Option<Waiting>,
    /// That the link is gone was said.
    is_gone: bool,
}

/// A frame in the buffer, for which there have not been enough chains.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    /// Bytes, the header's among them.
    length: usize,
    /// Of which so many were written.
    written: usize,
    /// To so many chains.
    buffers: u16,
    /// The addresses of num_buffers' bytes.
    num_buffers: [u64; 2],
}

impl Waiting {
    fn new(length: usize) -> Self {
        Self {
            length,
            written: 0,
            buffers: 0,
            num_buffers: [0; 2],
        }
    }
}

/// What was found on the link.
enum Found {
    /// No frame, or no link.
    Nothing,
    /// A frame that nobody wants.
    Dropped,
    /// A frame that lies in the chain whole, in so many bytes with its header.
    Here(usize),
    /// A frame of so many bytes with its header, which is in the buffer.
    Long(usize),
}

impl Receiver {
    pub(super) fn new(shared: Arc<Shared>, pair: u16) -> Self {
        Self {
            shared,
            pair,
            mergeable: false,
            buffer: vec![0; HEADER + FRAME].into(),
            waiting: None,
            is_gone: false,
        }
    }

    fn find(&mut self, chain: &Chain<'_>) -> Result<Found, ChainError> {
        let (mut scatter, room) = chain.scatter(0, self.buffer.len(), MOST_PIECES)?;
        if room < self.buffer.len() {
            scatter.push(&mut self.buffer[room..]);
        }
        let read = scatter.read(self.shared.link.pair(self.pair));
        let counters = &self.shared.counters;
        let length = match read {
            // A link that has ended has nothing either.
            Ok(0) => return Ok(Found::Nothing),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Found::Nothing),
            Err(error) => {
                // A tap that was deleted is asked again and again.
                if !std::mem::replace(&mut self.is_gone, true) {
                    tracing::warn!(%error, "the link of a network card cannot be read");
                }
                return Ok(Found::Nothing);
            }
        };
        chain.filled(0, length.min(room));
        if length < HEADER + LEAST_FRAME {
            count(&counters.rx_drops, 1);
            return Ok(Found::Dropped);
        }
        if length > room {
            chain.peek(0, &mut self.buffer[..room])?;
        }
        if !self.shared.mode.admits_all() {
            let mut destination = [0; 6];
            if length > room {
                destination.copy_from_slice(&self.buffer[HEADER..HEADER + 6]);
            } else {
                chain.peek(HEADER as u64, &mut destination)?;
            }
            if !self.shared.mode.admits(MacAddress::new(destination)) {
                count(&counters.rx_filtered, 1);
                return Ok(Found::Dropped);
            }
        }
        Ok(if length > room {
            Found::Long(length)
        } else {
            Found::Here(length)
        })
    }

    /// Writes what a chain takes of the frame that waits.
    fn continue_frame(&mut self, chain: &Chain<'_>, mut waiting: Waiting) -> Result<Handled, ChainError> {
        let room = usize::try_from(chain.writable()).unwrap_or(usize::MAX);
        let part = room.min(waiting.length - waiting.written);
        if waiting.written == 0 && part < waiting.length && !self.mergeable {
            self.waiting = None;
            count(&self.shared.counters.rx_drops, 1);
            return Err(ChainError::Short);
        }
        if waiting.buffers == 0 {
            let address = |byte| chain.writable_address(NUM_BUFFERS + byte).ok_or(ChainError::Short);
            waiting.num_buffers = [address(0)?, address(1)?];
        }
        chain.write(0, &self.buffer[waiting.written..waiting.written + part])?;
        waiting.written += part;
        // As many as the queue has descriptors at most, 2^15.
        waiting.buffers += 1;
        if waiting.written < waiting.length {
            self.waiting = Some(waiting);
            return Ok(Handled::Held(part as u32));
        }
        for (address, byte) in waiting.num_buffers.into_iter().zip(waiting.buffers.to_le_bytes()) {
            chain.write_to(address, &[byte])?;
        }
        self.waiting = None;
        self.arrived(waiting.length);
        Ok(Handled::Used(part as u32))
    }

    fn arrived(&self, length: usize) {
        count(&self.shared.counters.rx_frames, 1);
        count(&self.shared.counters.rx_bytes, length - HEADER);
    }
}

impl QueueHandler for Receiver {
    fn begin(&mut self, features: u64) {
        self.mergeable = features & MRG_RXBUF != 0;
        self.waiting = None;
        self.shared.mode.begin(features, &*self.shared.link);
    }

    fn handle(&mut self, chain: &Chain<'_>) -> Result<Handled, ChainError> {
        if chain.writable() < HEADER as u64 && self.waiting.is_none_or(|waiting| waiting.written == 0) {
            return Err(ChainError::Short);
        }
        if chain.writable() == 0 {
            return Err(ChainError::Short);
        }
        if let Some(waiting) = self.waiting {
            return self.continue_frame(chain, waiting);
        }
        for _ in 0..SEARCH {
            match self.find(chain)? {
                Found::Nothing => return Ok(Handled::NotNow),
                Found::Dropped => {}
                Found::Here(length) => {
                    chain.write(NUM_BUFFERS, &1_u16.to_le_bytes())?;
                    self.arrived(length);
                    return Ok(Handled::Used(length as u32));
                }
                Found::Long(length) => return self.continue_frame(chain, Waiting::new(length)),
            }
        }
        Ok(Handled::NotNow)
    }

    fn put_back(&mut self, all: bool) {
        if all {
            self.waiting = None;
            count(&self.shared.counters.rx_drops, 1);
        } else if let Some(waiting) = &mut self.waiting {
            *waiting = Waiting::new(waiting.length);
        }
    }

    fn source(&self) -> Option<BorrowedFd<'_>> {
        Some(self.shared.link.pair(self.pair))
    }
}

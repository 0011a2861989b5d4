//! Frames from the guest.

use std::io;
use std::sync::Arc;

use super::header::{HEADER, checked};
use super::{FRAME, Shared, count};
use crate::sys::{Gather, MOST_PIECES};
use crate::virtio::chain::{Chain, ChainError};
use crate::virtio::device::{Handled, QueueHandler};

/// Bytes of the shortest frame that says where it goes: addresses and type.
pub(super) const LEAST_FRAME: usize = 14;

/// Serves a transmit queue.
pub(super) struct Transmitter {
    shared: Arc<Shared>,
    pair: u16,
    features: u64,
    /// For frames in more pieces than a call takes.
    buffer: Vec<u8>,
}

impl Transmitter {
    pub(super) fn new(shared: Arc<Shared>, pair: u16) -> Self {
        Self {
            shared,
            pair,
            features: 0,
            buffer: Vec::new(),
        }
    }

    /// Sends the frame of `chain`; its length.
    fn send(&mut self, chain: &Chain<'_>) -> Result<io::Result<usize>, ChainError> {
        let length = usize::try_from(chain.readable()).unwrap_or(usize::MAX);
        let frame = length.checked_sub(HEADER).ok_or(ChainError::Short)?;
        if !(LEAST_FRAME..=FRAME).contains(&frame) {
            return Ok(Err(io::ErrorKind::InvalidInput.into()));
        }
        // A copy: what is checked is what is sent, whatever the guest writes there meanwhile.
        let mut header = [0; HEADER];
        chain.read(0, &mut header)?;
        let Some(header) = checked(header, frame, self.features) else {
            return Ok(Err(io::ErrorKind::InvalidInput.into()));
        };
        let link = self.shared.link.pair(self.pair);
        let mut gather = Gather::default();
        gather.push(&header);
        chain.gather(&mut gather, HEADER as u64, frame)?;
        if gather.pieces() > MOST_PIECES {
            self.buffer.resize(frame, 0);
            chain.read(HEADER as u64, &mut self.buffer)?;
            gather = Gather::default();
            gather.push(&header);
            gather.push(&self.buffer);
        }
        Ok(gather.write(link).map(|_| frame))
    }
}

impl QueueHandler for Transmitter {
    fn begin(&mut self, features: u64) {
        self.features = features;
        self.shared.mode.begin(features, &*self.shared.link);
    }

    fn handle(&mut self, chain: &Chain<'_>) -> Result<Handled, ChainError> {
        let sent = self.send(chain);
        let counters = &self.shared.counters;
        match sent {
            Ok(Ok(length)) => {
                count(&counters.tx_frames, 1);
                count(&counters.tx_bytes, length);
            }
            // The kernel looks into frames that it is to cut, and may find that they cannot be.
            Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidInput => count(&counters.tx_malformed, 1),
            Ok(Err(_)) => count(&counters.tx_drops, 1),
            Err(error) => {
                count(&counters.tx_malformed, 1);
                return Err(error);
            }
        }
        Ok(Handled::Used(0))
    }
}

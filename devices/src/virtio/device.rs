//! What a virtio device brings.

use std::os::fd::BorrowedFd;

use super::chain::{Chain, ChainError};

/// Which device it is (virtio 1.2, "Device Types").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeviceKind {
    /// A network card.
    Net,
    /// A disk.
    Block,
    /// A console.
    Console,
    /// A source of entropy.
    Entropy,
}

impl DeviceKind {
    /// The device type's number.
    #[must_use]
    pub fn number(self) -> u16 {
        match self {
            Self::Net => 1,
            Self::Block => 2,
            Self::Console => 3,
            Self::Entropy => 4,
        }
    }

    /// PCI's class code: base class, subclass, programming interface.
    #[must_use]
    pub fn class(self) -> [u8; 3] {
        match self {
            Self::Net => [0x02, 0x00, 0x00],
            Self::Block => [0x01, 0x80, 0x00],
            Self::Console => [0x07, 0x80, 0x00],
            Self::Entropy => [0xff, 0x00, 0x00],
        }
    }
}

/// A device that a [`VirtioPci`](super::VirtioPci) shows to the guest.
pub trait VirtioDevice: Send + Sync {
    /// Which device it is.
    fn kind(&self) -> DeviceKind;

    /// The features of this device, besides those that the transport and its queues offer.
    fn features(&self) -> u64;

    /// The largest size of each queue, in descriptors: powers of two up to 32768.
    fn queue_sizes(&self) -> Vec<u16>;

    /// The device configuration structure. It does not change.
    fn config(&self) -> Vec<u8>;

    /// What serves queue `index`; asked for once each.
    fn handler(&self, index: u16) -> Box<dyn QueueHandler>;

    /// Figures of the device's own.
    fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handled {
    /// It is done, and this many bytes were written, from the first writable one on.
    Used(u32),
    /// There is nothing to answer it with until [`QueueHandler::source`] can be read; it is asked again then.
    NotNow,
}

/// Serves one queue, on the queue's own thread. It may block, but not without end: pausing the machine waits for it.
pub trait QueueHandler: Send {
    /// The driver has set the device up anew, with these features.
    fn begin(&mut self, features: u64) {
        let _ = features;
    }

    /// Carries out the request in `chain`.
    ///
    /// # Errors
    /// [`ChainError`] if that is no request; it is given back with nothing written, and counted.
    fn handle(&mut self, chain: &Chain<'_>) -> Result<Handled, ChainError>;

    /// Where requests that are answered [`Handled::NotNow`] get their answers from.
    fn source(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

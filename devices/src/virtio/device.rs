//! What a virtio device brings.

use std::os::fd::{BorrowedFd, RawFd};
use std::sync::Arc;
use std::{fmt, io};

use virtio_queue::QueueState;
use vmm_sys_util::eventfd::EventFd;

use super::chain::{Chain, ChainError};
use super::interrupts::Interrupts;

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
    /// A balloon, which takes memory from the guest.
    Balloon,
    /// Sockets between guest and host.
    Vsock,
    /// A shared file system.
    FileSystem,
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
            Self::Balloon => 5,
            Self::Vsock => 19,
            Self::FileSystem => 26,
        }
    }

    /// PCI's class code: base class, subclass, programming interface.
    #[must_use]
    pub fn class(self) -> [u8; 3] {
        match self {
            Self::Net => [0x02, 0x00, 0x00],
            Self::Block => [0x01, 0x80, 0x00],
            Self::Console => [0x07, 0x80, 0x00],
            Self::Balloon => [0x05, 0x00, 0x00],
            Self::Vsock => [0x02, 0x80, 0x00],
            Self::FileSystem => [0x01, 0x80, 0x00],
            Self::Entropy => [0xff, 0x00, 0x00],
        }
    }
}

/// How a device tells its driver that [`VirtioDevice::config`] has changed; copies lead to the same driver.
#[derive(Clone)]
pub struct ConfigChange(Arc<Interrupts>);

impl ConfigChange {
    pub(super) fn new(interrupts: Arc<Interrupts>) -> Self {
        Self(interrupts)
    }

    /// Raises the configuration change notification (virtio 1.2, "Configuration change notification"), after the change. What
    /// changes before it is told is seen as a change all the same: config_generation follows the bytes.
    pub fn announce(&self) {
        self.0.config_changed();
    }
}

impl fmt::Debug for ConfigChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ConfigChange")
    }
}

/// A device that cannot go on from the bytes that it is given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct DeviceStateError {
    /// What is the matter.
    pub reason: String,
}

impl DeviceStateError {
    /// Of `reason`.
    pub fn new(reason: impl fmt::Display) -> Self {
        Self {
            reason: reason.to_string(),
        }
    }
}

/// A device that cannot have the size that it is to have.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// It has no size that can be changed.
    #[error("its size cannot be changed")]
    Fixed,
    /// It cannot have that one.
    #[error("{bytes} bytes is no size for it; expected {expected}")]
    Size {
        /// What was asked for.
        bytes: u64,
        /// What would be accepted.
        expected: String,
    },
    /// The host refuses.
    #[error("what is behind it cannot be given {bytes} bytes")]
    Io {
        /// What was asked for.
        bytes: u64,
        /// What it says.
        source: io::Error,
    },
}

/// A device that a [`VirtioPci`](super::VirtioPci) shows to the guest.
pub trait VirtioDevice: Send + Sync {
    /// Which device it is.
    fn kind(&self) -> DeviceKind;

    /// The features of this device, besides those that the transport and its queues offer.
    fn features(&self) -> u64;

    /// Of the features that every device offers, for its transport and its queues, those that this one can keep.
    fn transport_features(&self) -> u64 {
        u64::MAX
    }

    /// The largest size of each queue, in descriptors: powers of two up to 32768.
    fn queue_sizes(&self) -> Vec<u16>;

    /// The device configuration structure as it is now; its length stays. Never blocks: a vCPU thread asks.
    fn config(&self) -> Vec<u8>;

    /// The driver writes `data` into the device configuration structure at `offset`; all of it lies inside. Never blocks.
    fn write_config(&self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }

    /// It is put behind a transport, and tells changes of its configuration through `change` from now on.
    fn connect(&self, change: ConfigChange) {
        let _ = change;
    }

    /// Changes its size in bytes: a disk's capacity, or what a balloon takes. It [tells](ConfigChange::announce) its driver.
    ///
    /// # Errors
    /// [`ResizeError`] if it cannot; nothing has changed then.
    fn resize(&self, bytes: u64) -> Result<(), ResizeError> {
        let _ = bytes;
        Err(ResizeError::Fixed)
    }

    /// The driver resets it. A handler may be amid a request of before. Never blocks: a vCPU thread says so.
    fn reset(&self) {}

    /// What it remembers besides registers and queues; it is paused. Nothing to remember is no bytes.
    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Goes on from what another one [saved](Self::save); no queue runs yet.
    ///
    /// # Errors
    /// [`DeviceStateError`] if it cannot; nothing has changed then.
    fn restore(&self, saved: &[u8]) -> Result<(), DeviceStateError> {
        if saved.is_empty() {
            Ok(())
        } else {
            Err(DeviceStateError::new(
                "a device without a state of its own was saved with one",
            ))
        }
    }

    /// It goes on for the first time since it was restored: its queues run, and its driver can be told of changes.
    fn goes_on(&self) {}

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
    /// As [`Used`](Self::Used), but the driver learns of it only together with the next request that is used: several requests
    /// carry one answer. Should there be no next one yet, they are taken back, see [`QueueHandler::put_back`].
    Held(u32),
    /// There is nothing to answer it with until [`QueueHandler::source`] can be read; it is asked again then.
    NotNow,
}

/// A queue that another process serves. All of it is called on the queue's own thread, and may block, but not without end.
pub trait RemoteQueue: Send {
    /// Has the process serve the queue from where it stands, for a driver that has accepted `features`.
    ///
    /// # Errors
    /// What the socket says; the device needs a reset then.
    fn start(&mut self, queue: &QueueState, features: u64) -> io::Result<()>;

    /// The driver has made buffers available.
    fn kick(&self);

    /// What the process writes to when it has used buffers. It is never read.
    fn called(&self) -> &EventFd;

    /// What hangs up when the process goes.
    fn process(&self) -> RawFd;

    /// Has the process let go of the queue; which entry of the ring of available buffers it would have taken next.
    ///
    /// # Errors
    /// What the socket says; the device needs a reset then.
    fn stop(&mut self) -> io::Result<u16>;
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

    /// The process that serves the queue in place of [`handle`](Self::handle), if one does.
    fn remote(&mut self) -> Option<&mut dyn RemoteQueue> {
        None
    }

    /// All requests that were answered [`Handled::Held`] since the last that was used are taken back, and come again later; what
    /// was written to them does not count. `all` says that they were as many as the queue can hold: there will never be more.
    fn put_back(&mut self, all: bool) {
        let _ = all;
    }

    /// Where requests that are answered [`Handled::NotNow`] get their answers from.
    fn source(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

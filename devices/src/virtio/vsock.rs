//! virtio-vsock: stream sockets between the guest and UNIX sockets of the host (virtio 1.2, "Socket Device").
//!
//! # Purpose
//! A program of the host connects to the device's socket and writes `CONNECT port` and a line feed; when the guest has
//! accepted, it reads `OK port` and a line feed, and then what the guest sends. A guest's connection to the host (CID 2) leads
//! to the UNIX socket with the port's number behind the device's: `/run/v.sock_5000`. Firecracker and cloud-hypervisor do the
//! same, so that their clients work.
//!
//! # Invariants
//! - Neither side can have the other held up, nor memory grow: see [`connection`] and [`hub`].
//! - Connections do not survive a restore. The guest is told by a transport reset event and closes them.
//!
//! # Life
//! The receive queue's thread waits for the sockets of the host as its source; the transmit queue's brings what the guest
//! sends. Both work on one [`Hub`].

mod connection;
mod hub;
mod packet;
#[cfg(test)]
mod tests;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::{fmt, io};

use super::bell::Bell;
use super::chain::{Chain, ChainError};
use super::device::{DeviceKind, DeviceStateError, Handled, QueueHandler, VirtioDevice};
use crate::sync::lock;
use hub::Hub;
use packet::{HEADER, Header, MOST_DATA};

/// Descriptors of each of its queues.
const QUEUE_SIZE: u16 = 256;
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
/// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET.
const TRANSPORT_RESET: u32 = 0;

/// Sockets between guest and host.
pub struct Vsock {
    cid: u64,
    shared: Arc<Shared>,
}

struct Shared {
    hub: Mutex<Hub>,
    /// What can be read when the hub has something to see to.
    events: OwnedFd,
    /// The guest is to be told that its connections are gone.
    lost: AtomicBool,
    /// What the events of the event queue wait for: nothing yet.
    event: Bell,
}

impl Vsock {
    /// A device for the guest with this CID, whose clients connect to `listener`, which listens at `path` and is removed from
    /// there in the end.
    ///
    /// # Errors
    /// The host's, if it has no descriptors.
    pub fn new(cid: u64, listener: UnixListener, path: PathBuf) -> io::Result<Self> {
        let hub = Hub::new(cid, listener, path)?;
        Ok(Self {
            cid,
            shared: Arc::new(Shared {
                events: hub.events()?,
                hub: Mutex::new(hub),
                lost: AtomicBool::new(false),
                event: Bell::new()?,
            }),
        })
    }
}

impl fmt::Debug for Vsock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vsock")
            .field("cid", &self.cid)
            .field("path", &lock(&self.shared.hub).path())
            .finish()
    }
}

impl VirtioDevice for Vsock {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Vsock
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 3]
    }

    fn config(&self) -> Vec<u8> {
        self.cid.to_le_bytes().into()
    }

    fn reset(&self) {
        lock(&self.shared.hub).clear();
        self.shared.lost.store(false, Ordering::SeqCst);
    }

    fn restore(&self, saved: &[u8]) -> Result<(), DeviceStateError> {
        if !saved.is_empty() {
            return Err(DeviceStateError::new(
                "connections are not restored, and these bytes are none",
            ));
        }
        lock(&self.shared.hub).clear();
        self.shared.lost.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn handler(&self, index: u16) -> Box<dyn QueueHandler> {
        let shared = Arc::clone(&self.shared);
        match index {
            RECEIVE => Box::new(Receiver {
                shared,
                buffer: Vec::new(),
            }),
            TRANSMIT => Box::new(Transmitter {
                shared,
                buffer: Vec::new(),
            }),
            _ => Box::new(Events(shared)),
        }
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let figures = lock(&self.shared.hub).figures;
        vec![
            ("connections", figures.connections),
            ("refused", figures.refused),
            ("to_guest", figures.to_guest),
            ("from_guest", figures.from_guest),
            ("dropped", figures.dropped),
        ]
    }
}

/// Brings packets to the guest.
struct Receiver {
    shared: Arc<Shared>,
    buffer: Vec<u8>,
}

impl QueueHandler for Receiver {
    fn handle(&mut self, chain: &Chain<'_>) -> Result<Handled, ChainError> {
        let room = chain.writable().saturating_sub(HEADER as u64);
        if room == 0 {
            return Err(ChainError::Short);
        }
        self.buffer.resize(MOST_DATA, 0);
        let room = usize::try_from(room).unwrap_or(MOST_DATA).min(MOST_DATA);
        let mut hub = lock(&self.shared.hub);
        hub.poll();
        let Some(header) = hub.next(&mut self.buffer[..room]) else {
            return Ok(Handled::NotNow);
        };
        drop(hub);
        let length = header.length as usize;
        let written = chain
            .write(HEADER as u64, &self.buffer[..length])
            .and_then(|()| chain.write(0, &header.to_bytes()));
        if let Err(error) = written {
            lock(&self.shared.hub).lost(&header);
            return Err(error);
        }
        Ok(Handled::Used((HEADER + length) as u32))
    }

    fn source(&self) -> Option<BorrowedFd<'_>> {
        Some(self.shared.events.as_fd())
    }
}

/// Takes packets from the guest.
struct Transmitter {
    shared: Arc<Shared>,
    buffer: Vec<u8>,
}

impl QueueHandler for Transmitter {
    fn handle(&mut self, chain: &Chain<'_>) -> Result<Handled, ChainError> {
        let mut bytes = [0; HEADER];
        chain.read(0, &mut bytes)?;
        let header = Header::from_bytes(&bytes);
        let length = usize::try_from(header.length).unwrap_or(usize::MAX);
        if length > MOST_DATA {
            return Err(ChainError::Short);
        }
        self.buffer.resize(length, 0);
        chain.read(HEADER as u64, &mut self.buffer)?;
        lock(&self.shared.hub).receive(&header, &self.buffer);
        Ok(Handled::Used(0))
    }
}

/// Tells the guest what befell its transport.
struct Events(Arc<Shared>);

impl QueueHandler for Events {
    fn handle(&mut self, chain: &Chain<'_>) -> Result<Handled, ChainError> {
        if !self.0.lost.load(Ordering::SeqCst) {
            return Ok(Handled::NotNow);
        }
        chain.write(0, &TRANSPORT_RESET.to_le_bytes())?;
        self.0.lost.store(false, Ordering::SeqCst);
        Ok(Handled::Used(4))
    }

    fn source(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.event.as_fd())
    }
}

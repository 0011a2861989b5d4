//! virtio devices whose queues another process serves (vhost-user, version 1): disks, and shares by virtio-fs.
//!
//! # Purpose
//! A [`VhostUser`] is a [`VirtioDevice`] like any other: the guest sees the same registers, and its queues' threads here look on
//! while the process serves them ([`RemoteQueue`]). The process maps guest memory, is kicked by events, and calls by events.
//!
//! # Invariants
//! - The process is spoken to by queues' threads alone, never by a vCPU's, and each of its answers is waited for no longer than
//!   [`PATIENCE`].
//! - A process that dies or does not answer costs the guest this device: it asks to be reset, and is not served any more.
//!
//! # What is not there
//! Reconnection, migration, and what processes ask of the monitor. What a process remembers is not ours to save: a machine that
//! is restored finds its disk where the queues stood, and its shares unmounted.

use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{fmt, io};

use virtio_bindings::virtio_config::VIRTIO_F_RING_RESET;
use virtio_queue::QueueState;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::sync::lock;
use crate::virtio::{Chain, ChainError, DeviceKind, Dma, Handled, QueueHandler, RemoteQueue, VirtioDevice};

mod connection;

use connection::Connection;

/// How long a process may take for an answer.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Bits of features that are the devices' own (virtio 1.2, "Feature Bits"): the others are the transport's.
const DEVICE_BITS: u64 = (1 << 24) - 1;
/// Bytes of virtio-blk's configuration structure, up to its secure erase limits.
const BLOCK_CONFIG: usize = 60;
/// Bytes of a share's name.
const TAG: usize = 36;

/// A process that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum VhostUserError {
    /// Nobody serves the socket, or it does not answer.
    #[error("nobody serves {} as it should", path.display())]
    Process {
        /// The socket.
        path: PathBuf,
        /// What the host, or the protocol, says.
        source: io::Error,
    },
    /// It has fewer queues than are asked for.
    #[error("{} has {found} queues; expected at least {wanted}", path.display())]
    Queues {
        /// The socket.
        path: PathBuf,
        /// How many it has.
        found: u64,
        /// How many are needed.
        wanted: usize,
    },
    /// It cannot tell what the device's configuration is.
    #[error("{} does not tell its device's configuration", path.display())]
    Config {
        /// The socket.
        path: PathBuf,
    },
    /// Its device is not of this version of virtio.
    #[error("{} does not have VIRTIO_F_VERSION_1", path.display())]
    Legacy {
        /// The socket.
        path: PathBuf,
    },
    /// A share's name that a guest could not ask for.
    #[error("the tag {tag:?} has {} bytes; expected 1 to {TAG}", tag.len())]
    Tag {
        /// The name.
        tag: String,
    },
}

/// A device whose queues another process serves.
pub struct VhostUser {
    kind: DeviceKind,
    features: u64,
    config: Vec<u8>,
    queues: Vec<u16>,
    connection: Arc<Mutex<Connection>>,
}

impl VhostUser {
    /// A disk with `queues` queues of `queue_size` descriptors, served at the socket `path`; the process may reach all of `dma`.
    ///
    /// # Errors
    /// [`VhostUserError`].
    pub fn disk(path: &Path, queues: u16, queue_size: u16, dma: &Dma) -> Result<Self, VhostUserError> {
        let mut connection = Connection::new(path, queues.into(), dma)?;
        let config = connection.config(BLOCK_CONFIG)?;
        Ok(Self::of(
            DeviceKind::Block,
            connection,
            config,
            vec![queue_size; queues.into()],
        ))
    }

    /// A share that the guest mounts as `tag`, with `queues` request queues of `queue_size` descriptors.
    ///
    /// # Errors
    /// [`VhostUserError`].
    pub fn share(path: &Path, tag: &str, queues: u16, queue_size: u16, dma: &Dma) -> Result<Self, VhostUserError> {
        if tag.is_empty() || tag.len() > TAG {
            return Err(VhostUserError::Tag { tag: tag.to_owned() });
        }
        let mut config = tag.as_bytes().to_vec();
        config.resize(TAG, 0);
        config.extend(u32::from(queues).to_le_bytes());
        // One more, for requests of high priority.
        let count = usize::from(queues) + 1;
        let connection = Connection::new(path, count, dma)?;
        Ok(Self::of(
            DeviceKind::FileSystem,
            connection,
            config,
            vec![queue_size; count],
        ))
    }

    fn of(kind: DeviceKind, connection: Connection, config: Vec<u8>, queues: Vec<u16>) -> Self {
        Self {
            kind,
            features: connection.features(),
            config,
            queues,
            connection: Arc::new(Mutex::new(connection)),
        }
    }
}

impl VirtioDevice for VhostUser {
    fn kind(&self) -> DeviceKind {
        self.kind
    }

    fn features(&self) -> u64 {
        self.features & DEVICE_BITS
    }

    fn transport_features(&self) -> u64 {
        // Queues are reset one by one here, and need nothing of the process.
        self.features | 1 << VIRTIO_F_RING_RESET
    }

    fn queue_sizes(&self) -> Vec<u16> {
        self.queues.clone()
    }

    fn config(&self) -> Vec<u8> {
        self.config.clone()
    }

    fn handler(&self, index: u16) -> Box<dyn QueueHandler> {
        let event = || EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK);
        Box::new(Handler {
            remote: event().and_then(|kick| {
                Ok(Remote {
                    index: index.into(),
                    kick,
                    call: event()?,
                    process: lock(&self.connection).as_raw_fd(),
                    connection: Arc::clone(&self.connection),
                })
            }),
        })
    }
}

impl fmt::Debug for VhostUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VhostUser")
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

/// A queue's handler, that has another process handle.
struct Handler {
    remote: io::Result<Remote>,
}

struct Remote {
    index: usize,
    kick: EventFd,
    call: EventFd,
    process: RawFd,
    connection: Arc<Mutex<Connection>>,
}

impl QueueHandler for Handler {
    fn handle(&mut self, _chain: &Chain<'_>) -> Result<Handled, ChainError> {
        // Only where the host had no events for this queue.
        Ok(Handled::Used(0))
    }

    fn remote(&mut self) -> Option<&mut dyn RemoteQueue> {
        self.remote.as_mut().ok().map(|remote| remote as &mut dyn RemoteQueue)
    }
}

impl RemoteQueue for Remote {
    fn start(&mut self, queue: &QueueState, features: u64) -> io::Result<()> {
        lock(&self.connection).start(self.index, queue, features, &self.kick, &self.call)
    }

    fn kick(&self) {
        // Fails only if it was kicked 2⁶⁴ times and takes no notice.
        let _ = self.kick.write(1);
    }

    fn called(&self) -> &EventFd {
        &self.call
    }

    fn process(&self) -> RawFd {
        self.process
    }

    fn stop(&mut self) -> io::Result<u16> {
        lock(&self.connection).stop(self.index)
    }
}

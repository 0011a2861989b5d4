//! One process, and what it was told.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_queue::QueueState;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use super::{PATIENCE, VhostUserError};
use crate::virtio::Dma;
use crate::virtio::dma::shared_file;

/// What is made use of.
const WANTED: VhostUserProtocolFeatures = VhostUserProtocolFeatures::MQ.union(VhostUserProtocolFeatures::CONFIG);

/// A process that serves queues.
pub(super) struct Connection {
    path: PathBuf,
    frontend: Frontend,
    features: u64,
    protocol: VhostUserProtocolFeatures,
    dma: Dma,
    /// The features that the driver has accepted, as the process was told.
    told: Option<u64>,
    /// A process that did not answer once may answer the wrong question next.
    failed: bool,
}

/// What the protocol's implementation says, as an error of the host's.
fn io_error(error: vhost::Error) -> io::Error {
    io::Error::other(error)
}

impl Connection {
    /// Connects to the process at `path`, which is to serve `queues` queues.
    pub fn new(path: &Path, queues: usize, dma: &Dma) -> Result<Self, VhostUserError> {
        let process = |source| VhostUserError::Process {
            path: path.to_owned(),
            source,
        };
        let connect = || {
            let stream = crate::socket::connect(path)?;
            stream.set_nonblocking(false)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            io::Result::Ok(stream)
        };
        let mut this = Self::agree(path, connect().map_err(process)?, queues, dma).map_err(process)?;
        if this.features & 1 << VIRTIO_F_VERSION_1 == 0 {
            return Err(VhostUserError::Legacy { path: path.to_owned() });
        }
        if this.protocol.contains(VhostUserProtocolFeatures::MQ) {
            let found = this.frontend.get_queue_num().map_err(io_error).map_err(process)?;
            if found < queues as u64 {
                return Err(VhostUserError::Queues {
                    path: path.to_owned(),
                    found,
                    wanted: queues,
                });
            }
        }
        Ok(this)
    }

    fn agree(path: &Path, stream: UnixStream, queues: usize, dma: &Dma) -> io::Result<Self> {
        let mut frontend = Frontend::from_stream(stream, queues as u64);
        frontend.set_owner().map_err(io_error)?;
        let features = frontend.get_features().map_err(io_error)?;
        let mut protocol = VhostUserProtocolFeatures::empty();
        if features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() != 0 {
            protocol = frontend.get_protocol_features().map_err(io_error)? & WANTED;
            frontend.set_protocol_features(protocol).map_err(io_error)?;
        }
        Ok(Self {
            path: path.to_owned(),
            frontend,
            features,
            protocol,
            dma: dma.clone(),
            told: None,
            failed: false,
        })
    }

    /// What the process offers.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// The device configuration structure.
    pub fn config(&mut self, length: usize) -> Result<Vec<u8>, VhostUserError> {
        if !self.protocol.contains(VhostUserProtocolFeatures::CONFIG) {
            return Err(VhostUserError::Config {
                path: self.path.clone(),
            });
        }
        let room = vec![0; length];
        let flags = VhostUserConfigFlags::empty();
        let told = self.frontend.get_config(0, length as u32, flags, &room);
        let (_, config) = told.map_err(|error| VhostUserError::Process {
            path: self.path.clone(),
            source: io_error(error),
        })?;
        Ok(config)
    }

    /// Has the process serve queue `index`.
    pub fn start(
        &mut self,
        index: usize,
        queue: &QueueState,
        features: u64,
        kick: &EventFd,
        call: &EventFd,
    ) -> io::Result<()> {
        self.once(|this| this.try_start(index, queue, features, kick, call))
    }

    fn try_start(
        &mut self,
        index: usize,
        queue: &QueueState,
        features: u64,
        kick: &EventFd,
        call: &EventFd,
    ) -> io::Result<()> {
        let own = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() & self.features;
        let features = features & self.features | own;
        if self.told != Some(features) {
            self.frontend.set_features(features).map_err(io_error)?;
            self.share_memory()?;
            self.told = Some(features);
        }
        let frontend = &mut self.frontend;
        frontend.set_vring_num(index, queue.size).map_err(io_error)?;
        frontend.set_vring_base(index, queue.next_avail).map_err(io_error)?;
        let rings = VringConfigData {
            queue_max_size: queue.max_size,
            queue_size: queue.size,
            flags: 0,
            desc_table_addr: queue.desc_table,
            used_ring_addr: queue.used_ring,
            avail_ring_addr: queue.avail_ring,
            log_addr: None,
        };
        frontend.set_vring_addr(index, &rings).map_err(io_error)?;
        frontend.set_vring_call(index, call).map_err(io_error)?;
        frontend.set_vring_kick(index, kick).map_err(io_error)?;
        if own != 0 {
            frontend.set_vring_enable(index, true).map_err(io_error)?;
        }
        Ok(())
    }

    /// Has the process let go of queue `index`; which available buffer it would have taken next.
    pub fn stop(&mut self, index: usize) -> io::Result<u16> {
        self.once(|this| {
            if VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() & this.features != 0 {
                this.frontend.set_vring_enable(index, false).map_err(io_error)?;
            }
            // In a ring that is not packed the upper half is nothing.
            let base = this.frontend.get_vring_base(index).map_err(io_error)?;
            Ok(base as u16)
        })
    }

    /// Gives the process guest memory. Addresses of this process mean nothing to it: they are the guest's.
    fn share_memory(&self) -> io::Result<()> {
        let mut regions = Vec::new();
        for region in self.dma.memory().iter() {
            let address = region.start_addr().0;
            let file = shared_file(region).ok_or_else(|| {
                io::Error::other(
                    "guest memory is not shared; a machine with such a device from its beginning shares it",
                )
            })?;
            regions.push(VhostUserMemoryRegionInfo {
                guest_phys_addr: address,
                memory_size: region.len(),
                userspace_addr: address,
                mmap_offset: file.start(),
                mmap_handle: file.file().as_raw_fd(),
            });
        }
        self.frontend.set_mem_table(&regions).map(drop).map_err(io_error)
    }

    /// Speaks to the process, unless it has failed before.
    fn once<T>(&mut self, speak: impl FnOnce(&mut Self) -> io::Result<T>) -> io::Result<T> {
        if self.failed {
            return Err(io::ErrorKind::NotConnected.into());
        }
        let said = speak(self);
        self.failed = said.is_err();
        said
    }
}

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> RawFd {
        self.frontend.as_raw_fd()
    }
}

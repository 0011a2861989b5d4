//! The first words with a process: which version, which device, which memory, which interrupts.
//!
//! One question after the other, each answered before the next: nobody waits for this but whoever adds the device, and no longer
//! than [`PATIENCE`] in all. Afterwards the socket belongs to a [`Link`](super::link::Link).

use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use serde::Deserialize;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::error::VfioUserError;
use super::wire::{self, Body, Inbox, RegionAccess, command, flag, message, words};
use crate::pci::msix::MAX_VECTORS;
use crate::pci::spec::CONFIG_LENGTH;
use crate::socket;

/// How long a process may take to describe its device.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// The most file descriptors that are sent with one message.
const MAX_FDS: usize = 16;
/// EAGAIN: what a process is told that wants memory before it has any.
const NOT_YET: u32 = 11;
/// What this side can take: data of one message, and no file descriptors that would be of use.
const CAPABILITIES: &[u8] =
    b"{\"capabilities\":{\"max_msg_fds\":16,\"max_data_xfer_size\":1048576,\"max_dma_maps\":64,\"pgsizes\":4096}}\0";

/// A part of a device: a BAR, or its configuration space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Region {
    /// Bytes; 0 if the device has none.
    pub size: u64,
    pub readable: bool,
    pub writable: bool,
}

/// What a process says its device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Description {
    pub regions: [Region; wire::PCI_REGIONS as usize],
    /// The first 256 bytes of its configuration space, as they were before anybody wrote there.
    pub config: [u8; CONFIG_LENGTH],
    /// Vectors of MSI-X, 0 without.
    pub vectors: u16,
    /// Whether it wants to know which of them are masked.
    pub maskable: bool,
}

/// What a process says about itself.
#[derive(Default, Deserialize)]
#[serde(default)]
struct VersionData {
    capabilities: Capabilities,
}

/// Of its capabilities, those that matter to one who sends little.
#[derive(Deserialize)]
#[serde(default)]
struct Capabilities {
    max_msg_fds: u64,
}

impl Default for Capabilities {
    fn default() -> Self {
        Self { max_msg_fds: 1 }
    }
}

/// A part of guest memory that a process may map.
pub(super) struct Mapping {
    pub address: u64,
    pub length: u64,
    /// The file and the offset in it; without, the process asks by messages.
    pub file: Option<(RawFd, u64)>,
}

/// A connection in its beginning.
pub(super) struct Session<'a> {
    stream: UnixStream,
    inbox: Inbox,
    last_id: u16,
    max_fds: usize,
    deadline: Instant,
    /// Readable as soon as nobody wants this any more.
    abort: BorrowedFd<'a>,
}

impl<'a> Session<'a> {
    /// Connects to the socket at `path`.
    pub fn connect(path: &Path, abort: BorrowedFd<'a>) -> Result<Self, VfioUserError> {
        let stream = socket::connect(path).map_err(|error| VfioUserError::Connect {
            path: path.to_owned(),
            source: error.into(),
        })?;
        Self::on(stream, abort)
    }

    /// Talks on `stream`.
    pub fn on(stream: UnixStream, abort: BorrowedFd<'a>) -> Result<Self, VfioUserError> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            inbox: Inbox::default(),
            last_id: 0,
            max_fds: 1,
            deadline: Instant::now() + PATIENCE,
            abort,
        })
    }

    /// The socket, and what has arrived on it behind the last answer.
    pub fn into_parts(self) -> (UnixStream, Inbox) {
        (self.stream, self.inbox)
    }

    /// Agrees on a version, resets the device and asks what it is.
    pub fn describe(&mut self) -> Result<Description, VfioUserError> {
        self.agree()?;
        let info = self.call(command::DEVICE_GET_INFO, &[&words([16, 0, 0, 0])], &[])?;
        let mut body = Body(&info);
        let (Some(_), Some(flags), Some(regions), Some(irqs)) = (body.u32(), body.u32(), body.u32(), body.u32()) else {
            return Err(VfioUserError::lie("device info is too short"));
        };
        if flags & wire::device::PCI == 0 || regions < wire::PCI_REGIONS {
            let what = format!("it is no PCI device (flags {flags:#x}, {regions} regions)");
            return Err(VfioUserError::Unusable { what });
        }
        if flags & wire::device::RESET != 0 {
            self.call(command::DEVICE_RESET, &[], &[])?;
        }
        let mut description = Description {
            regions: [Region::default(); wire::PCI_REGIONS as usize],
            config: [0; CONFIG_LENGTH],
            vectors: 0,
            maskable: false,
        };
        for (region, index) in description.regions.iter_mut().zip(0..) {
            *region = self.region(index)?;
        }
        if irqs > wire::MSIX_IRQ {
            (description.vectors, description.maskable) = self.vectors()?;
        }
        description.config = self.config(description.regions[wire::CONFIG_REGION as usize].size)?;
        Ok(description)
    }

    fn agree(&mut self) -> Result<(), VfioUserError> {
        let (major, minor) = wire::VERSION;
        let version = [major.to_le_bytes(), minor.to_le_bytes()].concat();
        let reply = self.call(command::VERSION, &[&version, CAPABILITIES], &[])?;
        let mut body = Body(&reply);
        let (Some(major), Some(minor)) = (body.u16(), body.u16()) else {
            return Err(VfioUserError::lie("its version is too short"));
        };
        if major != wire::VERSION.0 || minor > wire::VERSION.1 {
            return Err(VfioUserError::Version { major, minor });
        }
        let text = body.rest();
        let text = text.strip_suffix(&[0]).unwrap_or(text);
        if !text.is_empty() {
            let data: VersionData = serde_json::from_slice(text)
                .map_err(|error| VfioUserError::lie(format!("its capabilities are none: {error}")))?;
            self.max_fds = usize::try_from(data.capabilities.max_msg_fds)
                .unwrap_or(MAX_FDS)
                .clamp(1, MAX_FDS);
        }
        Ok(())
    }

    fn region(&mut self, index: u32) -> Result<Region, VfioUserError> {
        // No room for capabilities: what can be mapped is read and written by messages all the same.
        let ask = words([32, 0, index, 0, 0, 0, 0, 0]);
        let reply = self.call(command::DEVICE_GET_REGION_INFO, &[&ask], &[])?;
        let mut body = Body(&reply);
        let (Some(_), Some(flags), Some(own), Some(_), Some(size)) =
            (body.u32(), body.u32(), body.u32(), body.u32(), body.u64())
        else {
            return Err(VfioUserError::lie("region info is too short"));
        };
        if own != index {
            let what = format!("asked for region {index}, it describes region {own}");
            return Err(VfioUserError::lie(what));
        }
        Ok(Region {
            size,
            readable: flags & wire::region::READ != 0,
            writable: flags & wire::region::WRITE != 0,
        })
    }

    fn vectors(&mut self) -> Result<(u16, bool), VfioUserError> {
        let ask = words([16, 0, wire::MSIX_IRQ, 0]);
        let reply = self.call(command::DEVICE_GET_IRQ_INFO, &[&ask], &[])?;
        let mut body = Body(&reply);
        let (Some(_), Some(flags), Some(_), Some(count)) = (body.u32(), body.u32(), body.u32(), body.u32()) else {
            return Err(VfioUserError::lie("interrupt info is too short"));
        };
        if flags & wire::irq::EVENTFD == 0 {
            return Ok((0, false));
        }
        let count = u16::try_from(count)
            .ok()
            .filter(|count| *count <= MAX_VECTORS)
            .ok_or_else(|| VfioUserError::lie(format!("it has {count} vectors of MSI-X")))?;
        Ok((count, flags & wire::irq::MASKABLE != 0))
    }

    /// The first 256 bytes of configuration space, in accesses that any device knows.
    fn config(&mut self, size: u64) -> Result<[u8; CONFIG_LENGTH], VfioUserError> {
        let mut config = [0; CONFIG_LENGTH];
        if size < CONFIG_LENGTH as u64 {
            let what = format!("its configuration space has {size} bytes; expected at least {CONFIG_LENGTH}");
            return Err(VfioUserError::Unusable { what });
        }
        for (part, offset) in config.chunks_exact_mut(4).zip((0..).step_by(4)) {
            let access = RegionAccess {
                offset,
                region: wire::CONFIG_REGION,
                count: 4,
            };
            let reply = self.call(command::REGION_READ, &[&access.bytes()], &[])?;
            match reply.strip_prefix(&access.bytes()) {
                Some(data) if data.len() == part.len() => part.copy_from_slice(data),
                _ => {
                    return Err(VfioUserError::lie(
                        "configuration space is answered with something else",
                    ));
                }
            }
        }
        Ok(config)
    }

    /// Writes two bytes of configuration space.
    pub fn write_config(&mut self, at: u8, value: u16) -> Result<(), VfioUserError> {
        let access = RegionAccess {
            offset: at.into(),
            region: wire::CONFIG_REGION,
            count: 2,
        };
        let body = [&access.bytes()[..], &value.to_le_bytes()];
        self.call(command::REGION_WRITE, &body, &[]).map(drop)
    }

    /// Gives the process a part of guest memory.
    pub fn map(&mut self, mapping: &Mapping) -> Result<(), VfioUserError> {
        let (fd, offset) = mapping
            .file
            .as_ref()
            .map_or((None, 0), |(fd, offset)| (Some(*fd), *offset));
        let mut ask = words([32, wire::DMA_READ_WRITE]);
        for word in [offset, mapping.address, mapping.length] {
            ask.extend(word.to_le_bytes());
        }
        self.call(command::DMA_MAP, &[&ask], fd.as_slice()).map(drop)
    }

    /// Gives the process the events of the first vectors of MSI-X.
    pub fn set_events(&mut self, events: &[RawFd]) -> Result<(), VfioUserError> {
        let flags = wire::set_irqs::DATA_EVENTFD | wire::set_irqs::ACTION_TRIGGER;
        let mut start = 0;
        for events in events.chunks(self.max_fds) {
            let count = events.len() as u32;
            let ask = words([20, flags, wire::MSIX_IRQ, start, count]);
            self.call(command::DEVICE_SET_IRQS, &[&ask], events)?;
            start += count;
        }
        Ok(())
    }

    /// Sends a command, and waits for its reply's body.
    fn call(&mut self, command: u16, parts: &[&[u8]], fds: &[RawFd]) -> Result<Vec<u8>, VfioUserError> {
        // 0 is left to those that are not to be replied to.
        self.last_id = self.last_id.checked_add(1).unwrap_or(1);
        let id = self.last_id;
        self.send(&message(id, command, 0, 0, parts), fds, command)?;
        loop {
            while let Some((header, body)) = self.inbox.next()? {
                if !header.is_reply() {
                    let (id, asked) = (header.id, header.command);
                    if header.flags & flag::NO_REPLY == 0 {
                        let refusal = message(id, asked, flag::REPLY | flag::ERROR, NOT_YET, &[]);
                        self.send(&refusal, &[], asked)?;
                    }
                    continue;
                }
                if (header.id, header.command) != (id, command) {
                    let what = format!(
                        "command {command} with id {id} is answered by command {} with id {}",
                        header.command, header.id
                    );
                    return Err(VfioUserError::lie(what));
                }
                if header.is_error() {
                    let error = header.error;
                    return Err(VfioUserError::Refused { command, error });
                }
                return Ok(body.to_vec());
            }
            self.wait(PollFlags::IN, command)?;
            let mut bytes = [0; 4096];
            // File descriptors that come along are closed by the kernel: there is no room for them.
            match rustix::net::recv(&self.stream, &mut bytes, RecvFlags::empty()) {
                Ok((0, _)) => return Err(VfioUserError::Gone),
                Ok((length, _)) => self.inbox.push(&bytes[..length]),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(Errno::CONNRESET) => return Err(VfioUserError::Gone),
                Err(error) => return Err(VfioUserError::Socket { source: error.into() }),
            }
        }
    }

    fn send(&mut self, mut bytes: &[u8], mut fds: &[RawFd], command: u16) -> Result<(), VfioUserError> {
        while !bytes.is_empty() {
            match send(&self.stream, bytes, fds) {
                Ok(length) => {
                    bytes = &bytes[length..];
                    fds = &[];
                }
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT, command)?,
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(VfioUserError::Gone),
                Err(error) => return Err(VfioUserError::Socket { source: error.into() }),
            }
        }
        Ok(())
    }

    fn wait(&self, what: PollFlags, command: u16) -> Result<(), VfioUserError> {
        let left = self
            .deadline
            .checked_duration_since(Instant::now())
            .ok_or(VfioUserError::Silent { command })?;
        let mut fds = [
            PollFd::from_borrowed_fd(self.stream.as_fd(), what),
            PollFd::from_borrowed_fd(self.abort, PollFlags::IN),
        ];
        let left = Timespec::try_from(left).unwrap_or_default();
        match poll(&mut fds, Some(&left)) {
            Ok(0) => Err(VfioUserError::Silent { command }),
            Ok(_) if !fds[1].revents().is_empty() => Err(VfioUserError::Ended),
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(VfioUserError::Socket { source: error.into() }),
        }
    }
}

/// Sends as many of `bytes` as the socket takes, with `fds`. The socket does not block.
pub(super) fn send(stream: &UnixStream, bytes: &[u8], fds: &[RawFd]) -> Result<usize, Errno> {
    if fds.is_empty() {
        return rustix::net::send(stream, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
    }
    let sent = stream.send_with_fds(&[bytes], fds);
    sent.map_err(|error| Errno::from_raw_os_error(error.errno()))
}

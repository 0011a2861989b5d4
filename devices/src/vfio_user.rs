//! PCI devices in other processes, spoken to with the vfio-user protocol (version 0.1) over a UNIX socket.
//!
//! # Purpose
//! A [`UserDevice`] is the function that a guest sees; the device is a process of its own, which serves the socket: started by
//! somebody else, in any language, under any user, and free to crash. What a guest's driver needs of it goes there and back as
//! messages; guest memory is given to it as files to map, interrupts as events to signal.
//!
//! # Invariants
//! - No vCPU waits in here. A read is a message that goes out at once, and a [`Ticket`](crate::Ticket) until its reply comes; a
//!   write is posted.
//! - A process that dies, stops, or breaks the protocol costs the guest this device and nothing else: what is owed is answered
//!   with all ones if it dies or lies, and waits if it is only silent. One that died is looked for again, and reset when it is
//!   there; one that lied is not spoken to any more.
//! - BARs, the Command register, the list of capabilities and MSI-X are ours, as for any other [`Function`]; the rest of
//!   configuration space is the device's. It is told of the Command register and of MSI-X's control word.
//! - An unmasked vector is unmasked when the process knows, if it wants to know; a masked one that is signalled is pending.
//!
//! # What is not there
//! I/O BARs, INTx, MSI, the expansion ROM and extended capabilities. Regions that a process offers to map are read and written
//! by messages all the same, which is exact and slower. Its state is not ours to save: a machine that is restored finds the
//! device as its process has it, after a reset.
//!
//! # What a process can do
//! It maps all of guest memory, and reads and writes there as it likes, also while the machine is paused: whoever takes snapshots
//! has it quiet. It reaches nothing else.

mod error;
mod layout;
mod link;
mod session;
#[cfg(test)]
mod tests;
mod wire;

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vm_memory::{FileOffset, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::Response;
use crate::pci::{ConfigSpace, Function, Messages, Msix, Registers, spec};
use crate::sys;
use crate::virtio::Dma;
use crate::virtio::dma::shared_file;

pub use error::VfioUserError;
use layout::Layout;
use link::Link;
use session::{Description, Mapping, Session};

/// Messages that somebody else sends in the function's name, by signalling an event.
pub trait EventMessages: Messages {
    /// The event of `vector`, which sends what [`route`](Messages::route) said last. It can be given to another process.
    ///
    /// # Errors
    /// The host's, if it has no more.
    fn event(&self, vector: u16) -> io::Result<EventFd>;
}

/// Whether `event` was signalled and nobody has taken notice.
#[must_use]
pub fn is_signalled(event: &EventFd) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(sys::borrow(event), PollFlags::IN)];
    matches!(poll(&mut fds, Some(&Timespec::default())), Ok(1..))
}

/// A PCI device in another process.
pub struct UserDevice {
    name: String,
    link: Link,
    layout: Layout,
    description: Description,
    told: Arc<Told>,
    /// Where MSI-X's capability is, if the device has it.
    msix: OnceLock<u8>,
}

/// Registers that the process was told of, to be told again when it comes back.
#[derive(Default)]
struct Told {
    command: AtomicU16,
    msix: AtomicU16,
}

/// Guest memory, as a process is given it.
struct Share {
    address: u64,
    length: u64,
    file: Option<FileOffset>,
}

/// Everything that a new connection begins with.
struct Dialler {
    path: PathBuf,
    memory: Vec<Share>,
    events: Vec<EventFd>,
    told: Arc<Told>,
    msix: Option<u8>,
}

impl UserDevice {
    /// The device of the process that serves the socket at `path`, as a PCI function called `name`. The process may reach all
    /// memory of `dma`, and signals the events of `events`. It is asked for no longer than ten seconds.
    ///
    /// # Errors
    /// [`VfioUserError`].
    pub fn connect(
        name: impl Into<String>,
        path: &Path,
        dma: &Dma,
        events: Arc<dyn EventMessages>,
    ) -> Result<(Arc<Self>, Function), VfioUserError> {
        let name = name.into();
        let host = |source| VfioUserError::Host {
            name: name.clone(),
            source,
        };
        let mut link = Link::new(&name, dma.clone()).map_err(host)?;
        let mut session = Session::connect(path, link.bell().as_fd())?;
        let description = session.describe()?;
        let (layout, space) = Layout::new(&description)?;
        let vectors = layout.msix.map_or(0, |msix| msix.vectors);
        let told = Arc::new(Told::default());
        let dialler = Dialler {
            path: path.to_owned(),
            memory: shares(dma),
            events: (0..vectors)
                .map(|vector| events.event(vector))
                .collect::<Result<_, _>>()
                .map_err(host)?,
            told: Arc::clone(&told),
            msix: layout.msix.map(|msix| msix.at),
        };
        dialler.equip(&mut session)?;
        let (stream, inbox) = session.into_parts();
        let own = description.clone();
        let redial = Box::new(move |bell: &OwnedFd| {
            let mut session = Session::connect(&dialler.path, bell.as_fd())?;
            layout::same(&own, &session.describe()?)?;
            dialler.equip(&mut session)?;
            Ok(session.into_parts())
        });
        link.start(stream, inbox, redial).map_err(host)?;

        let device = Arc::new(Self {
            name: name.clone(),
            link,
            description,
            told,
            msix: layout.msix.map_or_else(OnceLock::new, |msix| msix.at.into()),
            layout,
        });
        let registers = Arc::clone(&device) as Arc<dyn Registers>;
        let mut function = Function::new(name, space, registers);
        if let Some(place) = device.layout.msix {
            let msix = Arc::new(Msix::new(place.vectors, events));
            function = function
                .with_msix_at(msix, place.place, place.at)
                .map_err(|error| VfioUserError::Unusable {
                    what: error.to_string(),
                })?;
        }
        Ok((device, function))
    }

    /// The device's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Stops (true) or continues (false) what the process does by messages: its accesses to guest memory wait.
    pub fn set_paused(&self, paused: bool) {
        self.link.set_paused(paused);
    }

    /// Whether the process is there.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.link.is_connected()
    }

    /// Tells the process what two bytes of configuration space are now.
    fn tell(&self, config: &ConfigSpace, at: u8, of: &AtomicU16) -> Response {
        let value = config.u16(at);
        of.store(value, Relaxed);
        self.link.write(wire::CONFIG_REGION, at.into(), 2, value.into())
    }
}

impl Dialler {
    /// Gives the process what it needs.
    fn equip(&self, session: &mut Session<'_>) -> Result<(), VfioUserError> {
        for share in &self.memory {
            session.map(&Mapping {
                address: share.address,
                length: share.length,
                file: share.file.as_ref().map(|file| (file.file().as_raw_fd(), file.start())),
            })?;
        }
        let events: Vec<_> = self.events.iter().map(AsRawFd::as_raw_fd).collect();
        session.set_events(&events)?;
        for (at, told) in [
            (Some(spec::COMMAND), &self.told.command),
            (self.msix.map(|at| at + 2), &self.told.msix),
        ] {
            if let (Some(at), value @ 1..) = (at, told.load(Relaxed)) {
                session.write_config(at, value)?;
            }
        }
        Ok(())
    }
}

/// The parts of guest memory, with their files where another process can map them.
fn shares(dma: &Dma) -> Vec<Share> {
    let regions = dma.memory().iter();
    regions
        .map(|region| Share {
            address: region.start_addr().0,
            length: region.len(),
            file: shared_file(region).cloned(),
        })
        .collect()
}

impl Registers for UserDevice {
    fn read(&self, bar: u8, offset: u64, size: u8) -> Response {
        match self.description.regions.get(usize::from(bar)) {
            Some(region) if region.readable && within(offset, size, region.size) => {
                self.link.read(bar.into(), offset, size)
            }
            _ => Response::Done(u64::MAX),
        }
    }

    fn write(&self, bar: u8, offset: u64, size: u8, value: u64) -> Response {
        match self.description.regions.get(usize::from(bar)) {
            Some(region) if region.writable && within(offset, size, region.size) => {
                self.link.write(bar.into(), offset, size, value)
            }
            _ => Response::Done(0),
        }
    }

    fn set_master(&self, master: bool) {
        self.link.set_master(master);
    }

    fn own_config_read(&self, offset: u64, size: u8) -> Option<(u64, Response)> {
        let theirs = self.layout.theirs(offset, size);
        (theirs != 0).then(|| (theirs, self.link.read(wire::CONFIG_REGION, offset, size)))
    }

    fn own_config_write(&self, config: &ConfigSpace, offset: u64, size: u8, value: u64) -> Response {
        let touches = |at: u8| offset < u64::from(at) + 2 && u64::from(at) < offset.saturating_add(size.into());
        let mut response = Response::Done(0);
        if touches(spec::COMMAND) {
            response = self.tell(config, spec::COMMAND, &self.told.command);
        }
        if let Some(control) = self.msix.get().map(|at| at + 2)
            && touches(control)
        {
            response = self.tell(config, control, &self.told.msix);
        }
        let theirs = self.layout.theirs(offset, size);
        if theirs == layout::ones(size) {
            response = self.link.write(wire::CONFIG_REGION, offset, size, value);
        } else if theirs != 0 {
            for (at, byte) in (0..size).zip(value.to_le_bytes()) {
                if theirs >> (8 * at) & 0xff != 0 {
                    let at = offset + u64::from(at);
                    response = self.link.write(wire::CONFIG_REGION, at, 1, byte.into());
                }
            }
        }
        response
    }

    fn set_masked(&self, vector: u16, masked: bool) -> Response {
        match self.description.maskable {
            true => self.link.set_masked(vector, masked),
            false => Response::Done(0),
        }
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        self.link.counters()
    }
}

/// Whether an access lies in a region of `length` bytes.
fn within(offset: u64, size: u8, length: u64) -> bool {
    offset.checked_add(size.into()).is_some_and(|end| end <= length)
}

//! Taps: network interfaces of the host whose frames a process reads and writes (Linux, Documentation/networking/tuntap.rst).
//!
//! # Invariants
//! - A tap that was there before is left as it was found but for what was asked for; one that was not goes when it is dropped.
//! - Every queue is attached, or detached, as the last [`set_pairs`](Link::set_pairs) has it.

use std::fs::{File, OpenOptions};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Mutex;

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::header::HEADER;
use super::{LEAST_MTU, Link, MOST_PAIRS, MacAddress};
use crate::sync::lock;
use crate::sys::{self, InterfaceCall, InterfaceRequest, NAME_LENGTH};

/// What makes taps.
const MAKER: &str = "/dev/net/tun";
/// The name of a tap that has been given none: the kernel counts.
const NAMELESS: &str = "vmtap%d";
/// Type of a hardware address, ARPHRD_ETHER.
const ETHERNET: u16 = 1;

/// A tap to be opened or made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TapOptions {
    /// Its name; without one, a tap is made and the host names it.
    pub name: Option<String>,
    /// Queue pairs.
    pub pairs: u16,
    /// The host's address on it.
    pub ip: Option<Ipv4Addr>,
    /// The mask of that address.
    pub mask: Option<Ipv4Addr>,
    /// The host's hardware address on it.
    pub host_mac: Option<MacAddress>,
    /// The guest's. Without a `host_mac`, a tap that was not there before gets one that follows from it, and is the same
    /// wherever the guest goes on: a guest knows its neighbours by their hardware addresses.
    pub guest_mac: Option<MacAddress>,
    /// The largest payload of a frame, in bytes.
    pub mtu: Option<u16>,
}

/// A tap that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// No interface can be called that.
    #[error("{name:?} is no name of a network interface; expected 1 to 15 characters without space, / or :")]
    Name {
        /// The name.
        name: String,
    },
    /// There are no such numbers of pairs.
    #[error("tap {name} cannot have {pairs} queue pairs; expected 1 to 64")]
    Pairs {
        /// The tap.
        name: String,
        /// How many.
        pairs: usize,
    },
    /// What makes taps cannot be opened.
    #[error("{} cannot be opened, which taps come from", path.display())]
    Maker {
        /// Its path.
        path: &'static Path,
        /// Why.
        source: io::Error,
    },
    /// This user may not.
    #[error("no permission for tap {name}: it takes the capability CAP_NET_ADMIN, or a tap that belongs to this user")]
    Permission {
        /// The tap.
        name: String,
        /// What the host says.
        source: io::Error,
    },
    /// Somebody else has it.
    #[error("tap {name} is busy: another process uses it")]
    Busy {
        /// The tap.
        name: String,
        /// What the host says.
        source: io::Error,
    },
    /// It is another kind of interface.
    #[error("the interface {name} is not a tap that {} can use", if *pairs > 1 { "several queues" } else { "one queue" })]
    Kind {
        /// The interface.
        name: String,
        /// Queue pairs.
        pairs: u16,
        /// What the host says.
        source: io::Error,
    },
    /// The host refuses something else.
    #[error("tap {name}: the host refuses {what}")]
    Refused {
        /// The tap.
        name: String,
        /// What it refuses.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A file descriptor is not one of a tap.
    #[error("file descriptor {index} of a network card is not one of a tap")]
    NoTap {
        /// Which, from 0 on.
        index: usize,
        /// What the host says.
        source: io::Error,
    },
    /// A file descriptor is one of a tap of another kind, or of another tap than the first.
    #[error("file descriptor {index} of a network card is one of {name}, {problem}")]
    Unfit {
        /// Which, from 0 on.
        index: usize,
        /// The interface.
        name: String,
        /// What is the matter.
        problem: &'static str,
    },
}

/// A tap.
#[derive(Debug)]
pub struct Tap {
    name: String,
    queues: Vec<OwnedFd>,
    /// Which of them are attached: the first so many. None where the tap has but one for ever.
    attached: Option<Mutex<u16>>,
}

impl Tap {
    /// Opens or makes the tap that `options` describe, and brings it up.
    ///
    /// # Errors
    /// [`TapError`].
    pub fn open(options: &TapOptions) -> Result<Self, TapError> {
        let wanted = options.name.as_deref().unwrap_or(NAMELESS);
        if options.name.as_deref().is_some_and(|name| !is_name(name)) {
            return Err(TapError::Name {
                name: wanted.to_owned(),
            });
        }
        if !(1..=MOST_PAIRS).contains(&options.pairs) {
            return Err(TapError::Pairs {
                name: wanted.to_owned(),
                pairs: options.pairs.into(),
            });
        }
        let (first, name, several) = first_queue(wanted, options.pairs)?;
        let mut queues = vec![first];
        while queues.len() < usize::from(options.pairs) {
            queues.push(
                attach(&name, true)
                    .map_err(|error| attach_error(&name, options.pairs, error))?
                    .0,
            );
        }
        let tap = Self {
            name,
            queues,
            attached: several.then(|| Mutex::new(options.pairs)),
        };
        tap.set_up()?;
        tap.configure(options)?;
        Ok(tap)
    }

    /// A tap of which `queues` were opened already, all of the same one: it must have VNET_HDR and no packet information.
    ///
    /// # Errors
    /// [`TapError`] naming the descriptor by its place.
    pub fn from_queues(queues: Vec<OwnedFd>) -> Result<Self, TapError> {
        let mut first: Option<(String, i32)> = None;
        for (index, queue) in queues.iter().enumerate() {
            let mut request = InterfaceRequest::default();
            let asked = sys::interface(queue.as_fd(), InterfaceCall::Attached, &mut request);
            asked.map_err(|source| TapError::NoTap { index, source })?;
            let (name, flags) = (name_of(&request), flags_of(&request));
            let has = |flag: i32| flags & flag != 0;
            let problem = if !has(libc::IFF_TAP) {
                Some("which carries packets and not frames")
            } else if !has(libc::IFF_VNET_HDR) || !has(libc::IFF_NO_PI) {
                Some("which was not opened with IFF_VNET_HDR and IFF_NO_PI")
            } else if first.as_ref().is_some_and(|(first, _)| *first != name) {
                Some("and the first of another tap")
            } else {
                None
            };
            if let Some(problem) = problem {
                return Err(TapError::Unfit { index, name, problem });
            }
            let unblocked = rustix::io::ioctl_fionbio(queue, true);
            unblocked.map_err(|error| TapError::NoTap {
                index,
                source: error.into(),
            })?;
            first.get_or_insert((name, flags));
        }
        let pairs = queues.len();
        let (name, flags) = first.unwrap_or_default();
        let count = u16::try_from(pairs).unwrap_or(u16::MAX);
        if !(1..=MOST_PAIRS).contains(&count) {
            return Err(TapError::Pairs { name, pairs });
        }
        let several = flags & libc::IFF_MULTI_QUEUE != 0;
        let tap = Self {
            name,
            queues,
            attached: several.then(|| Mutex::new(count)),
        };
        tap.set_up()?;
        Ok(tap)
    }

    /// The interface's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    fn set_up(&self) -> Result<(), TapError> {
        for queue in &self.queues {
            let set = sys::set_header_length(queue.as_fd(), HEADER as i32);
            set.map_err(|source| self.refused("headers of 12 bytes", source))?;
        }
        Ok(())
    }

    fn configure(&self, options: &TapOptions) -> Result<(), TapError> {
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None);
        let socket = socket.map_err(|error| self.refused("a socket", error.into()))?;
        let call = |call: InterfaceCall, what: &'static str, data: &[u8]| {
            let mut request = self.request();
            request.data[..data.len()].copy_from_slice(data);
            match sys::interface(socket.as_fd(), call, &mut request) {
                Ok(()) => Ok(request),
                Err(error) if error.raw_os_error() == Some(Errno::PERM.raw_os_error()) => Err(TapError::Permission {
                    name: self.name.clone(),
                    source: error,
                }),
                Err(error) => Err(self.refused(what, error)),
            }
        };
        let made_for = if self.goes_with_its_files() {
            options.guest_mac
        } else {
            None
        };
        if let Some(mac) = options.host_mac.or(made_for.map(MacAddress::of_host)) {
            let data = [&ETHERNET.to_ne_bytes()[..], &mac.bytes()].concat();
            call(InterfaceCall::SetHardwareAddress, "this hardware address", &data)?;
        }
        if let Some(mtu) = options.mtu {
            call(
                InterfaceCall::SetMtu,
                "this MTU",
                &i32::from(mtu.max(LEAST_MTU)).to_ne_bytes(),
            )?;
        }
        if let Some(ip) = options.ip {
            call(InterfaceCall::SetAddress, "this address", &socket_address(ip))?;
        }
        if let Some(mask) = options.mask {
            call(InterfaceCall::SetMask, "this mask", &socket_address(mask))?;
        }
        let is = call(InterfaceCall::Flags, "to tell its flags", &[])?;
        let flags = i16::from_ne_bytes([is.data[0], is.data[1]]);
        let up = flags | (libc::IFF_UP | libc::IFF_RUNNING) as i16;
        // Somebody who may use a tap may not always bring it up.
        if flags & libc::IFF_UP as i16 == 0 {
            call(InterfaceCall::SetFlags, "to be brought up", &up.to_ne_bytes())?;
        }
        Ok(())
    }

    /// Whether nobody made it to stay.
    fn goes_with_its_files(&self) -> bool {
        let mut request = InterfaceRequest::default();
        let asked = sys::interface(self.pair(0), InterfaceCall::Attached, &mut request);
        asked.is_ok() && flags_of(&request) & libc::IFF_PERSIST == 0
    }

    fn request(&self) -> InterfaceRequest {
        named(&self.name)
    }

    fn refused(&self, what: &'static str, source: io::Error) -> TapError {
        TapError::Refused {
            name: self.name.clone(),
            what,
            source,
        }
    }
}

impl Link for Tap {
    fn pairs(&self) -> u16 {
        self.queues.len() as u16
    }

    fn pair(&self, index: u16) -> BorrowedFd<'_> {
        // There are as many as `pairs` says; whoever asks for another gets the last.
        self.queues[usize::from(index).min(self.queues.len() - 1)].as_fd()
    }

    fn set_offloads(&self, offloads: u32) -> io::Result<()> {
        // They are the interface's, whichever of its queues is asked.
        sys::set_offloads(self.pair(0), offloads)
    }

    fn set_pairs(&self, pairs: u16) -> io::Result<()> {
        let Some(attached) = &self.attached else {
            return Ok(());
        };
        let mut attached = lock(attached);
        while *attached != pairs {
            let (index, flag, next) = if *attached < pairs {
                (*attached, libc::IFF_ATTACH_QUEUE, *attached + 1)
            } else {
                (*attached - 1, libc::IFF_DETACH_QUEUE, *attached - 1)
            };
            let mut request = InterfaceRequest::default();
            request.data[..2].copy_from_slice(&(flag as i16).to_ne_bytes());
            sys::interface(self.pair(index), InterfaceCall::SetQueue, &mut request)?;
            *attached = next;
        }
        Ok(())
    }
}

/// A file for one queue of the tap `name`, which has `several` or one; and the tap's name.
fn attach(name: &str, several: bool) -> Result<(OwnedFd, String), TapOrHost> {
    let flags = OFlags::NONBLOCK.bits() as i32;
    let file: File = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(MAKER)
        .map_err(|source| {
            TapOrHost::Tap(TapError::Maker {
                path: Path::new(MAKER),
                source,
            })
        })?;
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if several {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    let mut request = named(name);
    request.data[..2].copy_from_slice(&(flags as i16).to_ne_bytes());
    sys::interface(file.as_fd(), InterfaceCall::Attach, &mut request).map_err(TapOrHost::Host)?;
    Ok((file.into(), name_of(&request)))
}

/// An error that names its tap, or one that does not yet.
enum TapOrHost {
    Tap(TapError),
    Host(io::Error),
}

/// The first queue, the tap's name, and whether the tap has several.
fn first_queue(name: &str, pairs: u16) -> Result<(OwnedFd, String, bool), TapError> {
    let several = pairs > 1;
    match attach(name, several) {
        Ok((queue, name)) => Ok((queue, name, several)),
        // A tap of one pair may be one of a tap that could have more.
        Err(TapOrHost::Host(error)) if !several && error.kind() == io::ErrorKind::InvalidInput => {
            let again = attach(name, true).map_err(|_| attach_error(name, pairs, TapOrHost::Host(error)));
            again.map(|(queue, name)| (queue, name, true))
        }
        Err(error) => Err(attach_error(name, pairs, error)),
    }
}

fn attach_error(name: &str, pairs: u16, error: TapOrHost) -> TapError {
    let source = match error {
        TapOrHost::Tap(error) => return error,
        TapOrHost::Host(source) => source,
    };
    let name = name.to_owned();
    match source.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::PERM | Errno::ACCESS) => TapError::Permission { name, source },
        Some(Errno::BUSY) => TapError::Busy { name, source },
        Some(Errno::INVAL) => TapError::Kind { name, pairs, source },
        _ => TapError::Refused {
            name,
            what: "a queue of it",
            source,
        },
    }
}

fn is_name(name: &str) -> bool {
    let fits = (1..NAME_LENGTH).contains(&name.len());
    fits && name != "." && name != ".." && !name.contains(|c: char| c.is_whitespace() || "/:%\0".contains(c))
}

fn named(name: &str) -> InterfaceRequest {
    let mut request = InterfaceRequest::default();
    let bytes = name.as_bytes();
    // A name is shorter, with a zero behind it.
    let length = bytes.len().min(NAME_LENGTH - 1);
    request.name[..length].copy_from_slice(&bytes[..length]);
    request
}

fn name_of(request: &InterfaceRequest) -> String {
    let end = request.name.iter().position(|byte| *byte == 0).unwrap_or(NAME_LENGTH);
    String::from_utf8_lossy(&request.name[..end]).into_owned()
}

fn flags_of(request: &InterfaceRequest) -> i32 {
    u16::from_ne_bytes([request.data[0], request.data[1]]).into()
}

/// `struct sockaddr_in` of an address without a port.
fn socket_address(address: Ipv4Addr) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
    bytes[4..8].copy_from_slice(&address.octets());
    bytes
}

#[cfg(test)]
mod tests;

//! What can go wrong with a device in another process.

use std::io;
use std::path::PathBuf;

use super::wire::BadSize;

/// A device in another process that cannot be used, or not any more.
#[derive(Debug, thiserror::Error)]
pub enum VfioUserError {
    /// Nobody serves the socket.
    #[error("nobody serves {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the host says.
        source: io::Error,
    },
    /// The host has no thread, or no event descriptor.
    #[error("the host refused a thread or an event for {name}")]
    Host {
        /// The device.
        name: String,
        /// What it says.
        source: io::Error,
    },
    /// The socket fails.
    #[error("the socket fails")]
    Socket {
        /// What the host says.
        #[from]
        source: io::Error,
    },
    /// The process went, or closed its socket.
    #[error("the process is gone")]
    Gone,
    /// The process takes its time when it should describe its device.
    #[error("the process did not answer command {command} in time")]
    Silent {
        /// The command's number in the protocol.
        command: u16,
    },
    /// The process refuses something that its device cannot be used without.
    #[error("the process refuses command {command}, error {error}")]
    Refused {
        /// The command's number in the protocol.
        command: u16,
        /// An errno, or 0.
        error: u32,
    },
    /// It speaks another protocol.
    #[error("the process speaks version {major}.{minor} of vfio-user; expected 0.0 or 0.1")]
    Version {
        /// The major version.
        major: u16,
        /// The minor version.
        minor: u16,
    },
    /// A message is too short for what it has to say, too long, or says what cannot be.
    #[error("the process breaks the protocol: {what}")]
    Lie {
        /// In which way.
        what: String,
    },
    /// It is no PCI device, or one that cannot be shown to a guest.
    #[error("the device cannot be used: {what}")]
    Unusable {
        /// Why.
        what: String,
    },
    /// Another device came back than went.
    #[error("another device came back: {what}")]
    Another {
        /// What is different.
        what: &'static str,
    },
    /// The device is being taken away.
    #[error("the device is being taken away")]
    Ended,
}

impl VfioUserError {
    pub(super) fn lie(what: impl Into<String>) -> Self {
        Self::Lie { what: what.into() }
    }

    /// Whether whoever did this may come back. A process that dies may be started again; one that breaks the protocol is not
    /// spoken to any more.
    pub(super) fn may_come_back(&self) -> bool {
        matches!(
            self,
            Self::Connect { .. } | Self::Socket { .. } | Self::Gone | Self::Silent { .. }
        )
    }
}

impl From<BadSize> for VfioUserError {
    fn from(bad: BadSize) -> Self {
        Self::lie(bad.to_string())
    }
}

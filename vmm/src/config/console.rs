//! Where a guest's consoles lead to.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What stands at the host's end of a console.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum ConsoleMode {
    /// No device at all.
    #[default]
    Off,
    /// A new pseudo-terminal, whose path an event tells.
    Pty,
    /// The standard input and output of the VMM.
    Tty,
    /// Output goes to the file `file`; there is no input.
    File,
    /// A UNIX socket at `socket` that the VMM listens on; one client at a time.
    Socket,
    /// A device whose output is dropped.
    Null,
}

/// A serial port or console.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConsoleConfig {
    /// What stands at the host's end.
    pub mode: ConsoleMode,
    /// The file of mode `File`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub file: Option<PathBuf>,
    /// The socket of mode `Socket`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub socket: Option<PathBuf>,
    /// Whether the device sits behind the virtual IOMMU; not there yet.
    #[serde(default)]
    pub iommu: bool,
}

impl ConsoleConfig {
    /// A console of `mode` without file or socket.
    pub fn of(mode: ConsoleMode) -> Self {
        Self {
            mode,
            ..Self::default()
        }
    }

    /// A device whose output is dropped.
    pub fn null() -> Self {
        Self::of(ConsoleMode::Null)
    }

    /// The standard input and output of the VMM.
    pub fn tty() -> Self {
        Self::of(ConsoleMode::Tty)
    }

    /// Output into `file`.
    pub fn file(file: impl Into<PathBuf>) -> Self {
        Self {
            file: Some(file.into()),
            ..Self::of(ConsoleMode::File)
        }
    }

    /// A UNIX socket at `socket`.
    pub fn socket(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: Some(socket.into()),
            ..Self::of(ConsoleMode::Socket)
        }
    }
}

/// The firmware's debug port.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DebugConsoleConfig {
    /// What stands at the host's end; only `Off` and `Null` are there yet.
    pub mode: ConsoleMode,
    /// The file of mode `File`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub file: Option<PathBuf>,
    /// The port, 0xE9 unless said otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iobase: Option<u16>,
}

//! What can be wrong with a snapshot, or with the place where one is to be.

use std::error::Error;
use std::io;
use std::path::PathBuf;

/// A snapshot cannot be written or read. What was there before is as it was.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// There is nothing to restore.
    #[error("there is no snapshot at {path:?}; expected a folder that vm.snapshot wrote")]
    Missing {
        /// What was named.
        path: PathBuf,
    },
    /// The folder to write into has no place.
    #[error("{path:?} cannot be a snapshot's folder, for it lies in no folder; expected a path in an existing folder")]
    NoParent {
        /// What was named.
        path: PathBuf,
    },
    /// Something else is there, and is left alone.
    #[error("{path:?} exists and is no snapshot; expected a free path, an empty folder, or a snapshot to replace")]
    Foreign {
        /// What was named.
        path: PathBuf,
    },
    /// Another process writes there.
    #[error("{path:?} is in use: another snapshot is being written there; try again when it is complete")]
    InUse {
        /// What was named.
        path: PathBuf,
    },
    /// The system refuses: no right to write, a full disk.
    #[error("{path:?} cannot be written")]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The system refuses.
    #[error("{path:?} cannot be read")]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file is something else's.
    #[error("{path:?} is no file of a snapshot of this program; expected what vm.snapshot wrote")]
    Format {
        /// The file.
        path: PathBuf,
    },
    /// The snapshot is another version's.
    #[error("{path:?} has version {found} of the snapshot format; this program reads version {reads}")]
    Version {
        /// The file.
        path: PathBuf,
        /// The version it has.
        found: u64,
        /// The version that can be read.
        reads: u64,
    },
    /// The file is not as long as it was.
    #[error("{path:?} has {found} bytes; expected {expected}: it is not what vm.snapshot wrote")]
    Length {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        found: u64,
        /// What it was.
        expected: u64,
    },
    /// The file is not what it was.
    #[error("{path:?} is damaged: {what}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where, and how that is known.
        what: String,
    },
    /// The file is as it was written, and says what makes no sense.
    #[error("{path:?} cannot be understood")]
    Content {
        /// The file.
        path: PathBuf,
        /// What and where.
        source: serde_json::Error,
    },
    /// The machine does not tell its state.
    #[error("the machine's state cannot be saved")]
    Machine {
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
}

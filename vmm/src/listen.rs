//! Listening at the path of a UNIX socket that somebody may have left behind.

use std::io::{self, ErrorKind};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

/// A path that cannot be listened at.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListenError {
    /// Somebody does.
    #[error("it is in use by another process; expected a free path")]
    InUse,
    /// The system refuses.
    #[error(transparent)]
    System(#[from] io::Error),
}

/// Listens at `path`. A socket that nobody listens on any more is replaced; anything else there is somebody's file.
pub(crate) fn listen(path: &Path) -> Result<UnixListener, ListenError> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            match UnixStream::connect(path) {
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => (),
                // A socket, but not of streams.
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::PROTOTYPE.raw_os_error()) => {
                    return Err(ListenError::InUse);
                }
                Err(error) => return Err(error.into()),
                Ok(_) => return Err(ListenError::InUse),
            }
            remove_socket(path)?;
            Ok(UnixListener::bind(path)?)
        }
        bound => Ok(bound?),
    }
}

fn remove_socket(path: &Path) -> io::Result<()> {
    if std::fs::symlink_metadata(path)?.file_type().is_socket() {
        std::fs::remove_file(path)
    } else {
        Err(ErrorKind::AlreadyExists.into())
    }
}

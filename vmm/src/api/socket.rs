//! The socket the API is served on.

use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
use std::os::fd::RawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::server::ApiError;
use crate::inherited::inherited;

/// Where the API is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApiSocket {
    /// A socket to be made at this path.
    Path(PathBuf),
    /// An inherited socket that listens already.
    Fd(RawFd),
}

impl FromStr for ApiSocket {
    type Err = String;

    /// Reads `path=FILE`, `fd=N` or a bare path.
    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || format!("{text:?} names no socket; expected a path, path=FILE or fd=N");
        match text.split_once('=') {
            Some(("fd", fd)) => fd.parse().ok().filter(|fd| *fd >= 0).map(Self::Fd).ok_or_else(refused),
            Some(("path", path)) if !path.is_empty() => Ok(Self::Path(path.into())),
            Some(("path", _)) => Err(refused()),
            _ if text.is_empty() => Err(refused()),
            _ => Ok(Self::Path(text.into())),
        }
    }
}

/// A listening socket; dropping it removes what was made in the file system.
#[derive(Debug)]
pub(super) struct Listening {
    pub(super) listener: UnixListener,
    _file: Option<SocketFile>,
}

/// The socket's name in the file system. Removed when dropped, if it is still the one that was made.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl Listening {
    pub(super) fn on(socket: &ApiSocket) -> Result<Self, ApiError> {
        match socket {
            ApiSocket::Path(path) => Self::at(path),
            ApiSocket::Fd(fd) => {
                let of = |source| ApiError::Inherited { fd: *fd, source };
                let listener = UnixListener::from(inherited(*fd).map_err(of)?);
                // Asking for a UNIX address tells a UNIX socket from everything else.
                listener.local_addr().map_err(of)?;
                if !socket2::SockRef::from(&listener).is_listener().map_err(of)? {
                    return Err(of(io::Error::new(ErrorKind::InvalidInput, "it does not listen")));
                }
                Ok(Self { listener, _file: None })
            }
        }
    }

    fn at(path: &Path) -> Result<Self, ApiError> {
        let of = |source| ApiError::Bind {
            path: path.to_owned(),
            source,
        };
        remove_stale(path)?;
        let listener = UnixListener::bind(path).map_err(of)?;
        let file = SocketFile {
            path: path.to_owned(),
            identity: identity(&fs::symlink_metadata(path).map_err(of)?),
        };
        Ok(Self {
            listener,
            _file: Some(file),
        })
    }
}

/// Removes a socket that nobody listens on any more, as a process leaves behind that was killed.
fn remove_stale(path: &Path) -> Result<(), ApiError> {
    let of = |source| ApiError::Bind {
        path: path.to_owned(),
        source,
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(of(error)),
        Ok(found) if !found.file_type().is_socket() => return Err(ApiError::NoSocket { path: path.to_owned() }),
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(of),
        // A full queue of connections also means that somebody listens.
        Ok(_) => Err(ApiError::InUse { path: path.to_owned() }),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Err(ApiError::InUse { path: path.to_owned() }),
        Err(error) => Err(of(error)),
    }
}

fn identity(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let Ok(found) = fs::symlink_metadata(&self.path) else {
            return;
        };
        if identity(&found) == self.identity
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "the API's socket cannot be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn a_socket_is_a_path_or_a_descriptor() {
        for (text, socket) in [
            ("/s", ApiSocket::Path("/s".into())),
            ("path=/s", ApiSocket::Path("/s".into())),
            ("odd=name", ApiSocket::Path("odd=name".into())),
            ("fd=3", ApiSocket::Fd(3)),
        ] {
            assert_eq!(text.parse(), Ok(socket), "{text}");
        }
        for text in ["", "path=", "fd=", "fd=-1", "fd=three"] {
            assert!(text.parse::<ApiSocket>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_path_in_use_is_refused_and_a_stale_one_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let live = UnixListener::bind(&path).unwrap();
        assert!(matches!(Listening::at(&path), Err(ApiError::InUse { .. })));
        drop(live);
        let taken = Listening::at(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        drop(taken);
        assert!(!path.exists());
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(Listening::at(&path), Err(ApiError::NoSocket { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_socket_that_somebody_put_in_our_place_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let ours = Listening::at(&path).unwrap();
        fs::rename(&path, folder.path().join("old")).unwrap();
        let _theirs = UnixListener::bind(&path).unwrap();
        drop(ours);
        assert!(path.exists());
    }

    #[test]
    fn only_a_listening_unix_socket_is_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("s")).unwrap();
        Listening::on(&ApiSocket::Fd(listener.as_raw_fd())).unwrap();
        let (pair, _other) = UnixStream::pair().unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let file = fs::File::open("/dev/null").unwrap();
        for fd in [pair.as_raw_fd(), tcp.as_raw_fd(), file.as_raw_fd(), 1 << 20] {
            assert!(
                matches!(Listening::on(&ApiSocket::Fd(fd)), Err(ApiError::Inherited { .. })),
                "{fd}"
            );
        }
    }
}

//! A UNIX socket as a console: one client at a time, who may come and go.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::ConsoleError;
use super::input::{self, Feed, Input, Ready};
use super::port::Port;
use crate::listen::{ListenError, listen};

/// Bytes kept for the next client. Less than a socket holds, so that giving them does not wait for the client to read.
const KEPT: usize = 64 << 10;

/// A socket that is listened on.
pub struct Listener {
    socket: UnixListener,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    client: Option<Arc<UnixStream>>,
    /// What was printed while nobody was connected.
    kept: VecDeque<u8>,
}

impl Listener {
    /// Listens at `path`. A socket that nobody listens on any more is replaced.
    pub fn bind(path: &Path) -> Result<(Self, Place), ConsoleError> {
        let socket = listen(path).map_err(|error| match error {
            ListenError::InUse => ConsoleError::SocketInUse { path: path.to_owned() },
            ListenError::System(source) => ConsoleError::Socket {
                path: path.to_owned(),
                source,
            },
        })?;
        let listener = Self {
            socket,
            shared: Arc::default(),
        };
        Ok((listener, Place(path.to_owned())))
    }

    /// Where output goes.
    pub fn sink(&self) -> impl Write + Send + 'static {
        Sink(Arc::clone(&self.shared))
    }

    /// Accepts clients and reads what they type.
    pub fn input(self, port: &Arc<Port>) -> io::Result<Input> {
        Input::spawn(port, move |feed| self.serve(feed))
    }

    fn serve(&self, feed: &Feed) {
        while feed.wait(self.socket.as_fd()) == Ready::Readable {
            let Ok((client, _)) = self.socket.accept() else {
                continue;
            };
            let client = Arc::new(client);
            if lock(&self.shared).welcome(&client).is_ok() {
                input::copy(client.as_fd(), feed);
            }
            // A client that has only stopped typing may still read; but there is no knowing, and the next one waits.
            lock(&self.shared).client = None;
            // Also frees a writer that waits for it to read.
            let _ = client.shutdown(Shutdown::Both);
        }
    }
}

/// Where it is found. Dropped, there is nothing: by whoever made it, since the thread that listens may touch no files.
#[derive(Debug)]
pub struct Place(PathBuf);

impl Drop for Place {
    fn drop(&mut self) {
        // Somebody may have removed it before us.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Shared {
    /// Gives a new client what it has missed, and everything from now on.
    fn welcome(&mut self, client: &Arc<UnixStream>) -> io::Result<()> {
        let kept = self.kept.make_contiguous();
        client.as_ref().write_all(kept)?;
        self.kept.clear();
        self.client = Some(Arc::clone(client));
        Ok(())
    }

    fn keep(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(KEPT)..];
        let over = (self.kept.len() + bytes.len()).saturating_sub(KEPT);
        self.kept.drain(..over);
        self.kept.extend(bytes);
    }
}

struct Sink(Arc<Mutex<Shared>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            let mut shared = lock(&self.0);
            let Some(client) = shared.client.clone() else {
                shared.keep(bytes);
                return Ok(bytes.len());
            };
            drop(shared);
            // Without the lock: a client that does not read holds up only its own output.
            match client.as_ref().write(bytes) {
                Ok(taken) if taken > 0 => return Ok(taken),
                Err(error) if error.kind() == ErrorKind::Interrupted => (),
                Ok(_) | Err(_) => {
                    let mut shared = lock(&self.0);
                    if shared
                        .client
                        .as_ref()
                        .is_some_and(|current| Arc::ptr_eq(current, &client))
                    {
                        shared.client = None;
                    }
                }
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    // Valid at each step, so a panic elsewhere is not ours to spread.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

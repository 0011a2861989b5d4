//! The thread that reads a console's input, and how it is told to end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use reprise_devices::thread::{ThreadKind, begin};
use reprise_devices::virtio::ConsoleSize;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::{Errno, read, write};

use super::port::Port;

/// How often a full port is looked at for the wish to end.
const PATIENCE: Duration = Duration::from_millis(50);

/// A reading thread. Dropped, it ends, wherever it waits.
#[derive(Debug)]
pub struct Input {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

/// What a reading thread is given.
pub struct Feed {
    port: Arc<Port>,
    stop: Arc<OwnedFd>,
}

/// What became of waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ready {
    /// There is something to read, or an end.
    Readable,
    /// The console goes away.
    Stop,
}

impl Input {
    /// Starts `work`, which ends when [`Feed::wait`] says [`Ready::Stop`].
    pub fn spawn(port: &Arc<Port>, work: impl FnOnce(&Feed) + Send + 'static) -> io::Result<Self> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let feed = Feed {
            port: Arc::clone(port),
            stop: Arc::clone(&stop),
        };
        let thread = thread::Builder::new().name("console-in".into()).spawn(move || {
            begin(ThreadKind::Keyboard);
            work(&feed);
        })?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        // A counter at its limit is set already, which is all that is wanted.
        let _ = write(&self.stop, &1_u64.to_ne_bytes());
        let Some(thread) = self.thread.take() else { return };
        // The console may be let go by its own thread: a person leaves, and the machine that held it ends.
        if thread.thread().id() != thread::current().id() {
            // A panic there has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

impl Feed {
    /// Waits until `source` has something.
    pub fn wait(&self, source: BorrowedFd<'_>) -> Ready {
        match self.wait_for(&[source]) {
            Some(_) => Ready::Readable,
            None => Ready::Stop,
        }
    }

    /// Waits until one of `sources` has something, and says which: the first of several. `None` if the console goes away.
    pub fn wait_for(&self, sources: &[BorrowedFd<'_>]) -> Option<usize> {
        loop {
            let mut fds = vec![PollFd::new(&self.stop, PollFlags::IN)];
            fds.extend(sources.iter().map(|source| PollFd::new(source, PollFlags::IN)));
            match poll(&mut fds, None) {
                Ok(_) => {
                    if let Some(first) = fds.iter().position(|fd| !fd.revents().is_empty()) {
                        return first.checked_sub(1);
                    }
                }
                Err(Errno::INTR) => (),
                Err(_) => return None,
            }
        }
    }

    /// The terminal has this size now.
    pub fn resize(&self, size: ConsoleSize) {
        self.port.resize(size);
    }

    /// Whether the console goes away.
    pub fn stopped(&self) -> bool {
        let mut fds = [PollFd::new(&self.stop, PollFlags::IN)];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        !matches!(poll(&mut fds, Some(&now)), Ok(0))
    }

    /// Hands all of `bytes` over, waiting for room; false if the console goes away meanwhile.
    pub fn give(&self, mut bytes: &[u8]) -> bool {
        loop {
            bytes = &bytes[self.port.push(bytes)..];
            if bytes.is_empty() {
                return true;
            }
            if self.stopped() {
                return false;
            }
            self.port.wait_for_room(PATIENCE);
        }
    }

    /// Hands over what there is room for now; the rest is lost.
    pub fn offer(&self, bytes: &[u8]) {
        self.port.push(bytes);
    }

    /// A person wants to leave.
    pub fn leave(&self) {
        self.port.leave();
    }
}

/// Reads once, after [`Feed::wait`]; `None` at the end, or if it cannot be read.
pub fn read_some<'a>(source: BorrowedFd<'_>, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
    loop {
        match read(source, &mut *buffer) {
            Ok(0) => return None,
            Ok(length) => return Some(&buffer[..length]),
            Err(Errno::INTR) => (),
            // Somebody else took it.
            Err(Errno::AGAIN) => return Some(&[]),
            Err(_) => return None,
        }
    }
}

/// Copies `source` to the port until it ends.
pub fn copy(source: impl AsFd, feed: &Feed) {
    let mut buffer = [0; 4096];
    while feed.wait(source.as_fd()) == Ready::Readable {
        match read_some(source.as_fd(), &mut buffer) {
            Some(bytes) if feed.give(bytes) => (),
            _ => return,
        }
    }
}

//! A new pseudo-terminal as a console.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

use super::input::{self, Input};
use super::port::Port;

/// Mostly nobody has the other end open, and a guest must not wait long to find out.
pub const PATIENCE: Duration = Duration::from_millis(200);

/// A pseudo-terminal.
pub struct Pty {
    master: OwnedFd,
    /// Kept open, so that the master does not report a hang-up while nobody else has it open.
    slave: OwnedFd,
    path: PathBuf,
}

impl Pty {
    /// Makes one, in raw mode.
    pub fn open() -> io::Result<Self> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let path = PathBuf::from(OsString::from_vec(ptsname(&master, Vec::new())?.into_bytes()));
        let slave = open(&path, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
        let mut mode = tcgetattr(&slave)?;
        mode.make_raw();
        tcsetattr(&slave, OptionalActions::Now, &mode)?;
        let flags = rustix::fs::fcntl_getfl(&master)?;
        // What does not fit is tried again by the output, for a while.
        rustix::fs::fcntl_setfl(&master, flags | OFlags::NONBLOCK)?;
        Ok(Self { master, slave, path })
    }

    /// The device that a terminal program opens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where output goes.
    pub fn sink(&self) -> io::Result<impl Write + Send + 'static> {
        Ok(File::from(self.master.try_clone()?))
    }

    /// Reads what is typed at the other end.
    pub fn input(self, port: &Arc<Port>) -> io::Result<Input> {
        Input::spawn(port, move |feed| {
            input::copy(self.master.as_fd(), feed);
            drop(self.slave);
        })
    }
}

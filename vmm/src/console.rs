//! The host's end of the guest's consoles, the serial port and virtio's: a terminal, a file, a socket, a pseudo-terminal, nothing.
//!
//! # Invariants
//! - A console that goes away, refuses, or is never read does not stop the guest: output that nobody takes is lost in the
//!   end ([`reprise_devices::output`]), and input ends.
//! - The terminal is as it was before once the console is dropped, and also after a panic.
//! - Reading never waits for the guest, so the escape from a terminal works while the guest hangs.
//!
//! # Life
//! A console is opened before its machine and may outlive it: a machine that is reset is built anew and is given the
//! console of the old one, so that who is connected stays connected.

mod input;
mod port;
mod pty;
mod socket;
mod terminal;
#[cfg(test)]
mod tests;

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use reprise_devices::Output;

use crate::config::{ConsoleConfig, ConsoleMode};
use input::Input;
pub use port::Keyboard;
use port::Port;

pub use terminal::restore as restore_terminal;

/// A console cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// The configuration lacks what its mode needs.
    #[error("a console of mode {mode:?} needs the path of its {what}")]
    MissingPath {
        /// The mode.
        mode: ConsoleMode,
        /// The field.
        what: &'static str,
    },
    /// A file that cannot be written.
    #[error("the console's file {path} cannot be created")]
    File {
        /// Where.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A socket that cannot be listened on.
    #[error("the console's socket {path} cannot be bound")]
    Socket {
        /// Where.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Somebody listens there.
    #[error("the console's socket {path} is in use by another process; expected a free path")]
    SocketInUse {
        /// Where.
        path: PathBuf,
    },
    /// The system has no thread, terminal or descriptor to give.
    #[error("the console cannot be set up")]
    System {
        /// What it says.
        #[from]
        source: io::Error,
    },
}

/// The host's ends of a machine's consoles. Whoever holds them keeps them open when the machine is gone.
#[derive(Debug, Clone, Default)]
pub struct Consoles {
    /// The serial port's.
    pub serial: Option<Arc<Console>>,
    /// The virtio console's.
    pub virtio: Option<Arc<Console>>,
}

/// The host's end of a serial port or virtio console.
#[derive(Debug)]
pub struct Console {
    // In the order in which they go: what the guest printed last still needs the sink and who reads it.
    output: Arc<Output>,
    /// Only there to be dropped.
    _input: Option<Input>,
    _place: Option<socket::Place>,
    port: Arc<Port>,
    path: Option<PathBuf>,
}

impl Console {
    /// The console that `config` describes; `None` for mode `Off`.
    ///
    /// # Errors
    /// [`ConsoleError`] naming the path.
    pub fn open(config: &ConsoleConfig) -> Result<Option<Arc<Self>>, ConsoleError> {
        Self::connect(config, Self::file)
    }

    /// As [`open`](Self::open), for a machine that goes on: what a file has already stays, and is written on.
    ///
    /// # Errors
    /// [`ConsoleError`] naming the path.
    pub fn open_again(config: &ConsoleConfig) -> Result<Option<Arc<Self>>, ConsoleError> {
        Self::connect(config, |path| {
            Self::file_of(path, File::options().create(true).append(true))
        })
    }

    fn connect(
        config: &ConsoleConfig,
        file: impl FnOnce(&Path) -> Result<Arc<Self>, ConsoleError>,
    ) -> Result<Option<Arc<Self>>, ConsoleError> {
        let missing = |what| ConsoleError::MissingPath {
            mode: config.mode,
            what,
        };
        let console = match config.mode {
            ConsoleMode::Off => return Ok(None),
            ConsoleMode::Null => Self::null(),
            ConsoleMode::Tty => Self::tty()?,
            ConsoleMode::File => file(config.file.as_deref().ok_or_else(|| missing("file"))?)?,
            ConsoleMode::Socket => Self::socket(config.socket.as_deref().ok_or_else(|| missing("socket"))?)?,
            ConsoleMode::Pty => Self::pty()?,
        };
        Ok(Some(console))
    }

    /// A port whose output is dropped.
    #[must_use]
    pub fn null() -> Arc<Self> {
        Self::of(Output::discard(), None, None)
    }

    /// Standard input and output. If they are a terminal it is put into raw mode, and Ctrl-A x leaves.
    ///
    /// # Errors
    /// [`ConsoleError::System`].
    pub fn tty() -> Result<Arc<Self>, ConsoleError> {
        let output = Output::new(Box::new(terminal::Stdout))?;
        let port = Port::new();
        let input = terminal::input(&port)?;
        Ok(Self::with(output, port, Some(input), None))
    }

    /// A file that gets the output; there is no input.
    ///
    /// # Errors
    /// [`ConsoleError::File`].
    pub fn file(path: &Path) -> Result<Arc<Self>, ConsoleError> {
        Self::file_of(path, File::options().create(true).write(true).truncate(true))
    }

    fn file_of(path: &Path, how: &OpenOptions) -> Result<Arc<Self>, ConsoleError> {
        let file = how.open(path).map_err(|source| ConsoleError::File {
            path: path.to_owned(),
            source,
        })?;
        Self::sink(Box::new(file))
    }

    /// A UNIX socket that one client after the other may connect to. What is printed while nobody is connected is kept,
    /// its end at least, for the next.
    ///
    /// # Errors
    /// [`ConsoleError::Socket`] or [`ConsoleError::SocketInUse`].
    pub fn socket(path: &Path) -> Result<Arc<Self>, ConsoleError> {
        let (listener, place) = socket::Listener::bind(path)?;
        let output = Output::new(Box::new(listener.sink()))?;
        let port = Port::new();
        let input = listener.input(&port)?;
        Ok(Arc::new(Self {
            _place: Some(place),
            ..Self::parts(output, port, Some(input), Some(path.to_owned()))
        }))
    }

    /// A new pseudo-terminal; [`path`](Self::path) is what a terminal program opens.
    ///
    /// # Errors
    /// [`ConsoleError::System`].
    pub fn pty() -> Result<Arc<Self>, ConsoleError> {
        let pty = pty::Pty::open()?;
        let output = Output::with_limits(
            Box::new(pty.sink()?),
            reprise_devices::output::DEFAULT_CAPACITY,
            pty::PATIENCE,
        )?;
        let port = Port::new();
        let path = pty.path().to_owned();
        let input = pty.input(&port)?;
        Ok(Self::with(output, port, Some(input), Some(path)))
    }

    /// Output into `sink`, for a program that embeds a machine. It is only called from one thread of its own.
    ///
    /// # Errors
    /// [`ConsoleError::System`].
    pub fn sink(sink: Box<dyn Write + Send>) -> Result<Arc<Self>, ConsoleError> {
        Ok(Self::of(Output::new(sink)?, None, None))
    }

    /// Output into `stream` and input from it, for a program that embeds a machine.
    ///
    /// # Errors
    /// [`ConsoleError::System`].
    pub fn stream(stream: UnixStream) -> Result<Arc<Self>, ConsoleError> {
        let output = Output::new(Box::new(stream.try_clone()?))?;
        let port = Port::new();
        let input = Input::spawn(&port, move |feed| input::copy(stream.as_fd(), feed))?;
        Ok(Self::with(output, port, Some(input), None))
    }

    /// Where the console can be reached: the socket or the pseudo-terminal.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Where the guest's device prints.
    #[must_use]
    pub fn output(&self) -> &Arc<Output> {
        &self.output
    }

    /// Feeds `keyboard` from now on, and calls `on_leave` when a person at a terminal types Ctrl-A x.
    pub fn attach<K: Keyboard + 'static>(&self, keyboard: &Arc<K>, on_leave: impl Fn() + Send + Sync + 'static) {
        let keyboard: Arc<dyn Keyboard> = Arc::clone(keyboard) as _;
        self.port.attach(&keyboard, Arc::new(on_leave));
    }

    /// Feeds nobody; input is kept for whoever is attached next.
    pub fn detach(&self) {
        self.port.detach();
    }

    fn of(output: Output, input: Option<Input>, path: Option<PathBuf>) -> Arc<Self> {
        Self::with(output, Port::new(), input, path)
    }

    fn with(output: Output, port: Arc<Port>, input: Option<Input>, path: Option<PathBuf>) -> Arc<Self> {
        Arc::new(Self::parts(output, port, input, path))
    }

    fn parts(output: Output, port: Arc<Port>, input: Option<Input>, path: Option<PathBuf>) -> Self {
        Self {
            output: Arc::new(output),
            _input: input,
            _place: None,
            port,
            path,
        }
    }
}

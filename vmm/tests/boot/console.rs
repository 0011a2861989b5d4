//! A guest's console, and what is typed at its shell.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::wait::{EVENTUALLY, eventually};

/// A guest's serial console.
pub struct Console {
    pub stream: UnixStream,
    /// All that was printed so far.
    pub seen: String,
    /// How much of it has been expected.
    expected: usize,
}

impl Console {
    pub fn connect(path: &Path) -> Self {
        let stream = eventually("the console", || UnixStream::connect(path).ok());
        stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        stream.set_write_timeout(Some(EVENTUALLY)).unwrap();
        Self {
            stream,
            seen: String::new(),
            expected: 0,
        }
    }

    /// Waits for `text` after what was expected before; what lies between.
    pub fn expect(&mut self, text: &str) -> String {
        let deadline = Instant::now() + EVENTUALLY;
        loop {
            if let Some(at) = self.seen[self.expected..].find(text) {
                let between = self.seen[self.expected..self.expected + at].to_owned();
                self.expected += at + text.len();
                return between;
            }
            let mut bytes = [0; 4096];
            let read = self.stream.read(&mut bytes);
            let ended = matches!(read, Ok(0));
            self.seen += &String::from_utf8_lossy(&bytes[..read.unwrap_or(0)]);
            let late = Instant::now() > deadline;
            assert!(!(ended || late), "{text:?} never came; the guest said:\n{}", self.seen);
        }
    }

    pub fn wait_for_shell(&mut self) {
        self.expect("reprise: init reached");
        self.expect("reprise: shell ready");
        self.expect("guest# ");
        // A serial port has no size, and the shell breaks the lines that it echoes at the 80th column.
        self.run("stty cols 1000");
    }

    /// What was printed until there was a shell.
    pub fn boot_log(&self) -> &str {
        self.seen.split("reprise: shell ready").next().unwrap()
    }

    /// Runs a command in the guest's shell; what it printed.
    pub fn run(&mut self, command: &str) -> String {
        self.stream.write_all(format!("{command}\n").as_bytes()).unwrap();
        // The terminal echoes the command first.
        self.expect(command);
        self.expect("\n");
        self.expect("guest# ")
    }
}

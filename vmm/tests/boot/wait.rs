//! Waiting, always with an end: a test that waits for what never comes fails, and takes nobody's time but its own.

use std::io::{ErrorKind, Read, Result};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

/// Long enough for anything that is going to happen, on a slow host and without optimisation.
pub const EVENTUALLY: Duration = Duration::from_secs(600);

pub fn eventually<T>(what: &str, mut get: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + EVENTUALLY;
    loop {
        if let Some(got) = get() {
            return got;
        }
        assert!(Instant::now() < deadline, "{what} never came");
        thread::sleep(Duration::from_millis(20));
    }
}

/// The next caller of a listener that does not block.
pub fn accepted<S, A>(mut accept: impl FnMut() -> Result<(S, A)>) -> S {
    eventually("a caller", || match accept() {
        Ok((stream, _)) => Some(stream),
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Err(error) => panic!("nobody can be accepted: {error}"),
    })
}

/// What another thread is at.
pub struct Background<T>(Receiver<T>);

impl<T: Send + 'static> Background<T> {
    pub fn start(work: impl FnOnce() -> T + Send + 'static) -> Self {
        let (sender, receiver) = mpsc::channel();
        // Nobody joins it: it may be stuck, and whoever wants its result waits for that no longer than is fair.
        thread::spawn(move || {
            let _ = sender.send(work());
        });
        Self(receiver)
    }

    /// What came of it.
    pub fn finish(self, what: &str) -> T {
        let result = self.0.recv_timeout(EVENTUALLY);
        result.unwrap_or_else(|error| panic!("{what}: {error}"))
    }
}

/// Runs a program to its end, which is made to come.
pub fn output(command: &mut Command) -> Output {
    let command = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let [stdout, stderr] = [all(stdout), all(stderr)];
    let deadline = Instant::now() + EVENTUALLY;
    let (status, late) = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break (status, false);
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            break (child.wait().unwrap(), true);
        }
        thread::sleep(Duration::from_millis(20));
    };
    let output = Output {
        status,
        stdout: stdout.finish("standard output"),
        stderr: stderr.finish("standard error"),
    };
    assert!(!late, "{command:?} never ended: {output:?}");
    output
}

/// All that comes out of a pipe.
fn all(mut pipe: impl Read + Send + 'static) -> Background<Vec<u8>> {
    Background::start(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        bytes
    })
}

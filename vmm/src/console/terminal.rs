//! Standard input and output, and the terminal they may be.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, Once, PoisonError};

use reprise_devices::virtio::ConsoleSize;
use rustix::stdio::{stdin, stdout};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use signal_hook::SigId;
use signal_hook::consts::SIGWINCH;

use super::input::{self, Feed, Input};
use super::port::Port;

/// Ctrl-A.
const ESCAPE: u8 = 0x01;

/// The terminal's mode before it was made raw, while it is.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Standard output without a buffer: the console's output has one.
pub struct Stdout;

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(stdout(), bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads standard input; from a terminal with its escapes, in raw mode.
pub fn input(port: &Arc<Port>) -> io::Result<Input> {
    if !isatty(stdin()) {
        return Input::spawn(port, |feed| input::copy(stdin(), feed));
    }
    let raw = Raw::set()?;
    let resized = Resized::watch()?;
    Input::spawn(port, move |feed| {
        type_into(feed, &resized);
        drop((raw, resized));
    })
}

/// Puts the terminal back as it was before it was made raw. Does nothing if it is not; may be called at any time, as by a
/// program that is about to exit without dropping its console.
pub fn restore() {
    let before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(before) = before {
        // A terminal that has hung up has no mode left.
        let _ = tcsetattr(stdin(), OptionalActions::Now, &before);
    }
}

/// The terminal in raw mode, until this is dropped.
struct Raw;

impl Raw {
    fn set() -> io::Result<Self> {
        let before = tcgetattr(stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        // The VMM's own messages go to the same screen and want their line feeds translated.
        raw.output_modes = before.output_modes;
        BEFORE
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(before);
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let next = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                restore();
                next(panic);
            }));
        });
        tcsetattr(stdin(), OptionalActions::Now, &raw)?;
        Ok(Self)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

/// Tells when the terminal's size changes, until it is dropped.
struct Resized {
    signals: UnixStream,
    id: SigId,
}

impl Resized {
    fn watch() -> io::Result<Self> {
        let (signals, handler) = UnixStream::pair()?;
        signals.set_nonblocking(true)?;
        let id = signal_hook::low_level::pipe::register(SIGWINCH, handler)?;
        Ok(Self { signals, id })
    }

    fn take(&self) {
        while matches!((&self.signals).read(&mut [0; 64]), Ok(1..)) {}
    }
}

impl Drop for Resized {
    fn drop(&mut self) {
        signal_hook::low_level::unregister(self.id);
    }
}

/// Says how large the terminal is; one that does not tell has no size.
fn tell_size(feed: &Feed) {
    if let Ok(size) = tcgetwinsize(stdin()) {
        feed.resize(ConsoleSize {
            columns: size.ws_col,
            rows: size.ws_row,
        });
    }
}

fn type_into(feed: &Feed, resized: &Resized) {
    let mut keys = Keys::default();
    let mut buffer = [0; 1024];
    let mut typed = Vec::new();
    tell_size(feed);
    while let Some(source) = feed.wait_for(&[resized.signals.as_fd(), stdin()]) {
        if source == 0 {
            resized.take();
            tell_size(feed);
            continue;
        }
        let Some(bytes) = input::read_some(stdin(), &mut buffer) else {
            return;
        };
        typed.clear();
        let left = bytes.iter().any(|byte| keys.press(*byte, &mut typed) == Pressed::Leave);
        // Not waiting for room: what a hanging guest does not read must not hide the wish to leave.
        feed.offer(&typed);
        if left {
            feed.leave();
        }
    }
}

/// What a key meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pressed {
    /// Something for the guest, or the first half of an escape.
    Key,
    /// Ctrl-A x.
    Leave,
}

/// The escapes: Ctrl-A x leaves, Ctrl-A Ctrl-A is one Ctrl-A, Ctrl-A and another key are both.
#[derive(Debug, Default)]
struct Keys {
    escaped: bool,
}

impl Keys {
    fn press(&mut self, byte: u8, typed: &mut Vec<u8>) -> Pressed {
        match (std::mem::take(&mut self.escaped), byte) {
            (true, b'x') => return Pressed::Leave,
            (true, ESCAPE) => typed.push(ESCAPE),
            (true, _) => typed.extend([ESCAPE, byte]),
            (false, ESCAPE) => self.escaped = true,
            (false, _) => typed.push(byte),
        }
        Pressed::Key
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(keys: &[u8]) -> (Vec<u8>, bool) {
        let (mut state, mut typed) = (Keys::default(), Vec::new());
        let left = keys.iter().any(|key| state.press(*key, &mut typed) == Pressed::Leave);
        (typed, left)
    }

    #[test]
    fn control_a_x_leaves_and_a_lone_x_does_not() {
        assert_eq!(typed(b"ax\x01x"), (b"ax".to_vec(), true));
        assert_eq!(typed(b"x\x01"), (b"x".to_vec(), false));
    }

    #[test]
    fn control_a_twice_is_one_control_a_and_does_not_arm_the_next_key() {
        assert_eq!(typed(b"\x01\x01x"), (b"\x01x".to_vec(), false));
    }

    #[test]
    fn control_a_and_another_key_both_reach_the_guest() {
        assert_eq!(typed(b"\x01k"), (b"\x01k".to_vec(), false));
    }
}

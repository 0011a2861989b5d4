//! The POST code port: firmware writes how far it has come, and kernels write anything, to pass a microsecond.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use serde::{Deserialize, Serialize};

use crate::bus::{Bus, BusError, Device, Response, Space};

/// The diagnostic port.
pub const PORT: u64 = 0x80;

/// A port that shows the last byte written to it.
#[derive(Debug, Default)]
pub struct PostCode {
    last: AtomicU8,
}

/// What a [`PostCode`] remembers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PostCodeState {
    /// The last byte written.
    pub last: u8,
}

impl PostCode {
    /// A port where 0 was written last.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts the port at [`PORT`].
    ///
    /// # Errors
    /// [`BusError`] if the port is taken.
    pub fn attach(self: &Arc<Self>, bus: &Bus) -> Result<(), BusError> {
        bus.insert(Space::Port, PORT, 1, Arc::clone(self) as Arc<dyn Device>)
    }

    /// What the port remembers.
    #[must_use]
    pub fn state(&self) -> PostCodeState {
        PostCodeState {
            last: self.last.load(Relaxed),
        }
    }

    /// Replaces what the port remembers.
    pub fn restore(&self, state: &PostCodeState) {
        self.last.store(state.last, Relaxed);
    }
}

impl Device for PostCode {
    fn name(&self) -> &str {
        "post"
    }

    fn read(&self, _offset: u64, _size: u8) -> Response {
        Response::Done(self.last.load(Relaxed).into())
    }

    fn write(&self, _offset: u64, _size: u8, value: u64) -> Response {
        let [last, ..] = value.to_le_bytes();
        self.last.store(last, Relaxed);
        Response::Done(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_code_is_shown() {
        let (bus, post) = (Bus::new(), Arc::new(PostCode::new()));
        post.attach(&bus).unwrap();
        assert_eq!(bus.read(Space::Port, PORT, 1).wait(), 0);
        assert_eq!(bus.write(Space::Port, PORT, 1, 0x1f).wait(), 0);
        assert_eq!(bus.write(Space::Port, PORT, 4, 0x11_22_33_2a).wait(), 0);
        assert_eq!(bus.read(Space::Port, PORT, 1).wait(), 0x2a);
        assert_eq!(post.state(), PostCodeState { last: 0x2a });
        post.restore(&PostCodeState { last: 7 });
        assert_eq!(bus.read(Space::Port, PORT, 2).wait(), 0xff07);
    }
}

//! The port through which a test in the guest ends with a result.

use std::fmt;
use std::sync::Arc;

use crate::bus::{Bus, BusError, Device, Response, Space};
use crate::event::{MachineEvent, MachineEvents};

/// Where test kernels expect the port.
pub const PORT: u64 = 0xf4;

/// Raises [`MachineEvent::DebugExit`] with every byte written to it, and reads as 0. It remembers nothing.
pub struct DebugExit {
    events: Arc<dyn MachineEvents>,
}

impl DebugExit {
    /// A debug-exit port that tells `events`.
    #[must_use]
    pub fn new(events: Arc<dyn MachineEvents>) -> Self {
        Self { events }
    }

    /// Puts the port at [`PORT`].
    ///
    /// # Errors
    /// [`BusError`] if the port is taken.
    pub fn attach(self: &Arc<Self>, bus: &Bus) -> Result<(), BusError> {
        // One port is enough for test kernels that write a word: the low byte is what they mean.
        bus.insert(Space::Port, PORT, 1, Arc::clone(self) as Arc<dyn Device>)
    }
}

impl Device for DebugExit {
    fn name(&self) -> &str {
        "debug-exit"
    }

    fn read(&self, _offset: u64, _size: u8) -> Response {
        Response::Done(0)
    }

    fn write(&self, _offset: u64, _size: u8, value: u64) -> Response {
        let [code, ..] = value.to_le_bytes();
        self.events.raise(MachineEvent::DebugExit(code));
        Response::Done(0)
    }
}

impl fmt::Debug for DebugExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DebugExit")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn the_low_byte_of_any_write_ends_the_machine() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let bus = Bus::new();
        let events = Arc::clone(&seen);
        let device = DebugExit::new(Arc::new(move |event| events.lock().unwrap().push(event)));
        Arc::new(device).attach(&bus).unwrap();
        for (size, value) in [(1, 0x12), (2, 0x3456), (4, 0x789a_bcde)] {
            assert_eq!(bus.write(Space::Port, PORT, size, value).wait(), 0);
        }
        assert_eq!(bus.read(Space::Port, PORT, 1).wait(), 0);
        assert_eq!(*seen.lock().unwrap(), [0x12, 0x56, 0xde].map(MachineEvent::DebugExit));
    }
}

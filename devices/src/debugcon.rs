//! The firmware debug port: every byte written to it is printed.

use std::sync::Arc;

use crate::bus::{Bus, BusError, Device, Response, Space};
use crate::output::Output;

/// Where firmware expects the port.
pub const PORT: u64 = 0x402;
/// What the port reads as, by which firmware knows that it is there.
pub const SIGNATURE: u8 = 0xe9;

/// A debug port that prints to an [`Output`]. It remembers nothing.
#[derive(Debug)]
pub struct DebugConsole {
    output: Arc<Output>,
}

impl DebugConsole {
    /// A debug port that prints to `output`.
    #[must_use]
    pub fn new(output: Arc<Output>) -> Self {
        Self { output }
    }

    /// Puts the port at [`PORT`].
    ///
    /// # Errors
    /// [`BusError`] if the port is taken.
    pub fn attach(self: &Arc<Self>, bus: &Bus) -> Result<(), BusError> {
        bus.insert(Space::Port, PORT, 1, Arc::clone(self) as Arc<dyn Device>)
    }

    /// Where the port prints.
    #[must_use]
    pub fn output(&self) -> &Arc<Output> {
        &self.output
    }
}

impl Device for DebugConsole {
    fn name(&self) -> &str {
        "debugcon"
    }

    fn read(&self, _offset: u64, _size: u8) -> Response {
        Response::Done(SIGNATURE.into())
    }

    fn write(&self, _offset: u64, _size: u8, value: u64) -> Response {
        let [byte, ..] = value.to_le_bytes();
        self.output.push(byte)
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![("written", self.output.written()), ("lost", self.output.lost())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Recorder;

    #[test]
    fn firmware_finds_the_port_by_its_signature_and_prints() {
        let (bus, recorder) = (Bus::new(), Recorder::default());
        let output = Arc::new(Output::new(recorder.sink()).unwrap());
        Arc::new(DebugConsole::new(output)).attach(&bus).unwrap();
        assert_eq!(bus.read(Space::Port, PORT, 1).wait(), 0xe9);
        for byte in *b"SeaBIOS" {
            assert_eq!(bus.write(Space::Port, PORT, 1, byte.into()).wait(), 0);
        }
        recorder.wait_for(b"SeaBIOS");
    }
}

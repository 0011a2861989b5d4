//! The keyboard controller: an i8042 with no keyboard and no mouse.
//!
//! # Purpose
//! Guests reset the machine through it, and drivers probe it. It answers its own commands as the chip does, so that a
//! probing driver finds a sound controller at once instead of waiting for time-outs, and then finds nothing behind it.
//! Commands and bits are named after IBM's Personal System/2 Hardware Interface Technical Reference, "Keyboard and
//! Auxiliary Device Controller".
//!
//! # Invariants
//! - The output buffer holds one byte; an answer that finds it full replaces it. The input buffer is always empty, as a
//!   byte is dealt with when it is written.
//! - It never interrupts: its bytes are answers to commands, for which drivers poll.

use std::fmt;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use crate::bus::{Bus, BusError, Device, Response, Space};
use crate::bytes;
use crate::event::{MachineEvent, MachineEvents};
use crate::sync::lock;

/// The data port: the device's offset 0.
pub const DATA_PORT: u64 = 0x60;
/// The status (read) and command (write) port: the device's offset 4. The ports between are other devices'.
pub const COMMAND_PORT: u64 = 0x64;

const DATA: u64 = 0;
const COMMAND: u64 = COMMAND_PORT - DATA_PORT;

/// Status register.
mod status {
    pub const OUTPUT_FULL: u8 = 1 << 0;
    pub const SYSTEM: u8 = 1 << 2;
    pub const COMMAND: u8 = 1 << 3;
    pub const NOT_INHIBITED: u8 = 1 << 4;
    pub const AUX_OUTPUT: u8 = 1 << 5;
    pub const TIMEOUT: u8 = 1 << 6;
    /// Those that are state; the others are constant or the command byte's.
    pub const VARIABLE: u8 = OUTPUT_FULL | COMMAND | AUX_OUTPUT | TIMEOUT;
}

/// Commands, written to [`COMMAND_PORT`]. The low five bits of the first two are an address in the controller's RAM.
mod command {
    pub const READ_RAM: u8 = 0x20;
    pub const WRITE_RAM: u8 = 0x60;
    pub const LAST_RAM: u8 = 0x1f;
    pub const DISABLE_AUX: u8 = 0xa7;
    pub const ENABLE_AUX: u8 = 0xa8;
    pub const TEST_AUX: u8 = 0xa9;
    pub const SELF_TEST: u8 = 0xaa;
    pub const TEST_KEYBOARD: u8 = 0xab;
    pub const DISABLE_KEYBOARD: u8 = 0xad;
    pub const ENABLE_KEYBOARD: u8 = 0xae;
    pub const READ_INPUT_PORT: u8 = 0xc0;
    pub const READ_OUTPUT_PORT: u8 = 0xd0;
    pub const WRITE_OUTPUT_PORT: u8 = 0xd1;
    pub const WRITE_OUTPUT_BUFFER: u8 = 0xd2;
    pub const WRITE_AUX_OUTPUT_BUFFER: u8 = 0xd3;
    pub const WRITE_AUX: u8 = 0xd4;
    /// The pulse commands, 0xF0 to 0xFF: a zero in bit n pulls output line n low for a moment, and line 0 is the reset.
    pub const PULSE: u8 = 0xf0;
}

/// The command byte, which is RAM address 0: clocks off, and the translation and system bits.
const KEYBOARD_OFF: u8 = 1 << 4;
const AUX_OFF: u8 = 1 << 5;
const COMMAND_BYTE_AT_RESET: u8 = KEYBOARD_OFF | AUX_OFF | 1 << 2;

/// Output port lines: not in reset, A20 open.
const NOT_RESET: u8 = 1 << 0;
const A20: u8 = 1 << 1;

const SELF_TEST_PASSED: u8 = 0x55;
const LINE_SOUND: u8 = 0x00;
/// What the controller puts into the buffer when a device does not answer.
const NO_ANSWER: u8 = 0xfe;

/// Registers and RAM of an [`I8042`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct I8042State {
    /// RAM, the command byte first.
    pub ram: [u8; 32],
    /// The byte that port 0x60 shows, and shows again until there is another.
    pub output: u8,
    /// The status bits that are not constant: output buffer full, command last, auxiliary output, time-out.
    pub status: u8,
    /// A command that waits for its byte on port 0x60.
    pub awaiting: Option<u8>,
}

impl Default for I8042State {
    fn default() -> Self {
        let mut ram = [0; 32];
        ram[0] = COMMAND_BYTE_AT_RESET;
        Self {
            ram,
            output: 0,
            status: 0,
            awaiting: None,
        }
    }
}

/// A keyboard controller with nothing plugged in.
pub struct I8042 {
    state: Mutex<I8042State>,
    events: Arc<dyn MachineEvents>,
}

impl I8042 {
    /// A controller after reset, raising [`MachineEvent::Reset`] on `events`.
    #[must_use]
    pub fn new(events: Arc<dyn MachineEvents>) -> Self {
        Self {
            state: Mutex::default(),
            events,
        }
    }

    /// Puts the controller at [`DATA_PORT`] and [`COMMAND_PORT`].
    ///
    /// # Errors
    /// [`BusError`] if a port is taken.
    pub fn attach(self: &Arc<Self>, bus: &Bus) -> Result<(), BusError> {
        bus.insert_part(Space::Port, DATA_PORT, 1, Arc::clone(self) as Arc<dyn Device>, DATA)?;
        bus.insert_part(
            Space::Port,
            COMMAND_PORT,
            1,
            Arc::clone(self) as Arc<dyn Device>,
            COMMAND,
        )
    }

    /// The registers.
    #[must_use]
    pub fn state(&self) -> I8042State {
        lock(&self.state).clone()
    }

    /// Replaces the registers; `I8042State::default()` is the controller after reset. Bits that are not state are ignored.
    pub fn restore(&self, state: &I8042State) {
        *lock(&self.state) = I8042State {
            status: state.status & status::VARIABLE,
            ..state.clone()
        };
    }
}

impl I8042State {
    fn read_data(&mut self) -> u8 {
        self.status &= !(status::OUTPUT_FULL | status::AUX_OUTPUT | status::TIMEOUT);
        self.output
    }

    fn read_status(&self) -> u8 {
        self.status | self.ram[0] & status::SYSTEM | status::NOT_INHIBITED
    }

    fn answer(&mut self, byte: u8, flags: u8) {
        self.output = byte;
        self.status &= !(status::AUX_OUTPUT | status::TIMEOUT);
        self.status |= status::OUTPUT_FULL | flags;
    }

    /// Carries out `code`; true if it resets the machine.
    fn command(&mut self, code: u8) -> bool {
        self.status |= status::COMMAND;
        self.awaiting = None;
        match code {
            command::READ_RAM..=0x3f => self.answer(self.ram[usize::from(code & command::LAST_RAM)], 0),
            command::WRITE_RAM..=0x7f
            | command::WRITE_OUTPUT_PORT
            | command::WRITE_OUTPUT_BUFFER
            | command::WRITE_AUX_OUTPUT_BUFFER
            | command::WRITE_AUX => self.awaiting = Some(code),
            command::DISABLE_AUX => self.ram[0] |= AUX_OFF,
            command::ENABLE_AUX => self.ram[0] &= !AUX_OFF,
            command::DISABLE_KEYBOARD => self.ram[0] |= KEYBOARD_OFF,
            command::ENABLE_KEYBOARD => self.ram[0] &= !KEYBOARD_OFF,
            command::TEST_AUX | command::TEST_KEYBOARD => self.answer(LINE_SOUND, 0),
            command::SELF_TEST => {
                self.ram[0] = COMMAND_BYTE_AT_RESET;
                self.answer(SELF_TEST_PASSED, 0);
            }
            command::READ_INPUT_PORT => self.answer(0, 0),
            command::READ_OUTPUT_PORT => self.answer(NOT_RESET | A20, 0),
            command::PULSE.. => return code & NOT_RESET == 0,
            _ => tracing::debug!(code, "the keyboard controller ignores an unknown command"),
        }
        false
    }

    /// Takes a byte on the data port; true if it resets the machine.
    fn data(&mut self, byte: u8) -> bool {
        self.status &= !status::COMMAND;
        match self.awaiting.take() {
            Some(code @ command::WRITE_RAM..=0x7f) => self.ram[usize::from(code & command::LAST_RAM)] = byte,
            Some(command::WRITE_OUTPUT_PORT) => return byte & NOT_RESET == 0,
            Some(command::WRITE_OUTPUT_BUFFER) => self.answer(byte, 0),
            Some(command::WRITE_AUX_OUTPUT_BUFFER) => self.answer(byte, status::AUX_OUTPUT),
            Some(command::WRITE_AUX) => self.answer(NO_ANSWER, status::AUX_OUTPUT | status::TIMEOUT),
            // For the keyboard.
            _ => self.answer(NO_ANSWER, status::TIMEOUT),
        }
        false
    }
}

impl Device for I8042 {
    fn name(&self) -> &str {
        "i8042"
    }

    fn read(&self, offset: u64, size: u8) -> Response {
        let mut state = lock(&self.state);
        Response::Done(bytes::read(offset, size, |at| match at {
            DATA => state.read_data(),
            COMMAND => state.read_status(),
            _ => 0xff,
        }))
    }

    fn write(&self, offset: u64, size: u8, value: u64) -> Response {
        let mut state = lock(&self.state);
        let mut reset = false;
        bytes::write(offset, size, value, |at, byte| match at {
            DATA => reset |= state.data(byte),
            COMMAND => reset |= state.command(byte),
            _ => (),
        });
        drop(state);
        if reset {
            self.events.raise(MachineEvent::Reset);
        }
        Response::Done(0)
    }
}

impl fmt::Debug for I8042 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("I8042").field(&self.state()).finish()
    }
}

#[cfg(test)]
mod tests;

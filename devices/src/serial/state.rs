//! What a serial port remembers, as plain data.

use serde::{Deserialize, Serialize};

/// Bytes of input that the receiver holds. Larger than the chip's sixteen, which is `vm-superio`'s choice and saves
/// interrupts; a driver cannot tell.
pub const FIFO_SIZE: usize = 64;

/// The registers of a [`Serial`](super::Serial) and the input it has not read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialState {
    /// DLL and DLM, the divisor latch.
    pub divisor: [u8; 2],
    /// IER, interrupt enable.
    pub interrupt_enable: u8,
    /// IIR, interrupt identification.
    pub interrupt_identification: u8,
    /// LCR, line control.
    pub line_control: u8,
    /// LSR, line status.
    pub line_status: u8,
    /// MCR, modem control.
    pub modem_control: u8,
    /// MSR, modem status.
    pub modem_status: u8,
    /// SCR, scratch.
    pub scratch: u8,
    /// Input not yet read, oldest first; at most [`FIFO_SIZE`] bytes.
    pub input: Vec<u8>,
}

impl Default for SerialState {
    fn default() -> Self {
        vm_superio::SerialState::default().into()
    }
}

/// Why a state cannot be a serial port's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// More input than the receiver holds.
    #[error("{length} bytes of input where a serial port holds at most {FIFO_SIZE}")]
    Input {
        /// The bytes of input in the state.
        length: usize,
    },
}

impl From<vm_superio::SerialState> for SerialState {
    fn from(state: vm_superio::SerialState) -> Self {
        Self {
            divisor: [state.baud_divisor_low, state.baud_divisor_high],
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            input: state.in_buffer,
        }
    }
}

impl From<&SerialState> for vm_superio::SerialState {
    fn from(state: &SerialState) -> Self {
        let [baud_divisor_low, baud_divisor_high] = state.divisor;
        Self {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.input.clone(),
        }
    }
}

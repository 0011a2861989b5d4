//! The serial port: a 16550A UART, after the data sheet of National Semiconductor's PC16550D.
//!
//! # Purpose
//! The registers are `vm-superio`'s; this module gives them a place on the bus, an output that may be slow, and an input
//! that loses nothing. Transmission takes no time, so the transmitter is always empty: a guest that prints faster than
//! its console reads is held back by a late answer instead ([`Output`]).
//!
//! # Input
//! The receiver holds [`FIFO_SIZE`] bytes. [`Serial::enqueue`] takes what fits and says how much that was; whoever feeds
//! it keeps the rest and offers it again when [`Serial::wait_for_room`] returns or the function given to
//! [`Serial::on_room`] is called. A guest that clears its FIFO (FCR) keeps what has arrived, so nothing pasted ahead of a
//! shell is lost.
//!
//! # Interrupts
//! Edges, as on an ISA machine: each condition that becomes pending while enabled pulses the line.

use std::convert::Infallible;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;
use std::{fmt, mem};

use vm_superio::Trigger;
use vm_superio::serial::NoEvents;

use crate::Interrupt;
use crate::bus::{Bus, BusError, Device, Response, Space};
use crate::bytes;
use crate::output::Output;
use crate::sync::lock;

mod state;

pub use state::{FIFO_SIZE, RestoreError, SerialState};

/// The first port of COM1.
pub const COM1: u64 = 0x3f8;
/// The global system interrupt of COM1.
pub const COM1_GSI: u32 = 4;
/// The number of ports.
pub const PORTS: u64 = 8;

/// Modem control register, and its loopback bit.
const MCR: u8 = 4;
const MCR_LOOP: u8 = 1 << 4;

/// A 16550A serial port.
pub struct Serial {
    receiver: Mutex<Receiver>,
    room: Condvar,
    notify: Mutex<Option<Arc<dyn Fn() + Send + Sync>>>,
    interrupt: Arc<dyn Interrupt>,
    output: Arc<Output>,
}

type Uart = vm_superio::Serial<Line, NoEvents, Transmitter>;

/// The registers, and whether input was refused for want of room.
struct Receiver {
    uart: Uart,
    refused: bool,
    held: bool,
    received: u64,
}

impl Serial {
    /// A serial port after reset, printing to `output`.
    #[must_use]
    pub fn new(interrupt: Arc<dyn Interrupt>, output: Arc<Output>) -> Self {
        let uart = Uart::new(Line::new(Arc::clone(&interrupt)), Transmitter(None));
        Self {
            receiver: Mutex::new(Receiver {
                uart,
                refused: false,
                held: false,
                received: 0,
            }),
            room: Condvar::new(),
            notify: Mutex::new(None),
            interrupt,
            output,
        }
    }

    /// Puts the port at [`COM1`].
    ///
    /// # Errors
    /// [`BusError`] if its ports are taken.
    pub fn attach(self: &Arc<Self>, bus: &Bus) -> Result<(), BusError> {
        bus.insert(Space::Port, COM1, PORTS, Arc::clone(self) as Arc<dyn Device>)
    }

    /// Where the port prints.
    #[must_use]
    pub fn output(&self) -> &Arc<Output> {
        &self.output
    }

    /// Hands `bytes` to the guest and says how many of them the receiver had room for, from the front; none while the
    /// guest has the port in loopback, or while input is [held](Self::hold_input).
    #[must_use = "the bytes that were not taken must be offered again"]
    pub fn enqueue(&self, bytes: &[u8]) -> usize {
        let mut receiver = lock(&self.receiver);
        // The only error besides the line's, which has none, is a full FIFO.
        let taken = match receiver.held {
            true => 0,
            false => receiver.uart.enqueue_raw_bytes(bytes).unwrap_or(0),
        };
        receiver.refused = taken < bytes.len();
        receiver.received += taken as u64;
        taken
    }

    /// After [`enqueue`](Self::enqueue) refused something: waits until the guest has emptied the receiver. False if
    /// `timeout` passed first.
    pub fn wait_for_room(&self, timeout: Duration) -> bool {
        let refused = |receiver: &mut Receiver| receiver.refused;
        let waited = self.room.wait_timeout_while(lock(&self.receiver), timeout, refused);
        let (receiver, _) = waited.unwrap_or_else(PoisonError::into_inner);
        !receiver.refused
    }

    /// Has `notify` called whenever the guest has emptied the receiver after [`enqueue`](Self::enqueue) refused
    /// something. It is called on a vCPU thread amid an access, and must not block; it may enqueue.
    pub fn on_room(&self, notify: impl Fn() + Send + Sync + 'static) {
        *lock(&self.notify) = Some(Arc::new(notify));
    }

    /// The registers and the input not yet read.
    #[must_use]
    pub fn state(&self) -> SerialState {
        lock(&self.receiver).uart.state().into()
    }

    /// Replaces the state; `SerialState::default()` is the port after reset. The line is not pulsed: an interrupt that was
    /// pending when the state was taken has pulsed it, and the interrupt controller remembers.
    ///
    /// # Errors
    /// [`RestoreError`] if no port can be in this state; nothing has changed then.
    pub fn restore(&self, state: &SerialState) -> Result<(), RestoreError> {
        let line = Line::new(Arc::clone(&self.interrupt));
        line.mute(true);
        let uart =
            Uart::from_state(&state.into(), line, NoEvents, Transmitter(None)).map_err(|_| RestoreError::Input {
                length: state.input.len(),
            })?;
        uart.interrupt_evt().mute(false);
        self.with(|receiver| receiver.uart = uart);
        Ok(())
    }

    /// Holds (true) or lets in (false) input: while it is held, [`enqueue`](Self::enqueue) takes nothing. A machine that is
    /// paused holds it, so that a snapshot and the console agree on which bytes were taken.
    pub fn hold_input(&self, held: bool) {
        self.with(|receiver| receiver.held = held);
    }

    /// Does something with the registers, then tells who waits for room that there is some.
    fn with<T>(&self, work: impl FnOnce(&mut Receiver) -> T) -> T {
        let mut receiver = lock(&self.receiver);
        let result = work(&mut receiver);
        let uart = &mut receiver.uart;
        let room = uart.fifo_capacity() == FIFO_SIZE && uart.read(MCR) & MCR_LOOP == 0;
        if room && !receiver.held && mem::take(&mut receiver.refused) {
            drop(receiver);
            self.room.notify_all();
            let notify = lock(&self.notify).clone();
            if let Some(notify) = notify {
                notify();
            }
        }
        result
    }
}

impl Device for Serial {
    fn name(&self) -> &str {
        "serial"
    }

    fn read(&self, offset: u64, size: u8) -> Response {
        let value = self.with(|receiver| {
            bytes::read(offset, size, |at| {
                u8::try_from(at).map_or(0xff, |at| receiver.uart.read(at))
            })
        });
        Response::Done(value)
    }

    fn write(&self, offset: u64, size: u8, value: u64) -> Response {
        self.with(|receiver| {
            bytes::write(offset, size, value, |at, byte| {
                if let Ok(at) = u8::try_from(at) {
                    // Neither the line nor the transmitter fails, and bytes looped back into a full FIFO are an overrun.
                    let _ = receiver.uart.write(at, byte);
                }
            });
            // Pushed with the registers still locked, so that two vCPUs' bytes leave in the order of their writes.
            match receiver.uart.writer_mut().0.take() {
                Some(byte) => self.output.push(byte),
                None => Response::Done(0),
            }
        })
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let received = lock(&self.receiver).received;
        vec![
            ("written", self.output.written()),
            ("lost", self.output.lost()),
            ("received", received),
        ]
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serial")
            .field("state", &self.state())
            .field("output", &self.output)
            .finish_non_exhaustive()
    }
}

/// The UART's interrupt output.
struct Line {
    interrupt: Arc<dyn Interrupt>,
    muted: AtomicBool,
}

impl Line {
    fn new(interrupt: Arc<dyn Interrupt>) -> Self {
        Self {
            interrupt,
            muted: AtomicBool::new(false),
        }
    }

    /// Keeps (true) the UART's pulses from the line: it pulses for what is pending when it is made anew.
    fn mute(&self, muted: bool) {
        self.muted.store(muted, Relaxed);
    }
}

impl Trigger for Line {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        if !self.muted.load(Relaxed) {
            self.interrupt.pulse();
        }
        Ok(())
    }
}

/// The byte that the current access transmits. An access reaches the transmitter at most once, since only its first
/// register is one.
struct Transmitter(Option<u8>);

impl Write for Transmitter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = bytes.last().copied();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;

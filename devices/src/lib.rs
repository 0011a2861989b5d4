//! A bus whose devices may answer late, the platform devices of a microVM, PCI and virtio.
//!
//! A vCPU asks the [`Bus`]; the bus finds the device; the device answers at once, or hands out a [`Ticket`] and answers
//! through its [`Completion`] when it can, from any thread. While it waits, a vCPU is inside no device and holds no lock,
//! so that it can be paused, saved or stopped.
//!
//! # Map
//! | | |
//! |---|---|
//! | [`bus`] | ranges of ports and memory, late answers, counters |
//! | [`delay`] | makes any device late, for tests of whoever has to wait for it |
//! | [`serial`], [`output`] | the 16550A serial port, and the queue between a guest that prints and a console that reads |
//! | [`acpi`] | power button, power-off, reset, PM timer |
//! | [`rtc`] | the clock that knows the date |
//! | [`i8042`] | the keyboard controller, without a keyboard |
//! | [`pci`] | a root bus, configuration space, BARs, MSI and MSI-X |
//! | [`virtio`] | virtio devices behind PCI: disk, network card, console, sockets, balloon, entropy |
//! | [`vfio_user`], [`vhost_user`] | PCI devices in other processes, and virtio devices whose queues others serve |
//! | [`debug_exit`], [`debugcon`], [`post`] | ports for tests and firmware |
//! | [`Interrupt`], [`Clock`], [`MachineEvents`] | what a device needs of its machine: a line, the time, somebody who resets it |
//!
//! The crate knows no hypervisor and no threads of a vCPU; it is of use to any VMM. Each platform device has
//! `attach`, which puts it at its customary ports, and state that can be saved and restored as plain data.
//!
//! # A device that answers late
//! ```
//! use std::sync::{Arc, mpsc};
//! use std::thread;
//! use std::time::Duration;
//!
//! use reprise_devices::{Bus, Completion, Device, Response, Space, Ticket};
//!
//! /// Asks another thread for everything.
//! struct Oracle {
//!     questions: mpsc::Sender<(u64, Completion)>,
//! }
//!
//! impl Device for Oracle {
//!     fn name(&self) -> &str {
//!         "oracle"
//!     }
//!
//!     fn read(&self, offset: u64, _size: u8) -> Response {
//!         let (ticket, completion) = Ticket::pair();
//!         // Should the other thread be gone, the completion is dropped here, and the guest reads all ones.
//!         let _ = self.questions.send((offset, completion));
//!         Response::Later(ticket)
//!     }
//!
//!     fn write(&self, _offset: u64, _size: u8, _value: u64) -> Response {
//!         Response::Done(0)
//!     }
//! }
//!
//! let (questions, inbox) = mpsc::channel();
//! let bus = Bus::new();
//! bus.insert(Space::Memory, 0xd000_0000, 0x1000, Arc::new(Oracle { questions }))?;
//!
//! // A vCPU reads, and is told to wait.
//! let Response::Later(ticket) = bus.read(Space::Memory, 0xd000_0004, 2) else { unreachable!() };
//! assert_eq!(ticket.try_take(), None);
//!
//! // Some thread, some time later.
//! let oracle = thread::spawn(move || {
//!     let (offset, completion): (u64, Completion) = inbox.recv().unwrap();
//!     completion.complete(offset * 0x1111);
//! });
//! while ticket.wait_timeout(Duration::from_millis(10)).is_none() { /* serve pause, snapshot, shutdown */ }
//! assert_eq!(ticket.try_take(), Some(0x4444));
//! # oracle.join().unwrap();
//! # Ok::<(), reprise_devices::BusError>(())
//! ```
#![deny(unsafe_code)]

pub mod acpi;
pub mod bus;
mod bytes;
pub mod clock;
pub mod debug_exit;
pub mod debugcon;
pub mod delay;
pub mod event;
pub mod i8042;
pub mod interrupt;
pub mod output;
pub mod pci;
pub mod post;
pub mod rtc;
pub mod serial;
mod socket;
mod sync;
#[allow(unsafe_code)]
mod sys;
#[cfg(test)]
mod testing;
pub mod thread;
pub mod vfio_user;
pub mod vhost_user;
pub mod virtio;

pub use acpi::{Acpi, AcpiState};
pub use bus::{Bus, BusError, Carrier, Completion, Device, Response, Space, Ticket};
pub use clock::{Clock, HostClock, HostClockState};
pub use debug_exit::DebugExit;
pub use debugcon::DebugConsole;
pub use delay::{Delay, Delayed, Delays, DelaysState, Lateness, NotDelayed};
pub use event::{MachineEvent, MachineEvents};
pub use i8042::{I8042, I8042State};
pub use interrupt::{Interrupt, NoInterrupt};
pub use output::{Output, OutputState};
pub use post::{PostCode, PostCodeState};
pub use rtc::{MemorySize, Rtc, RtcState};
pub use serial::{Serial, SerialState};

//! PCI: one root bus, its functions, and their message-signalled interrupts.
//!
//! # Purpose
//! A [`PciRoot`] answers configuration accesses, by ports and by ECAM, and keeps the ranges of the [`Bus`](crate::Bus) where the
//! guest puts the base address registers, whenever it puts them there. A [`Function`] is what stands at a device number: its
//! configuration space, its interrupts ([`Msix`], [`Msi`]), and behind them [`Registers`], which is all that a device has to
//! bring. Names and offsets are those of the PCI Local Bus Specification 3.0 and the PCI Express Base Specification.
//!
//! # Invariants
//! - An access of any width at any offset of configuration space does what its bytes do; a write changes writable bits and no
//!   others. Where nobody is, reads are ones.
//! - A memory BAR is on the bus exactly while memory space is enabled and the place is free; a BAR that is put onto
//!   somebody else answers nowhere until one of them moves.
//! - A function sends no message while it is no bus master, and a masked vector's message is pending until it may be sent.
//!
//! # What is not there
//! No bridges, so all functions are on bus 0, each of them function 0 of its device; no I/O BARs, and no INTx lines: the
//! Interrupt Pin register is 0.

pub mod config;
pub mod function;
pub mod hotplug;
pub mod msi;
pub mod msix;
pub mod root;
pub mod spec;
#[cfg(test)]
pub(crate) mod testing;

pub use config::{Bar, ConfigSpace, Identity};
pub use function::{Function, FunctionState, Registers};
pub use hotplug::{Hotplug, HotplugState};
pub use msi::{Msi, MsiState};
pub use msix::{Msix, MsixPlace, MsixState, VectorState};
pub use root::{Layout, PciError, PciRoot, PciState, PciStateError};

/// A message-signalled interrupt: what a function writes, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Message {
    /// The address.
    pub address: u64,
    /// The data.
    pub data: u32,
}

/// Who carries messages to processors. Called with device locks held, so an implementation neither blocks nor calls back into
/// a device.
pub trait Messages: Send + Sync {
    /// Delivers `message`.
    fn send(&self, message: Message);

    /// Delivers the message of a function's `vector`, which is not masked: `message`, to which it was [routed](Self::route).
    fn signal(&self, vector: u16, message: Message) {
        let _ = vector;
        self.send(message);
    }

    /// Says where the messages of a function's `vector` go from now on; `None` if they are not to be sent, because the vector is
    /// masked or the function's messages are off. Told once for each change. Of use to those who let somebody else, such as
    /// the host's kernel, signal in the function's name.
    fn route(&self, vector: u16, message: Option<Message>) {
        let _ = (vector, message);
    }

    /// Whether `vector` was signalled by somebody else in the function's name, and could not be sent yet: its pending bit.
    fn is_pending(&self, vector: u16) -> bool {
        let _ = vector;
        false
    }
}

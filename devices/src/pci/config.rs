//! A function's configuration space: its bytes, and which bits of them a guest may change.
//!
//! # Invariants
//! - [`ConfigSpace::write`] changes writable bits only, whatever the width and the offset.
//! - Sizing works by that alone: the address bits of a BAR below its size are not writable and read as zero.

use super::spec::{self, CONFIG_LENGTH, bar, command, status};
use crate::bytes;

/// What a function says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision ID.
    pub revision: u8,
    /// Class code: base class, subclass, programming interface.
    pub class: [u8; 3],
    /// Subsystem Vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
}

/// A memory base address register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bar {
    /// Which, 0 to 5; one that is 64 bits wide takes the next too.
    pub index: u8,
    /// The size of what is behind it, in bytes: a power of two, 16 or more.
    pub size: u64,
    /// Whether it is 64 bits wide.
    pub wide: bool,
    /// Whether reads have no side effects.
    pub prefetchable: bool,
}

impl Bar {
    /// Whether this can be a BAR at all.
    fn is_sound(self) -> bool {
        let top = if self.wide { 1 << 63 } else { 1 << 31 };
        self.size.is_power_of_two() && (16..=top).contains(&self.size) && self.index + u8::from(self.wide) < 6
    }

    fn register(self) -> u8 {
        spec::BAR0 + 4 * self.index
    }
}

/// What a function cannot be made of. Only a device that is written wrongly finds out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConfigSpaceError {
    /// No power of two, or no such register, or one that is taken.
    #[error("BAR {index} of {size:#x} bytes is none")]
    Bar {
        /// Its index.
        index: u8,
        /// Its size in bytes.
        size: u64,
    },
    /// The capabilities do not fit.
    #[error("capability {id:#x} of {length} bytes does not fit into configuration space")]
    Capability {
        /// Its ID.
        id: u8,
        /// Its length in bytes.
        length: usize,
    },
}

/// The first 256 bytes of configuration space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigSpace {
    bytes: [u8; CONFIG_LENGTH],
    writable: [u8; CONFIG_LENGTH],
    bars: Vec<Bar>,
    /// Where the next capability goes.
    free: usize,
    /// The byte that is to point at it.
    link: u8,
}

impl ConfigSpace {
    /// A type 0 header of what `identity` says, without BARs and capabilities.
    #[must_use]
    pub fn new(identity: Identity) -> Self {
        let mut space = Self {
            bytes: [0; CONFIG_LENGTH],
            writable: [0; CONFIG_LENGTH],
            bars: Vec::new(),
            free: spec::HEADER_END.into(),
            link: spec::CAPABILITIES,
        };
        space.set(spec::VENDOR_ID, &identity.vendor.to_le_bytes());
        space.set(spec::DEVICE_ID, &identity.device.to_le_bytes());
        let [class, subclass, interface] = identity.class;
        space.set(spec::REVISION_ID, &[identity.revision, interface, subclass, class]);
        space.set(spec::SUBSYSTEM_VENDOR_ID, &identity.subsystem_vendor.to_le_bytes());
        space.set(spec::SUBSYSTEM_ID, &identity.subsystem.to_le_bytes());
        space.allow(spec::COMMAND, &command::WRITABLE.to_le_bytes());
        // Both are scratch registers, for the system's own use.
        space.allow(spec::CACHE_LINE_SIZE, &[0xff]);
        space.allow(spec::INTERRUPT_LINE, &[0xff]);
        space
    }

    /// Adds a memory BAR, at address 0.
    ///
    /// # Errors
    /// [`ConfigSpaceError::Bar`] if it is not one, or its register is taken.
    pub fn add_bar(&mut self, bar: Bar) -> Result<(), ConfigSpaceError> {
        let registers = |bar: &Bar| bar.index..=bar.index + u8::from(bar.wide);
        let taken = |old: &Bar| registers(old).any(|register| registers(&bar).contains(&register));
        if !bar.is_sound() || self.bars.iter().any(taken) {
            return Err(ConfigSpaceError::Bar {
                index: bar.index,
                size: bar.size,
            });
        }
        let mut flags = 0;
        if bar.wide {
            flags |= bar::WIDE;
        }
        if bar.prefetchable {
            flags |= bar::PREFETCHABLE;
        }
        let address = (!(bar.size - 1)).to_le_bytes();
        let length = if bar.wide { 8 } else { 4 };
        self.set(bar.register(), &flags.to_le_bytes());
        self.allow(bar.register(), &address[..length]);
        self.bars.push(bar);
        Ok(())
    }

    /// Adds a capability of ID `id` with `body` behind its two-byte head, of which the bits in `writable` (as long, or shorter)
    /// can be changed by the guest. Returns its offset.
    ///
    /// # Errors
    /// [`ConfigSpaceError::Capability`] if there is no room.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> Result<u8, ConfigSpaceError> {
        let none = ConfigSpaceError::Capability {
            id,
            length: 2 + body.len(),
        };
        let at = u8::try_from(self.free).map_err(|_| none)?;
        self.place_capability(at, id, body, writable)?;
        Ok(at)
    }

    /// As [`add_capability`](Self::add_capability), at a place of the caller's choice behind the header, a multiple of 4. It is
    /// the last in the list; that it overlaps no other is the caller's to see to.
    ///
    /// # Errors
    /// [`ConfigSpaceError::Capability`] if there is no such place.
    pub fn place_capability(&mut self, at: u8, id: u8, body: &[u8], writable: &[u8]) -> Result<(), ConfigSpaceError> {
        let length = 2 + body.len();
        let end = usize::from(at) + length;
        let placed = at >= spec::HEADER_END && at.is_multiple_of(4) && end <= CONFIG_LENGTH;
        if !placed || writable.len() > body.len() {
            return Err(ConfigSpaceError::Capability { id, length });
        }
        self.set(at, &[id, 0]);
        self.set(at + 2, body);
        self.allow(at + 2, writable);
        self.set(self.link, &[at]);
        let flags = self.u16(spec::STATUS) | status::CAPABILITIES;
        self.set(spec::STATUS, &flags.to_le_bytes());
        self.link = at + 1;
        self.free = self.free.max(end.next_multiple_of(4));
        Ok(())
    }

    /// Reads `size` bytes at `offset`; zero beyond the end.
    #[must_use]
    pub fn read(&self, offset: u64, size: u8) -> u64 {
        bytes::read(offset, size, |at| {
            usize::try_from(at)
                .ok()
                .and_then(|at| self.bytes.get(at))
                .copied()
                .unwrap_or(0)
        })
    }

    /// Writes the writable bits of `size` bytes at `offset`.
    pub fn write(&mut self, offset: u64, size: u8, value: u64) {
        bytes::write(offset, size, value, |at, byte| {
            let Ok(at) = usize::try_from(at) else { return };
            if let (Some(old), Some(writable)) = (self.bytes.get_mut(at), self.writable.get(at)) {
                *old = *old & !writable | byte & writable;
            }
        });
    }

    /// Sets bytes at `at`, writable or not; what would lie beyond the end is dropped.
    pub fn set(&mut self, at: u8, bytes: &[u8]) {
        for (place, byte) in self.bytes.iter_mut().skip(at.into()).zip(bytes) {
            *place = *byte;
        }
    }

    /// Lets the guest change the bits of `bits`, bytes from `at` on, besides those that it may change already.
    pub fn allow(&mut self, at: u8, bits: &[u8]) {
        for (place, byte) in self.writable.iter_mut().skip(at.into()).zip(bits) {
            *place |= *byte;
        }
    }

    /// Two bytes at `at`.
    #[must_use]
    pub fn u16(&self, at: u8) -> u16 {
        self.read(at.into(), 2) as u16
    }

    /// Four bytes at `at`.
    #[must_use]
    pub fn u32(&self, at: u8) -> u32 {
        self.read(at.into(), 4) as u32
    }

    /// The BARs.
    #[must_use]
    pub fn bars(&self) -> &[Bar] {
        &self.bars
    }

    /// The address in `bar`.
    #[must_use]
    pub fn address(&self, bar: Bar) -> u64 {
        let size = if bar.wide { 8 } else { 4 };
        self.read(bar.register().into(), size) & !u64::from(bar::FLAGS)
    }

    /// Puts `address` into `bar`, as a write of it does.
    pub fn set_address(&mut self, bar: Bar, address: u64) {
        let size = if bar.wide { 8 } else { 4 };
        self.write(bar.register().into(), size, address);
    }

    /// Where `bar` answers, if memory space is enabled. An address of 0 is one that nobody has set.
    #[must_use]
    pub fn decoded(&self, bar: Bar) -> Option<u64> {
        let address = self.address(bar);
        (self.command() & command::MEMORY != 0 && address != 0).then_some(address)
    }

    /// The Command register.
    #[must_use]
    pub fn command(&self) -> u16 {
        self.u16(spec::COMMAND)
    }

    /// All bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Takes the writable bits of `bytes`, from the first byte on.
    pub fn restore(&mut self, bytes: &[u8]) {
        for (byte, at) in bytes.iter().zip(0..CONFIG_LENGTH as u64) {
            self.write(at, 1, (*byte).into());
        }
    }
}

#[cfg(test)]
mod tests;

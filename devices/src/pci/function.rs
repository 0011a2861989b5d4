//! What stands at a device number: configuration space, interrupts, and a device's registers behind its BARs.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};

use super::config::{Bar, ConfigSpace, ConfigSpaceError};
use super::msi::{self, Msi, MsiState};
use super::msix::{self, Msix, MsixPlace, MsixState};
use super::spec::{self, capability, command};
use crate::bus::{Device, Response};
use crate::sync::lock;

/// In an offset that the bus passes, where the number of the BAR is.
const BAR_SHIFT: u32 = 60;

/// What a device has behind its function's BARs. It locks for itself.
pub trait Registers: Send + Sync {
    /// Reads `size` bytes (1, 2, 4 or 8) at `offset` in BAR `bar`.
    fn read(&self, bar: u8, offset: u64, size: u8) -> Response;

    /// Writes the low `size` bytes of `value` at `offset` in BAR `bar`.
    fn write(&self, bar: u8, offset: u64, size: u8, value: u64) -> Response;

    /// As [`Device::resume`].
    fn resume(&self, bar: u8, offset: u64, size: u8, write: Option<u64>) -> Response {
        let _ = (bar, offset, size, write);
        Response::Done(u64::MAX)
    }

    /// Says whether the function may access memory.
    fn set_master(&self, master: bool) {
        let _ = master;
    }

    /// Called before `size` bytes at `offset` of `config` are read, for capabilities whose bytes are not just memory. The
    /// configuration space is locked.
    fn before_config_read(&self, config: &mut ConfigSpace, offset: u64, size: u8) {
        let _ = (config, offset, size);
    }

    /// Called after `size` bytes at `offset` of `config` were written. The configuration space is locked.
    fn after_config_write(&self, config: &ConfigSpace, offset: u64, size: u8) {
        let _ = (config, offset, size);
    }

    /// As [`Device::counters`].
    fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

/// What a [`Function`] remembers; its device's own state is the device's to save.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionState {
    /// The first 256 bytes of configuration space.
    pub config: Vec<u8>,
    /// MSI-X, if the function has it.
    pub msix: Option<MsixState>,
    /// MSI, if the function has it.
    pub msi: Option<MsiState>,
}

/// A state of another function than this one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FunctionStateError {
    /// It is not 256 bytes of configuration space.
    #[error("its configuration space has {length} bytes; expected 256")]
    Length {
        /// How many bytes there are.
        length: usize,
    },
    /// It says it is another device.
    #[error("it was {was:#010x} and is {own:#010x} (Device ID, Vendor ID)")]
    Identity {
        /// The first four bytes saved.
        was: u32,
        /// This function's.
        own: u32,
    },
    /// MSI or MSI-X on one side only, or of another number of vectors.
    #[error("its message-signalled interrupts are others")]
    Interrupts,
}

/// A PCI function.
pub struct Function {
    name: String,
    config: Mutex<ConfigSpace>,
    msix: Option<MsixCapability>,
    msi: Option<MsiCapability>,
    registers: Arc<dyn Registers>,
}

struct MsixCapability {
    msix: Arc<Msix>,
    place: MsixPlace,
    at: u8,
}

struct MsiCapability {
    msi: Arc<Msi>,
    at: u8,
}

impl Function {
    /// A function called `name` with `registers` behind the BARs of `config`.
    #[must_use]
    pub fn new(name: impl Into<String>, config: ConfigSpace, registers: Arc<dyn Registers>) -> Self {
        Self {
            name: name.into(),
            config: Mutex::new(config),
            msix: None,
            msi: None,
            registers,
        }
    }

    /// Adds MSI-X, with its structures at `place`.
    ///
    /// # Errors
    /// [`ConfigSpaceError`] if configuration space has no room.
    pub fn with_msix(mut self, msix: Arc<Msix>, place: MsixPlace) -> Result<Self, ConfigSpaceError> {
        let mut body = Vec::from((msix.vectors() - 1).to_le_bytes());
        body.extend((place.table | u32::from(place.bar)).to_le_bytes());
        body.extend((place.pending | u32::from(place.bar)).to_le_bytes());
        let writable = msix::control::ENABLE | msix::control::FUNCTION_MASK;
        let at = lock(&self.config).add_capability(capability::MSIX, &body, &writable.to_le_bytes())?;
        self.msix = Some(MsixCapability { msix, place, at });
        Ok(self)
    }

    /// Adds MSI.
    ///
    /// # Errors
    /// [`ConfigSpaceError`] if configuration space has no room.
    pub fn with_msi(mut self, msi: Arc<Msi>) -> Result<Self, ConfigSpaceError> {
        let (body, writable) = msi.capability();
        let at = lock(&self.config).add_capability(capability::MSI, &body, &writable)?;
        self.msi = Some(MsiCapability { msi, at });
        Ok(self)
    }

    /// The name, as of a device on the bus.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// MSI-X, if the function has it.
    #[must_use]
    pub fn msix(&self) -> Option<&Arc<Msix>> {
        self.msix.as_ref().map(|capability| &capability.msix)
    }

    /// Reads `size` bytes of configuration space.
    #[must_use]
    pub fn read_config(&self, offset: u64, size: u8) -> u64 {
        let mut config = self.current();
        self.registers.before_config_read(&mut config, offset, size);
        config.read(offset, size)
    }

    /// Configuration space with the pending bits as they are now.
    fn current(&self) -> MutexGuard<'_, ConfigSpace> {
        let mut config = lock(&self.config);
        if let Some(MsiCapability { msi, at }) = &self.msi {
            let at = at + 2 + msi::PENDING as u8;
            config.set(at, &msi.state().pending.to_le_bytes());
        }
        config
    }

    /// Writes `size` bytes of configuration space.
    pub fn write_config(&self, offset: u64, size: u8, value: u64) {
        let mut config = lock(&self.config);
        let before = config.clone();
        config.write(offset, size, value);
        if *config != before {
            self.settle(&config);
        }
        self.registers.after_config_write(&config, offset, size);
    }

    /// The BARs and where each answers.
    pub(super) fn decoded(&self) -> Vec<(Bar, Option<u64>)> {
        let config = lock(&self.config);
        let bars = config.bars().iter();
        bars.map(|bar| (*bar, config.decoded(*bar))).collect()
    }

    /// Puts an address into a BAR, as firmware does.
    pub(super) fn set_address(&self, bar: Bar, address: u64) {
        lock(&self.config).set_address(bar, address);
    }

    /// The bus's offset of the first byte of `bar`.
    pub(super) fn first_offset(bar: Bar) -> u64 {
        u64::from(bar.index) << BAR_SHIFT
    }

    /// What is remembered.
    #[must_use]
    pub fn state(&self) -> FunctionState {
        FunctionState {
            config: self.current().bytes().to_vec(),
            msix: self.msix.as_ref().map(|capability| capability.msix.state()),
            msi: self.msi.as_ref().map(|capability| capability.msi.state()),
        }
    }

    /// Whether this function can go on from `state`.
    ///
    /// # Errors
    /// [`FunctionStateError`] if not.
    pub fn check(&self, state: &FunctionState) -> Result<(), FunctionStateError> {
        let [a, b, c, d, ..] = state.config[..] else {
            return Err(FunctionStateError::Length {
                length: state.config.len(),
            });
        };
        if state.config.len() != spec::CONFIG_LENGTH {
            return Err(FunctionStateError::Length {
                length: state.config.len(),
            });
        }
        let (was, own) = (
            u32::from_le_bytes([a, b, c, d]),
            lock(&self.config).u32(spec::VENDOR_ID),
        );
        if was != own {
            return Err(FunctionStateError::Identity { was, own });
        }
        let saved = state.msix.as_ref().map(|msix| msix.vectors.len());
        let vectors = self.msix.as_ref().map(|capability| capability.msix.vectors().into());
        if saved != vectors || state.msi.is_some() != self.msi.is_some() {
            return Err(FunctionStateError::Interrupts);
        }
        Ok(())
    }

    /// Goes on from `state`.
    ///
    /// # Errors
    /// [`FunctionStateError`] if it is another function's; nothing has changed then.
    pub fn restore(&self, state: &FunctionState) -> Result<(), FunctionStateError> {
        self.check(state)?;
        let mut config = lock(&self.config);
        if let (Some(MsixCapability { msix, .. }), Some(state)) = (&self.msix, &state.msix) {
            // The number of vectors is right.
            msix.restore(state);
        }
        if let (Some(MsiCapability { msi, .. }), Some(state)) = (&self.msi, state.msi) {
            msi.restore(state);
        }
        config.restore(&state.config);
        self.settle(&config);
        Ok(())
    }

    /// Tells everybody concerned what the registers say now.
    fn settle(&self, config: &ConfigSpace) {
        let master = config.command() & command::MASTER != 0;
        if let Some(MsixCapability { msix, at, .. }) = &self.msix {
            msix.set_control(config.u16(at + 2), master);
        }
        if let Some(MsiCapability { msi, at }) = &self.msi {
            let mut body = [0; msi::BODY_LENGTH];
            for (byte, at) in body.iter_mut().zip(u64::from(at + 2)..) {
                *byte = config.read(at, 1) as u8;
            }
            msi.update(&body, master);
        }
        self.registers.set_master(master);
    }

    /// The part of MSI-X that lies at `offset` of BAR `bar`.
    fn msix_part(&self, bar: u8, offset: u64) -> Option<(&Msix, Part)> {
        let MsixCapability { msix, place, .. } = self.msix.as_ref().filter(|msix| msix.place.bar == bar)?;
        let within = |start: u32, length: u64| offset.checked_sub(start.into()).filter(|offset| *offset < length);
        let part = match within(place.table, msix.table_length()) {
            Some(offset) => Part::Table(offset),
            None => Part::Pending(within(place.pending, msix.pending_length())?),
        };
        Some((msix, part))
    }
}

/// A place in the structures of MSI-X.
enum Part {
    Table(u64),
    Pending(u64),
}

/// The BAR and the offset in it of an offset that the bus passes.
fn split(offset: u64) -> (u8, u64) {
    ((offset >> BAR_SHIFT) as u8, offset & ((1 << BAR_SHIFT) - 1))
}

/// The BARs, as the bus sees them.
impl Device for Function {
    fn name(&self) -> &str {
        &self.name
    }

    fn read(&self, offset: u64, size: u8) -> Response {
        let (bar, offset) = split(offset);
        match self.msix_part(bar, offset) {
            Some((msix, Part::Table(offset))) => Response::Done(msix.read_table(offset, size)),
            Some((msix, Part::Pending(offset))) => Response::Done(msix.read_pending(offset, size)),
            None => self.registers.read(bar, offset, size),
        }
    }

    fn write(&self, offset: u64, size: u8, value: u64) -> Response {
        let (bar, offset) = split(offset);
        match self.msix_part(bar, offset) {
            Some((msix, Part::Table(offset))) => {
                msix.write_table(offset, size, value);
                Response::Done(0)
            }
            Some((_, Part::Pending(_))) => Response::Done(0),
            None => self.registers.write(bar, offset, size, value),
        }
    }

    fn resume(&self, offset: u64, size: u8, write: Option<u64>) -> Response {
        let (bar, offset) = split(offset);
        self.registers.resume(bar, offset, size, write)
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        self.registers.counters()
    }
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Function")
            .field("name", &self.name)
            .field("bars", &self.decoded())
            .finish_non_exhaustive()
    }
}

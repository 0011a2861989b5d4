//! What stands at a device number: configuration space, interrupts, and a device's registers behind its BARs.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};

use super::config::{Bar, ConfigSpace, ConfigSpaceError};
use super::msi::{self, Msi, MsiState};
use super::msix::{MaskChange, Msix, MsixPlace, MsixState};
use super::spec::{self, capability, command};
use crate::bus::{Device, Response, Ticket};
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

    /// Says that BAR `bar` begins at guest-physical `address` from now on, or that its accesses come from nowhere, or from somebody
    /// who is to see all of them (`None`). The root is locked: whoever is told calls nothing of PCI.
    fn placed(&self, bar: u8, address: Option<u64>) {
        let _ = (bar, address);
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

    /// Asks the device itself for `size` bytes of configuration space, where it has some of its own: which bits of the answer are
    /// the device's, and the answer. The other bits are those of the [`ConfigSpace`].
    fn own_config_read(&self, offset: u64, size: u8) -> Option<(u64, Response)> {
        let _ = (offset, size);
        None
    }

    /// Called after `value` was written to `config`, for a device that has bytes of its own there or wants to know. The
    /// configuration space is locked.
    fn own_config_write(&self, config: &ConfigSpace, offset: u64, size: u8, value: u64) -> Response {
        let _ = (config, offset, size, value);
        Response::Done(0)
    }

    /// Says that `vector` of MSI-X is masked from now on, or is not any more as soon as the answer is there: for a device that
    /// keeps masks of its own.
    fn set_masked(&self, vector: u16, masked: bool) -> Response {
        let _ = (vector, masked);
        Response::Done(0)
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
        let (body, writable) = msix.capability(place);
        let at = lock(&self.config).add_capability(capability::MSIX, &body, &writable)?;
        self.msix = Some(MsixCapability { msix, place, at });
        Ok(self)
    }

    /// As [`with_msix`](Self::with_msix), with the capability at `at`.
    ///
    /// # Errors
    /// [`ConfigSpaceError`] if that is no place for it.
    pub fn with_msix_at(mut self, msix: Arc<Msix>, place: MsixPlace, at: u8) -> Result<Self, ConfigSpaceError> {
        let (body, writable) = msix.capability(place);
        lock(&self.config).place_capability(at, capability::MSIX, &body, &writable)?;
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

    /// As [`read_config`](Self::read_config), where a device may have to be asked.
    pub fn ask_config(&self, offset: u64, size: u8) -> Response {
        let own = self.read_config(offset, size);
        match self.registers.own_config_read(offset, size) {
            None => Response::Done(own),
            Some((theirs, Response::Done(value))) => Response::Done(value & theirs | own & !theirs),
            Some((theirs, Response::Later(ticket))) => Response::Later(ticket.masked(theirs, own & !theirs)),
        }
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

    /// Writes `size` bytes of configuration space. What is told late is only that a device knows.
    pub fn write_config(&self, offset: u64, size: u8, value: u64) -> Response {
        let mut config = lock(&self.config);
        let before = config.clone();
        config.write(offset, size, value);
        if *config != before {
            self.settle(&config);
        }
        self.registers.after_config_write(&config, offset, size);
        self.registers.own_config_write(&config, offset, size, value)
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

    /// Says where a BAR is on the bus.
    pub(crate) fn placed(&self, bar: u8, address: Option<u64>) {
        self.registers.placed(bar, address);
    }

    /// The bus's offset of the first byte of `bar`.
    pub(super) fn first_offset(bar: Bar) -> u64 {
        join(bar.index, 0)
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
    fn msix_part(&self, bar: u8, offset: u64) -> Option<(&Arc<Msix>, Part)> {
        let MsixCapability { msix, place, .. } = self.msix.as_ref()?;
        let within = |of: u8, start: u32, length: u64| {
            let offset = offset.checked_sub(start.into()).filter(|_| of == bar)?;
            (offset < length).then_some(offset)
        };
        let part = match within(place.bar, place.table, msix.table_length()) {
            Some(offset) => Part::Table(offset),
            None => Part::Pending(within(place.pending_bar, place.pending, msix.pending_length())?),
        };
        Some((msix, part))
    }

    /// Writes the table of MSI-X. A vector is unmasked when the device knows of it, which keeps the write open until then. Should
    /// the device never know, for being gone, the table is as it was written all the same.
    fn write_table(&self, msix: &Arc<Msix>, offset: u64, size: u8, value: u64) -> Response {
        let unmasking = match msix.begin_write(offset, size, value) {
            None => return Response::Done(0),
            Some(MaskChange::Masked(vector)) => return self.registers.set_masked(vector, true),
            Some(MaskChange::Unmasks(unmasking)) => unmasking,
        };
        match self.registers.set_masked(unmasking.vector, false) {
            Response::Done(_) => {
                msix.finish_write(unmasking);
                Response::Done(0)
            }
            Response::Later(known) => {
                let (ticket, completion) = Ticket::pair();
                let msix = Arc::clone(msix);
                known.on_ready(move || {
                    msix.finish_write(unmasking);
                    completion.complete(0);
                });
                Response::Later(ticket)
            }
        }
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

/// The offset that the bus passes for an offset in a BAR.
fn join(bar: u8, offset: u64) -> u64 {
    u64::from(bar) << BAR_SHIFT | offset
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
            Some((msix, Part::Table(offset))) => self.write_table(msix, offset, size, value),
            Some((_, Part::Pending(_))) => Response::Done(0),
            None => self.registers.write(bar, offset, size, value),
        }
    }

    fn resume(&self, offset: u64, size: u8, write: Option<u64>) -> Response {
        let (bar, offset) = split(offset);
        match (self.msix_part(bar, offset), write) {
            // The table is this function's: what was under way is finished here, whatever the device knows.
            (Some((msix, Part::Table(offset))), Some(value)) => {
                msix.write_table(offset, size, value);
                Response::Done(0)
            }
            (Some(_), _) => self.read(join(bar, offset), size),
            (None, _) => self.registers.resume(bar, offset, size, write),
        }
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

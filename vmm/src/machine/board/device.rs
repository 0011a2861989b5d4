//! What a PCI device is to the board, and how each section of the configuration becomes one.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use reprise_devices::pci::{Function, Messages};
use reprise_devices::virtio::{self, Dma, ResizeError, VirtioDevice, VirtioPci, VirtioState};
use reprise_hypervisor::{GuestMemory, Vm};
use serde::{Deserialize, Serialize};

use super::limits::Groups;
use super::signals::{self, Direct, Events};
use super::{BoardError, BoardStateError, balloon, console, disk, fs, net, rng, user_device, vsock};
use crate::config::DeviceSpec;
use crate::console::Console;

/// What every PCI device is made with.
pub(super) struct Context {
    /// The machine.
    pub(super) vm: Arc<dyn Vm>,
    /// Its memory.
    pub(super) memory: GuestMemory,
    /// The same, as devices reach it.
    pub(super) dma: Dma,
    /// What limits disks together.
    pub(super) groups: Groups,
    /// Where the virtio console leads, if there is one.
    pub(super) console: Option<Arc<Console>>,
    /// The virtio console, once it is made.
    pub(super) virtio_console: OnceLock<Arc<virtio::Console>>,
}

impl Context {
    /// Where a device sends its interrupts.
    pub(super) fn messages(&self) -> Arc<dyn Messages> {
        let vm = Arc::clone(&self.vm);
        match vm.has_kernel_events() {
            true => Arc::new(Events::new(vm)),
            false => Arc::new(Direct(vm)),
        }
    }

    /// Whether another process can map the memory that a device called `name` has it use.
    ///
    /// # Errors
    /// [`BoardError::NotShared`] if not.
    pub(super) fn needs_sharing(&self, name: &str) -> Result<(), BoardError> {
        match self.dma.is_shared() {
            true => Ok(()),
            false => Err(BoardError::NotShared { name: name.to_owned() }),
        }
    }

    /// Puts `device` behind virtio's PCI transport.
    pub(super) fn virtio(&self, name: &str, device: Arc<dyn VirtioDevice>) -> Result<Made, BoardError> {
        let (device, function) = VirtioPci::new(name, device, self.dma.clone(), self.messages())?;
        if self.vm.has_kernel_events() {
            device.take_notifications_by(Arc::new(signals::Bells(Arc::clone(&self.vm))));
        }
        Ok(Made {
            function: Arc::new(function),
            device,
        })
    }
}

/// A device that was made, and is not on the bus yet.
pub(super) struct Made {
    /// What the guest finds on the bus.
    pub(super) function: Arc<Function>,
    /// What the board holds on to.
    pub(super) device: Arc<dyn PciDevice>,
}

/// Makes the device that `spec` asks for, called `name`.
///
/// # Errors
/// [`BoardError`] naming what is in the way; nothing is left behind.
pub(super) fn make(name: &str, spec: &DeviceSpec, context: &Context) -> Result<Made, BoardError> {
    match spec {
        DeviceSpec::Disk(config) => disk::make(name, config, context),
        DeviceSpec::Rng(config) => rng::make(name, config, context),
        DeviceSpec::Net(config) => net::make(name, config, context),
        DeviceSpec::Fs(config) => fs::make(name, config, context),
        DeviceSpec::User(config) => user_device::make(name, config, context),
        DeviceSpec::Console(_) => console::make(name, context),
        DeviceSpec::Vsock(config) => vsock::make(name, config, context),
        DeviceSpec::Balloon(config) => balloon::make(name, config, context),
    }
}

/// What the board asks of a PCI device, of whichever kind. Dropped, the device has let go of guest memory and of the host's
/// files.
pub(super) trait PciDevice: Send + Sync {
    /// Stops (true) or continues (false) it. Once stopped, it touches guest memory no more. It may take `patience` for what
    /// it is doing; false if it is still busy then.
    fn set_paused(&self, paused: bool, patience: Duration) -> bool;

    /// What it remembers, besides configuration space and MSI-X. It is paused.
    ///
    /// # Errors
    /// [`BoardStateError`] if it cannot tell.
    fn state(&self) -> Result<PciDeviceState, BoardStateError>;

    /// Goes on from `state`, paused.
    ///
    /// # Errors
    /// [`BoardStateError`] if it cannot.
    fn restore(&self, state: &PciDeviceState) -> Result<(), BoardStateError>;

    /// Changes its size, in bytes, whatever that is.
    ///
    /// # Errors
    /// [`ResizeError`] if it cannot; nothing has changed then.
    fn resize(&self, bytes: u64) -> Result<(), ResizeError> {
        let _ = bytes;
        Err(ResizeError::Fixed)
    }

    /// What the virtio register device_status has, if there is one.
    #[cfg(test)]
    fn device_status(&self) -> u8 {
        0
    }
}

/// What a PCI device remembers, by its kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PciDeviceState {
    /// A virtio device of this process.
    Virtio(VirtioState),
    /// One in another process, which remembers for itself.
    User,
}

impl PciDevice for VirtioPci {
    fn set_paused(&self, paused: bool, patience: Duration) -> bool {
        self.set_paused(paused, patience)
    }

    fn state(&self) -> Result<PciDeviceState, BoardStateError> {
        Ok(PciDeviceState::Virtio(self.state()?))
    }

    fn restore(&self, state: &PciDeviceState) -> Result<(), BoardStateError> {
        match state {
            PciDeviceState::Virtio(state) => Ok(self.restore(state)?),
            PciDeviceState::User => Err(BoardStateError::Kind {
                name: self.name().to_owned(),
            }),
        }
    }

    fn resize(&self, bytes: u64) -> Result<(), ResizeError> {
        self.resize(bytes)
    }

    #[cfg(test)]
    fn device_status(&self) -> u8 {
        self.device_status()
    }
}

//! The PCI devices of a board: a table by name, filled in the same way at boot and at run time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use reprise_devices::Bus;
use reprise_devices::pci::{Layout, PciRoot, PciState};
use reprise_devices::virtio::Dma;
use reprise_hypervisor::{GuestMemory, Vm};
use serde::{Deserialize, Serialize};

use super::device::{self, Context, PciDevice, PciDeviceState};
use super::limits::Groups;
use super::{BoardError, BoardStateError};
use crate::boot::layout;
use crate::config::{DeviceSpec, VmConfig};

/// How long a device may take for the requests that it is serving when the machine is paused.
const PATIENCE: Duration = Duration::from_secs(5);

/// The PCI bus and what is on it.
pub(super) struct Pci {
    pub(super) root: Arc<PciRoot>,
    context: Context,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    /// Whether the devices are stopped; those that are added then are too.
    paused: bool,
    devices: BTreeMap<String, Arc<dyn PciDevice>>,
}

/// What PCI devices remember.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciDevicesState {
    /// Configuration spaces, MSI-X and device numbers.
    pub bus: PciState,
    /// The devices' own by name.
    pub devices: BTreeMap<String, PciDeviceState>,
}

impl Pci {
    /// The devices of `config` on `bus`, for a guest with `memory`.
    pub(super) fn new(
        bus: &Arc<Bus>,
        vm: &Arc<dyn Vm>,
        config: &VmConfig,
        memory: &GuestMemory,
    ) -> Result<Self, BoardError> {
        let root = PciRoot::attach(
            bus,
            &Layout {
                ecam: layout::PCI_ECAM,
                low: layout::PCI_LOW,
                high: layout::pci_high(config.memory.size),
            },
        )?;
        let watcher = {
            let vm = Arc::clone(vm);
            move |address, length| vm.memory_written(address, length)
        };
        let this = Self {
            root,
            context: Context {
                vm: Arc::clone(vm),
                dma: Dma::new(memory.clone(), Arc::new(watcher)),
                groups: Groups::new(&config.rate_limit_groups),
            },
            table: Mutex::default(),
        };
        for (name, spec) in config.pci_devices() {
            this.attach(&name, &spec)?;
        }
        Ok(this)
    }

    /// Makes the device that `spec` asks for, calls it `name`, and puts it on the bus; its device number is returned.
    ///
    /// # Errors
    /// [`BoardError`] naming what is in the way; nothing has changed then.
    pub(super) fn attach(&self, name: &str, spec: &DeviceSpec) -> Result<u8, BoardError> {
        let made = device::make(name, spec, &self.context)?;
        let mut table = self.table();
        if table.paused {
            made.device.set_paused(true, PATIENCE);
        }
        let number = self.root.add(made.function)?;
        table.devices.insert(name.to_owned(), made.device);
        Ok(number)
    }

    /// Stops (true) or continues (false) the devices. Once stopped, none touches guest memory.
    pub(super) fn set_paused(&self, paused: bool) {
        let mut table = self.table();
        table.paused = paused;
        for (name, device) in &table.devices {
            if !device.set_paused(paused, PATIENCE) {
                tracing::warn!(device = name, "a device is still busy with a request");
            }
        }
    }

    #[cfg(test)]
    pub(super) fn device_status(&self, name: &str) -> u8 {
        let table = self.table();
        table.devices.get(name).map_or(0, |device| device.device_status())
    }

    pub(super) fn state(&self) -> Result<PciDevicesState, BoardStateError> {
        let table = self.table();
        let devices = table.devices.iter();
        let states = devices.map(|(name, device)| Ok((name.clone(), device.state()?)));
        Ok(PciDevicesState {
            devices: states.collect::<Result<_, BoardStateError>>()?,
            bus: self.root.state(),
        })
    }

    pub(super) fn restore(&self, state: &PciDevicesState) -> Result<(), BoardStateError> {
        self.root.restore(&state.bus)?;
        for (name, device) in &self.table().devices {
            // The bus has found the same devices.
            if let Some(state) = state.devices.get(name) {
                device.restore(state)?;
            }
        }
        Ok(())
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // A device is in the table or not, whole, whatever panicked meanwhile.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

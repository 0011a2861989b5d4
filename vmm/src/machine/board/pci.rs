//! The PCI devices of a board: a table by name, filled in the same way at boot and at run time.
//!
//! # Invariants
//! - The table, the bus and the guest's view agree: a device is in the table from when it is on the bus until the guest has let
//!   go of it.
//! - A vCPU that ejects a device takes it off the bus and waits for nothing. Its threads and files end when somebody asks for
//!   [`take_ejected`](Pci::take_ejected).
//!
//! # Life of a device
//! -[`attach`](Pci::attach)-> there -[`ask_for`](Pci::ask_for)-> asked for -(the guest ejects it)-> ejected -> gone.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use reprise_devices::pci::{Hotplug, HotplugState, Layout, PciRoot, PciState};
use reprise_devices::virtio::{self, Dma, ResizeError};
use reprise_devices::{Acpi, Bus};
use reprise_hypervisor::{GuestMemory, Vm};
use serde::{Deserialize, Serialize};

use super::device::{self, Context, PciDevice, PciDeviceState};
use super::limits::Groups;
use super::{BoardError, BoardStateError};
use crate::boot::layout;
use crate::config::{DeviceSpec, VmConfig};
use crate::console::Console;

/// How long a device may take for the requests that it is serving when the machine is paused.
const PATIENCE: Duration = Duration::from_secs(5);

/// The PCI bus and what is on it.
pub(super) struct Pci {
    pub(super) root: Arc<PciRoot>,
    hotplug: Arc<Hotplug>,
    context: Context,
    table: Arc<Mutex<Table>>,
}

/// Who is told that the guest has let go of devices. Called by a vCPU amid an access: it must not wait.
pub type OnEject = Box<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct Table {
    /// Whether the devices are stopped; those that are added then are too.
    paused: bool,
    devices: BTreeMap<String, Arc<dyn PciDevice>>,
    /// Devices that the guest has let go of, and nobody has asked about.
    ejected: Vec<(String, Option<Arc<dyn PciDevice>>)>,
    on_eject: Option<Arc<OnEject>>,
}

/// What PCI devices remember.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciDevicesState {
    /// Configuration spaces, MSI-X and device numbers.
    pub bus: PciState,
    /// Which devices come and go.
    pub hotplug: HotplugState,
    /// The devices' own by name.
    pub devices: BTreeMap<String, PciDeviceState>,
}

impl Pci {
    /// The devices of `config` on `bus`, for a guest with `memory` whose virtio console, if it has one, leads to `console`.
    pub(super) fn new(
        bus: &Arc<Bus>,
        vm: &Arc<dyn Vm>,
        acpi: &Arc<Acpi>,
        config: &VmConfig,
        memory: &GuestMemory,
        console: Option<&Arc<Console>>,
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
        let table = Arc::new(Mutex::new(Table::default()));
        let on_eject = {
            let (root, table) = (Arc::clone(&root), Arc::clone(&table));
            Box::new(move |number| eject(&root, &table, number))
        };
        let hotplug = Arc::new(Hotplug::new(Arc::clone(acpi), on_eject));
        hotplug.attach(bus)?;
        let this = Self {
            root,
            hotplug,
            context: Context {
                vm: Arc::clone(vm),
                memory: memory.clone(),
                dma: Dma::new(memory.clone(), Arc::new(watcher)),
                groups: Groups::new(&config.rate_limit_groups),
                console: console.cloned(),
                virtio_console: OnceLock::new(),
            },
            table,
        };
        for (name, spec) in config.pci_devices() {
            this.attach(&name, &spec)?;
        }
        Ok(this)
    }

    /// Tells `on_eject` from now on.
    pub(super) fn on_eject(&self, on_eject: OnEject) {
        self.table().on_eject = Some(Arc::new(on_eject));
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

    /// Tells the guest that there is a device at `number` now.
    pub(super) fn announce(&self, number: u8) {
        self.hotplug.add(number);
    }

    /// Asks the guest to let go of the device called `name`; who asks again reminds it. False if there is no such device.
    pub(super) fn ask_for(&self, name: &str) -> bool {
        let numbers = self.root.numbers();
        let number = numbers.get(name);
        if let Some(number) = number {
            self.hotplug.remove(*number);
        }
        number.is_some()
    }

    /// Changes the size of the device called `name`.
    pub(super) fn resize(&self, name: &str, bytes: u64) -> Result<(), BoardError> {
        let device = self.table().devices.get(name).cloned();
        let resized = device.map_or(Err(ResizeError::Fixed), |device| device.resize(bytes));
        resized.map_err(|source| BoardError::Resize {
            name: name.to_owned(),
            source,
        })
    }

    /// The devices that the guest was asked to let go of and has not.
    pub(super) fn asked_for(&self) -> Vec<String> {
        let numbers = self.root.numbers().into_iter();
        let going = numbers.filter(|(_, number)| self.hotplug.is_going(*number));
        going.map(|(name, _)| name).collect()
    }

    /// The devices that the guest has let go of since this was asked last. They are gone: their threads have ended.
    pub(super) fn take_ejected(&self) -> Vec<String> {
        let ejected = std::mem::take(&mut self.table().ejected);
        ejected.into_iter().map(|(name, _device)| name).collect()
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

    /// The virtio console, if there is one.
    pub(super) fn console(&self) -> Option<&Arc<virtio::Console>> {
        self.context.virtio_console.get()
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
            hotplug: self.hotplug.state(),
        })
    }

    pub(super) fn restore(&self, state: &PciDevicesState) -> Result<(), BoardStateError> {
        self.root.restore(&state.bus)?;
        self.hotplug.restore(state.hotplug);
        for (name, device) in &self.table().devices {
            // The bus has found the same devices.
            if let Some(state) = state.devices.get(name) {
                device.restore(state)?;
            }
        }
        Ok(())
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }
}

/// The guest has let go of the device at `number`.
fn eject(root: &PciRoot, table: &Mutex<Table>, number: u8) {
    let Some(name) = root.name_of(number) else { return };
    root.remove(&name);
    let on_eject = {
        let mut table = lock(table);
        let device = table.devices.remove(&name);
        table.ejected.push((name, device));
        table.on_eject.clone()
    };
    if let Some(on_eject) = on_eject {
        on_eject();
    }
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    // A device is in the table or not, whole, whatever panicked meanwhile.
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

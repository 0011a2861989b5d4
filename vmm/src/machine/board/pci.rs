//! The PCI devices of a board, as the configuration asks for them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use reprise_devices::Bus;
use reprise_devices::pci::{Layout, Message, Messages, PciRoot, PciState};
use reprise_devices::virtio::{Block, BlockOptions, Dma, Rng, VirtioDevice, VirtioPci, VirtioState, VirtioStateError};
use reprise_hypervisor::{GuestMemory, Vm};
use serde::{Deserialize, Serialize};

use super::{BoardError, BoardStateError};
use crate::boot::layout;
use crate::config::{DiskConfig, RngConfig, VmConfig};

/// How long a device may take for the requests that it is serving when the machine is paused.
const PATIENCE: Duration = Duration::from_secs(5);

/// The PCI bus and what is on it.
pub(super) struct Pci {
    pub(super) root: Arc<PciRoot>,
    virtio: Vec<Arc<VirtioPci>>,
}

/// What PCI devices remember.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciDevicesState {
    /// Configuration spaces and MSI-X.
    pub bus: PciState,
    /// The virtio devices by name.
    pub virtio: BTreeMap<String, VirtioState>,
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
        let dma = Dma::new(memory.clone(), Arc::new(watcher));
        let messages: Arc<dyn Messages> = Arc::new(Signals(Arc::clone(vm)));
        let mut virtio = Vec::new();
        for (name, device) in config.pci_device_names().into_iter().zip(devices(config)) {
            let (device, function) = VirtioPci::new(name, device?, dma.clone(), Arc::clone(&messages))?;
            root.add(Arc::new(function))?;
            virtio.push(device);
        }
        Ok(Self { root, virtio })
    }

    /// Stops (true) or continues (false) the devices. Once stopped, none touches guest memory.
    pub(super) fn set_paused(&self, paused: bool) {
        for device in &self.virtio {
            if !device.set_paused(paused, PATIENCE) {
                tracing::warn!(device = device.name(), "a device is still busy with a request");
            }
        }
    }

    #[cfg(test)]
    pub(super) fn device_status(&self, name: &str) -> u8 {
        let device = self.virtio.iter().find(|device| device.name() == name);
        device.map_or(0, |device| device.device_status())
    }

    pub(super) fn state(&self) -> Result<PciDevicesState, BoardStateError> {
        let states = self
            .virtio
            .iter()
            .map(|device| Ok((device.name().to_owned(), device.state()?)));
        Ok(PciDevicesState {
            virtio: states.collect::<Result<_, VirtioStateError>>()?,
            bus: self.root.state(),
        })
    }

    pub(super) fn restore(&self, state: &PciDevicesState) -> Result<(), BoardStateError> {
        self.root.restore(&state.bus)?;
        for device in &self.virtio {
            // The bus has found the same devices.
            if let Some(state) = state.virtio.get(device.name()) {
                device.restore(state)?;
            }
        }
        Ok(())
    }
}

/// The devices, in the order of [`VmConfig::pci_device_names`].
fn devices(config: &VmConfig) -> impl Iterator<Item = Result<Arc<dyn VirtioDevice>, BoardError>> {
    let disks = config.disks.iter().map(disk);
    disks.chain(std::iter::once_with(|| rng(&config.rng)))
}

fn disk(config: &DiskConfig) -> Result<Arc<dyn VirtioDevice>, BoardError> {
    let options = BlockOptions {
        readonly: config.readonly,
        // Both were checked with the configuration.
        queues: u16::try_from(config.num_queues).unwrap_or(u16::MAX),
        queue_size: config.queue_size,
        serial: config.serial.clone().unwrap_or_default(),
        sparse: config.sparse,
        raw: config.image_type.is_some(),
    };
    let path = config.path.as_deref().unwrap_or_else(|| "".as_ref());
    Ok(Arc::new(Block::open(path, &options)?))
}

fn rng(config: &RngConfig) -> Result<Arc<dyn VirtioDevice>, BoardError> {
    Ok(Arc::new(Rng::open(config.src.as_ref())?))
}

/// Carries messages to the hypervisor's local APICs.
struct Signals(Arc<dyn Vm>);

impl Messages for Signals {
    fn send(&self, message: Message) {
        self.0.signal_msi(message.address, message.data);
    }
}

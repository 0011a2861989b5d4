//! Which configurations this version can meet: one file for each section, and [`checks`] for what they share.

mod checks;
mod console;
mod cpus;
mod delay;
mod disk;
mod fs;
mod memory;
mod net;
mod payload;
mod pci;
mod platform;
mod rng;
mod user_device;
mod vsock;

use super::{ConfigError, VmConfig};
use checks::{absent, off};

impl VmConfig {
    /// Checks everything that can be told without the host: values that make no machine, and requests for what is not
    /// there yet. The number of vCPUs is checked against the hypervisor, and memory and files against the host, where
    /// the machine is built.
    ///
    /// # Errors
    /// [`ConfigError::Value`] or [`ConfigError::NotSupported`], naming the first field found.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.validate_payload()?;
        self.cpus.validate()?;
        self.memory.validate()?;
        self.validate_consoles()?;

        for (index, disk) in self.disks.iter().enumerate() {
            disk.validate(&format!("disks[{index}]"))?;
        }
        for (index, net) in self.net.iter().enumerate() {
            net.validate(&format!("net[{index}]"))?;
        }
        self.rng.validate()?;
        self.validate_pci()?;
        self.validate_balloon()?;
        for (index, fs) in self.fs.iter().enumerate() {
            fs.validate(&format!("fs[{index}]"))?;
        }
        absent("pmem", self.pmem.len())?;
        absent("devices", self.devices.len())?;
        for (index, device) in self.user_devices.iter().enumerate() {
            device.validate(&format!("user_devices[{index}]"))?;
        }
        absent("vdpa", self.vdpa.len())?;
        if let Some(vsock) = &self.vsock {
            vsock.validate()?;
        }
        absent("numa", self.numa.len())?;
        off("iommu", self.iommu)?;
        off("watchdog", self.watchdog)?;
        off("pvpanic", self.pvpanic)?;
        absent("pci_segments", self.pci_segments.len())?;
        self.validate_platform()?;
        absent("tpm", usize::from(self.tpm.is_some()))?;
        off("landlock_enable", self.landlock_enable)?;
        absent("landlock_rules", self.landlock_rules.len())?;
        self.validate_rate_limit_groups()?;
        self.validate_delays()
    }
}

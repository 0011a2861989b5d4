//! What all PCI devices share: names, and the bus.

use super::checks::value;
use crate::config::{ConfigError, PLATFORM, VmConfig};

/// PCI device numbers, without the host bridge's.
const MAX_PCI_DEVICES: usize = 31;

impl VmConfig {
    /// Names of PCI devices are the machine's names for them, and there are 31 device numbers besides the host bridge's.
    pub(super) fn validate_pci(&self) -> Result<(), ConfigError> {
        let names = self.pci_device_names();
        for (index, name) in names.iter().enumerate() {
            let of_machine =
                PLATFORM.contains(&name.as_str()) || ["serial", "pci-host", "unclaimed"].contains(&name.as_str());
            let of_vcpu = name
                .strip_prefix("vcpu")
                .is_some_and(|rest| rest.parse::<u32>().is_ok());
            if of_machine || of_vcpu || names[..index].contains(name) {
                let expected = "a name that no other device of the machine has";
                return Err(value(&format!("id of PCI device {index}"), name, expected));
            }
        }
        if names.len() > MAX_PCI_DEVICES {
            let expected = format!("at most {MAX_PCI_DEVICES} PCI devices in all, the source of entropy among them");
            return Err(value("disks", self.disks.len(), expected));
        }
        Ok(())
    }
}

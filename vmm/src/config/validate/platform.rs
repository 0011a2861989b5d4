//! `platform`.

use super::checks::{absent, lacking, off};
use crate::config::{ConfigError, VmConfig};

impl VmConfig {
    /// A platform that says nothing but the defaults is the one there is.
    pub(super) fn validate_platform(&self) -> Result<(), ConfigError> {
        let Some(platform) = &self.platform else { return Ok(()) };
        if platform.num_pci_segments.is_some_and(|n| n != 1) {
            return Err(lacking("platform.num_pci_segments", "several PCI segments", "1"));
        }
        absent("platform.iommu_segments", platform.iommu_segments.len())?;
        absent(
            "platform.iommu_address_width",
            usize::from(platform.iommu_address_width.is_some()),
        )?;
        absent("platform.serial_number", usize::from(platform.serial_number.is_some()))?;
        absent("platform.uuid", usize::from(platform.uuid.is_some()))?;
        absent("platform.oem_strings", platform.oem_strings.len())?;
        off("platform.tdx", platform.tdx)?;
        off("platform.sev_snp", platform.sev_snp)
    }
}

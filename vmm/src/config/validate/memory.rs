//! `memory`, and `balloon`, which takes of it.

use super::checks::{absent, lacking, off, value};
use crate::config::{ConfigError, HotplugMethod, MemoryConfig, VmConfig};

/// The unit in which memory is given to a guest, in bytes.
const PAGE: u64 = 4096;

impl MemoryConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        absent("memory.zones", self.zones.len())?;
        if self.size == 0 || !self.size.is_multiple_of(PAGE) {
            return Err(value("memory.size", self.size, "bytes, a multiple of 4096 above 0"));
        }
        for (field, size) in [
            ("memory.hotplug_size", self.hotplug_size),
            ("memory.hotplugged_size", self.hotplugged_size),
        ] {
            if let Some(size @ 1..) = size {
                return Err(lacking(
                    field,
                    format!("{size} bytes added later"),
                    "0 or no such field",
                ));
            }
        }
        off("memory.mergeable", self.mergeable)?;
        if self.hotplug_method != HotplugMethod::Acpi {
            return Err(lacking("memory.hotplug_method", "VirtioMem", "Acpi"));
        }
        off("memory.hugepages", self.hugepages)?;
        absent("memory.hugepage_size", usize::from(self.hugepage_size.is_some()))?;
        off("memory.prefault", self.prefault)?;
        if !self.thp {
            return Err(lacking("memory.thp", "false", "true"));
        }
        Ok(())
    }
}

impl VmConfig {
    pub(super) fn validate_balloon(&self) -> Result<(), ConfigError> {
        let Some(balloon) = &self.balloon else { return Ok(()) };
        if !balloon.size.is_multiple_of(PAGE) || balloon.size >= self.memory.size {
            let expected = "bytes, a multiple of 4096 below memory.size";
            return Err(value("balloon.size", balloon.size, expected));
        }
        Ok(())
    }
}

//! `cpus`.

use super::checks::{absent, lacking, off, value};
use crate::config::{ConfigError, CpusConfig};

impl CpusConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        if self.boot_vcpus == 0 {
            return Err(value("cpus.boot_vcpus", 0, "1 or more"));
        }
        if self.max_vcpus < self.boot_vcpus {
            let expected = format!("at least cpus.boot_vcpus, {}", self.boot_vcpus);
            return Err(value("cpus.max_vcpus", self.max_vcpus, expected));
        }
        if self.max_vcpus > self.boot_vcpus {
            let expected = format!("cpus.boot_vcpus, {}", self.boot_vcpus);
            return Err(lacking("cpus.max_vcpus", "vCPUs that are added later", expected));
        }
        absent("cpus.topology", usize::from(self.topology.is_some()))?;
        if self.max_phys_bits != Self::default_max_phys_bits() {
            return Err(lacking(
                "cpus.max_phys_bits",
                format!("{} bits", self.max_phys_bits),
                "46",
            ));
        }
        absent("cpus.affinity", self.affinity.len())?;
        off("cpus.features.amx", self.features.amx)
    }
}

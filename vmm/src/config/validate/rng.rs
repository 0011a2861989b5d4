//! `rng`.

use super::checks::{off, value};
use crate::config::{ConfigError, RngConfig};

impl RngConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        off("rng.iommu", self.iommu)?;
        if self.src.is_empty() {
            return Err(value("rng.src", "empty", "the path of a file, like /dev/urandom"));
        }
        Ok(())
    }
}

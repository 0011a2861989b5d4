//! `delays`.

use super::checks::value;
use crate::config::{ConfigError, DelayConfig, VmConfig};

impl VmConfig {
    pub(super) fn validate_delays(&self) -> Result<(), ConfigError> {
        let known = self.device_names();
        for (index, entry) in self.delays.iter().enumerate() {
            if entry.device != DelayConfig::EVERY_DEVICE && !known.contains(&entry.device) {
                let expected = format!("* or one of {}", known.join(", "));
                return Err(value(&format!("delays[{index}].device"), &entry.device, expected));
            }
            if let Some(expected) = entry.refusal() {
                return Err(value(&format!("delays[{index}].us"), entry.us, expected));
            }
        }
        Ok(())
    }
}

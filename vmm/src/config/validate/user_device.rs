//! `user_devices`.

use super::checks::{place, value};
use crate::config::{ConfigError, UserDeviceConfig};

impl UserDeviceConfig {
    pub(super) fn validate(&self, at: &str) -> Result<(), ConfigError> {
        if self.socket.as_os_str().is_empty() {
            return Err(value(&format!("{at}.socket"), "missing", "the path of a socket"));
        }
        place(at, self.pci_segment, self.id.as_deref())
    }
}

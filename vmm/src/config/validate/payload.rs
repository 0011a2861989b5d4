//! `payload`.

use super::checks::{lacking, value};
use crate::config::{ConfigError, VmConfig};

impl VmConfig {
    pub(super) fn validate_payload(&self) -> Result<(), ConfigError> {
        if let Some(firmware) = &self.payload.firmware {
            return Err(lacking(
                "payload.firmware",
                firmware.display(),
                "a kernel in payload.kernel",
            ));
        }
        match &self.payload.kernel {
            None => Err(value(
                "payload.kernel",
                "missing",
                "the path of a vmlinux, bzImage, vmlinuz or Multiboot kernel",
            )),
            Some(path) if path.as_os_str().is_empty() => Err(value(
                "payload.kernel",
                "empty",
                "the path of a vmlinux, bzImage, vmlinuz or Multiboot kernel",
            )),
            Some(_) => Ok(()),
        }
    }
}

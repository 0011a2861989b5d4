//! `vsock`.

use super::checks::{off, place, value};
use crate::config::{ConfigError, VsockConfig};

impl VsockConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        // 0 to 2 are the hypervisor's, the local and the host's, and 2^32 - 1 is nobody's (vsock(7)).
        if !(3..u64::from(u32::MAX)).contains(&self.cid) {
            return Err(value("vsock.cid", self.cid, "3 to 4294967294"));
        }
        if self.socket.is_empty() {
            return Err(value("vsock.socket", "empty", "the path of a UNIX socket"));
        }
        off("vsock.iommu", self.iommu)?;
        place("vsock", self.pci_segment, self.id.as_deref())
    }
}

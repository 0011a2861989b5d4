//! `fs`.

use super::checks::{place, queues, value};
use crate::config::{ConfigError, FsConfig};

impl FsConfig {
    pub(super) fn validate(&self, at: &str) -> Result<(), ConfigError> {
        if !(1..=36).contains(&self.tag.len()) {
            return Err(value(&format!("{at}.tag"), format!("{:?}", self.tag), "1 to 36 bytes"));
        }
        if self.socket.is_empty() {
            return Err(value(&format!("{at}.socket"), "missing", "the path of a socket"));
        }
        queues(at, self.num_queues, self.queue_size)?;
        place(at, self.pci_segment, self.id.as_deref())
    }
}

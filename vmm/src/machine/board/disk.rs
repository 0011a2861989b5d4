//! Entries of `disks`.

use std::sync::Arc;

use reprise_devices::virtio::{Block, BlockOptions};

use super::BoardError;
use super::device::{Context, Made};
use crate::config::DiskConfig;

/// The disk that `config` asks for.
pub(super) fn make(name: &str, config: &DiskConfig, context: &Context) -> Result<Made, BoardError> {
    let options = BlockOptions {
        readonly: config.readonly,
        // Both were checked with the configuration.
        queues: u16::try_from(config.num_queues).unwrap_or(u16::MAX),
        queue_size: config.queue_size,
        serial: config.serial.clone().unwrap_or_default(),
        sparse: config.sparse,
        raw: config.image_type.is_some(),
    };
    let path = config.path.as_deref().unwrap_or_else(|| "".as_ref());
    let mut disk = Block::open(path, &options)?;
    if let Some(limiter) = context.groups.of(config) {
        disk = disk.with_limiter(limiter);
    }
    context.virtio(name, Arc::new(disk))
}

//! Entries of `disks`.

use std::sync::Arc;

use reprise_devices::vhost_user::VhostUser;
use reprise_devices::virtio::{Block, BlockOptions, ImageFormat};

use super::BoardError;
use super::device::{Context, Made};
use crate::config::DiskConfig;

/// The disk that `config` asks for.
pub(super) fn make(name: &str, config: &DiskConfig, context: &Context) -> Result<Made, BoardError> {
    if let Some(socket) = config.vhost_socket.as_ref().filter(|_| config.vhost_user) {
        context.needs_sharing(name)?;
        // It was checked with the configuration.
        let queues = u16::try_from(config.num_queues).unwrap_or(u16::MAX);
        let disk = VhostUser::disk(socket.as_ref(), queues, config.queue_size, &context.dma);
        let disk = disk.map_err(|source| BoardError::VhostUser {
            name: name.to_owned(),
            source,
        })?;
        return context.virtio(name, Arc::new(disk));
    }
    let options = BlockOptions {
        readonly: config.readonly,
        // Both were checked with the configuration.
        queues: u16::try_from(config.num_queues).unwrap_or(u16::MAX),
        queue_size: config.queue_size,
        serial: config.serial.clone().unwrap_or_default(),
        sparse: config.sparse,
        format: config.image_type.as_deref().map(|name| {
            if name.eq_ignore_ascii_case("qcow2") {
                ImageFormat::Qcow2
            } else {
                ImageFormat::Raw
            }
        }),
        backing_files: config.backing_files,
    };
    let path = config.path.as_deref().unwrap_or_else(|| "".as_ref());
    let mut disk = Block::open(path, &options)?;
    if let Some(limiter) = context.groups.of(config) {
        disk = disk.with_limiter(limiter);
    }
    context.virtio(name, Arc::new(disk))
}

//! Entries of `fs`: shares that another process serves, by virtio-fs.

use std::sync::Arc;

use reprise_devices::vhost_user::VhostUser;

use super::BoardError;
use super::device::{Context, Made};
use crate::config::FsConfig;

/// The device that `config` asks for.
pub(super) fn make(name: &str, config: &FsConfig, context: &Context) -> Result<Made, BoardError> {
    // The number of queues was checked with the configuration.
    let queues = u16::try_from(config.num_queues).unwrap_or(u16::MAX);
    context.needs_sharing(name)?;
    let socket = config.socket.as_ref();
    let share = VhostUser::share(socket, &config.tag, queues, config.queue_size, &context.dma);
    let share = share.map_err(|source| BoardError::VhostUser {
        name: name.to_owned(),
        source,
    })?;
    context.virtio(name, Arc::new(share))
}

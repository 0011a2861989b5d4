//! `rng`, the source of entropy.

use std::sync::Arc;

use reprise_devices::virtio::Rng;

use super::BoardError;
use super::device::{Context, Made};
use crate::config::RngConfig;

/// The device that `config` asks for.
pub(super) fn make(name: &str, config: &RngConfig, context: &Context) -> Result<Made, BoardError> {
    context.virtio(name, Arc::new(Rng::open(config.src.as_ref())?))
}

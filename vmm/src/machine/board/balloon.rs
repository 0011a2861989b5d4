//! `balloon`.

use std::io;
use std::sync::Arc;

use reprise_devices::virtio::{Balloon, BalloonOptions};
use reprise_hypervisor::Reclaim;

use super::BoardError;
use super::device::{Context, Made};
use crate::config::BalloonConfig;

/// The balloon that `config` asks for. Its pages go back to the host, and out of every processor's decoded instructions.
pub(super) fn make(name: &str, config: &BalloonConfig, context: &Context) -> Result<Made, BoardError> {
    let options = BalloonOptions {
        size: config.size,
        deflate_on_oom: config.deflate_on_oom,
        free_page_reporting: config.free_page_reporting,
    };
    let (reclaim, vm) = (Reclaim::new(context.memory.clone()), Arc::clone(&context.vm));
    let give_back = move |address, length| -> io::Result<()> {
        let given = reclaim.give_back(address, length);
        // Also after an error: a part may be gone.
        vm.memory_written(address, length);
        given
    };
    context.virtio(name, Arc::new(Balloon::new(options, Box::new(give_back))))
}

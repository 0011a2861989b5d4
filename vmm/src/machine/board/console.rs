//! `console`, virtio's.

use std::sync::Arc;

use reprise_devices::virtio;

use super::BoardError;
use super::device::{Context, Made};

/// The console that the machine has opened. It is fed when the machine attaches it.
pub(super) fn make(name: &str, context: &Context) -> Result<Made, BoardError> {
    let console = context
        .console
        .as_ref()
        .ok_or_else(|| BoardError::NoConsole { name: name.to_owned() })?;
    let device = virtio::Console::new(Arc::clone(console.output())).map_err(|source| BoardError::Console { source })?;
    let device = Arc::new(device);
    let made = context.virtio(name, Arc::clone(&device) as _)?;
    // There is one console, and it comes once.
    let _ = context.virtio_console.set(device);
    Ok(made)
}

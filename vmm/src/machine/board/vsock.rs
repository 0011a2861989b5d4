//! `vsock`.

use std::path::PathBuf;
use std::sync::Arc;

use reprise_devices::virtio::Vsock;

use super::BoardError;
use super::device::{Context, Made};
use crate::config::VsockConfig;
use crate::listen::{ListenError, listen};

/// A vsock cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// Somebody listens there.
    #[error("the socket of vsock, {}, is in use by another process; expected a free path", path.display())]
    InUse {
        /// Where.
        path: PathBuf,
    },
    /// The host refuses.
    #[error("the socket of vsock, {}, cannot be listened on", path.display())]
    Listen {
        /// Where.
        path: PathBuf,
        /// What it says.
        source: std::io::Error,
    },
}

/// The device that `config` asks for, listening at its socket.
pub(super) fn make(name: &str, config: &VsockConfig, context: &Context) -> Result<Made, BoardError> {
    let path = PathBuf::from(&config.socket);
    let refused = |source| VsockError::Listen {
        path: path.clone(),
        source,
    };
    let listener = listen(&path).map_err(|error| match error {
        ListenError::InUse => VsockError::InUse { path: path.clone() },
        ListenError::System(source) => refused(source),
    })?;
    let device = Vsock::new(config.cid, listener, path.clone()).map_err(refused)?;
    context.virtio(name, Arc::new(device))
}

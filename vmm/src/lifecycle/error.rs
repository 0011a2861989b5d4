//! Why a call to the VMM is refused.

use std::error::Error;

use super::VmState;
use crate::config::ConfigError;
use crate::snapshot::SnapshotError;

/// A call to the VMM is refused or failed. The machine is as it was, unless the variant says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// The call needs a VM.
    #[error("there is no VM; expected one made by vm.create")]
    NoVm,
    /// There can be one VM only.
    #[error("there is a VM already, in state {is}; expected none: vm.delete it first")]
    Exists {
        /// Its state.
        is: VmState,
    },
    /// The VM is in another state than the call needs.
    #[error("{call} found the VM in state {is}; expected {wanted}")]
    WrongState {
        /// The call, as the API names it.
        call: &'static str,
        /// The state it is in.
        is: VmState,
        /// The states that the call is for.
        wanted: &'static str,
    },
    /// The configuration makes no machine.
    #[error("the configuration of the VM is refused")]
    BadConfig {
        /// Which field, and what was expected.
        source: ConfigError,
    },
    /// The machine cannot be built from its configuration: a file that is no kernel, memory that the host has not.
    #[error("the VM cannot be built from its configuration")]
    Build {
        /// What is in the way.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The snapshot cannot be written. What was there before is still there, and the VM is as it was.
    #[error("the snapshot cannot be written")]
    Snapshot {
        /// What is in the way.
        source: SnapshotError,
    },
    /// The snapshot makes no VM here.
    #[error("the snapshot cannot be restored")]
    Restore {
        /// What is in the way.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A device cannot be added to the machine, which is as before.
    #[error("{call} cannot add the device {id}")]
    Device {
        /// The call, as the API names it.
        call: &'static str,
        /// Its name.
        id: String,
        /// What is in the way.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A device cannot be given that size; it has the one it had.
    #[error("{call} cannot change the size of the device {id}")]
    Resize {
        /// The call, as the API names it.
        call: &'static str,
        /// Its name.
        id: String,
        /// What is in the way.
        source: Box<dyn Error + Send + Sync>,
    },
    /// There is no such device.
    #[error("there is no device {id:?}; expected one of {}", known.join(", "))]
    NoDevice {
        /// The name.
        id: String,
        /// The names that there are.
        known: Vec<String>,
    },
    /// The device is part of every machine.
    #[error("the device {id} cannot be removed: every machine has it")]
    Fixed {
        /// Its name.
        id: String,
    },
    /// The machine did not do what it was told.
    #[error("{call} failed")]
    Machine {
        /// The call, as the API names it.
        call: &'static str,
        /// What failed.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The call is known, and not there yet.
    #[error("{call} is not supported yet")]
    NotSupported {
        /// The call, as the API names it.
        call: &'static str,
    },
    /// The VMM is about to end.
    #[error("the VMM is shutting down")]
    Closing,
}

/// The error and its causes, from the outermost to the root, one text each.
pub fn chain(error: &(dyn Error + 'static)) -> Vec<String> {
    let mut chain = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        chain.push(error.to_string());
        next = error.source();
    }
    chain
}

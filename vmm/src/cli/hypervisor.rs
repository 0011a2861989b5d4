//! Which hypervisor the command line asks for.

use std::sync::Arc;

use clap::ValueEnum;
use reprise_hypervisor::{Hypervisor, HypervisorError, KvmHypervisor, auto};

use super::Failure;

/// Which hypervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Choice {
    /// KVM where it can be used and the processor is behind it, else the CPU in software.
    Auto,
    /// The host's KVM.
    Kvm,
    /// A CPU in software.
    Soft,
}

/// Opens the hypervisor of `choice`, and says why it is that one.
///
/// # Errors
/// If it is not there.
pub(super) fn open(choice: Choice) -> Result<(Arc<dyn Hypervisor>, String), Failure> {
    let asked = || "as asked for".to_owned();
    Ok(match choice {
        Choice::Soft => (auto::soft(), asked()),
        Choice::Kvm => {
            let kvm = KvmHypervisor::open().map_err(|source| HypervisorError::Kvm { source })?;
            (Arc::new(kvm), asked())
        }
        Choice::Auto => {
            let auto::Chosen { hypervisor, why } = auto::choose();
            (hypervisor, why.to_string())
        }
    })
}

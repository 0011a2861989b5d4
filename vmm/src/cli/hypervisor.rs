//! Which hypervisor the command line asks for.

use std::sync::Arc;

use clap::ValueEnum;
use reprise_hypervisor::{Hypervisor, SoftHypervisor};

use super::Failure;

/// Which hypervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Choice {
    /// KVM where it can be used, else the CPU in software.
    Auto,
    /// The host's KVM.
    Kvm,
    /// A CPU in software.
    Soft,
}

/// Opens the hypervisor of `choice`.
///
/// # Errors
/// If it is not there.
pub(super) fn open(choice: Choice) -> Result<Arc<dyn Hypervisor>, Failure> {
    match choice {
        Choice::Soft => {}
        Choice::Auto => tracing::info!("the CPU is in software: this version has no KVM backend yet"),
        Choice::Kvm => {
            return Err(Failure::new(
                "the KVM backend is not built into this version; expected --hypervisor soft or auto",
            ));
        }
    }
    Ok(Arc::new(SoftHypervisor))
}

//! Which hypervisor the command line asks for.

use std::sync::Arc;

use clap::ValueEnum;
use reprise_hypervisor::Hypervisor;

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
    Ok(soft())
}

// PLACEHOLDER: becomes the soft backend's own constructor when the branches meet.
fn soft() -> Arc<dyn Hypervisor> {
    struct None;
    impl Hypervisor for None {
        fn kind(&self) -> reprise_hypervisor::HypervisorKind {
            reprise_hypervisor::HypervisorKind::Soft
        }
        fn max_vcpus(&self) -> u32 {
            1
        }
        fn create_vm(
            &self,
            _: reprise_hypervisor::VmSettings,
        ) -> Result<Arc<dyn reprise_hypervisor::Vm>, reprise_hypervisor::HypervisorError> {
            Err(reprise_hypervisor::HypervisorError::VcpuCount { wanted: 1, max: 0 })
        }
    }
    Arc::new(None)
}

//! The best backend of this host: KVM where it can be used and the processor is behind it, else the CPU in software.
//!
//! ```
//! use reprise_hypervisor::{HypervisorKind, auto};
//!
//! let chosen = auto::choose();
//! println!("{:?}: {}", chosen.hypervisor.kind(), chosen.why);
//! ```

use std::fmt;
use std::sync::Arc;

use crate::kvm::{Backing, KvmError};
use crate::{Hypervisor, HypervisorError, KvmHypervisor, SoftHypervisor};

/// A backend, and why that one.
pub struct Chosen {
    /// The backend.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// Why it was chosen.
    pub why: Why,
}

/// Why a backend was chosen.
#[derive(Debug)]
pub enum Why {
    /// KVM, as the processor is behind it.
    Hardware,
    /// The CPU in software, as that is what is behind this host's KVM too.
    Software {
        /// What is behind it.
        backing: Backing,
    },
    /// The CPU in software, as KVM cannot be used.
    Unusable {
        /// What is in the way.
        source: HypervisorError,
    },
}

impl fmt::Display for Why {
    /// One line, every cause included.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hardware => Backing::Hardware.fmt(f),
            Self::Software { backing } => backing.fmt(f),
            Self::Unusable { source } => {
                write!(f, "{source}")?;
                let mut cause = std::error::Error::source(source);
                while let Some(next) = cause {
                    write!(f, ": {next}")?;
                    cause = next.source();
                }
                Ok(())
            }
        }
    }
}

/// Chooses the backend.
pub fn choose() -> Chosen {
    choose_from(KvmHypervisor::open(), Backing::of_this_host())
}

fn choose_from(kvm: Result<KvmHypervisor, KvmError>, backing: Backing) -> Chosen {
    let tried = match kvm {
        // It is not made to make a machine, but to be found out.
        Ok(_) if backing != Backing::Hardware => Err(Why::Software { backing }),
        Ok(kvm) => match kvm.try_out() {
            Ok(()) => Ok(kvm),
            Err(source) => Err(Why::Unusable { source }),
        },
        Err(source) => Err(Why::Unusable { source: source.into() }),
    };
    match tried {
        Ok(kvm) => Chosen {
            hypervisor: Arc::new(kvm),
            why: Why::Hardware,
        },
        Err(why) => Chosen {
            hypervisor: soft(),
            why,
        },
    }
}

/// The CPU in software, whose machines can go on on this host's KVM: if that has but one rate of time-stamp counters, theirs
/// count at it.
pub fn soft() -> Arc<dyn Hypervisor> {
    let only = KvmHypervisor::open().and_then(|kvm| kvm.only_tsc_khz());
    match only.ok().flatten().and_then(|khz| SoftHypervisor.counting_at(khz)) {
        Some(paced) => Arc::new(paced),
        None => Arc::new(SoftHypervisor),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::HypervisorKind;

    #[test]
    fn what_is_in_the_way_of_kvm_is_told_to_the_root() {
        let path = PathBuf::from("/dev/kvm");
        let chosen = choose_from(Err(KvmError::Permission { path }), Backing::Hardware);
        assert_eq!(chosen.hypervisor.kind(), HypervisorKind::Soft);
        let why = chosen.why.to_string();
        assert!(
            why.contains("KVM cannot run the machine: /dev/kvm may not be opened"),
            "{why}"
        );
        let error = KvmError::Capability {
            capability: "KVM_CAP_IRQCHIP",
        };
        let chosen = choose_from(Err(error), Backing::Hardware);
        assert!(chosen.why.to_string().contains("KVM_CAP_IRQCHIP"));
    }

    #[test]
    fn a_software_kvm_is_not_preferred() {
        let Ok(kvm) = KvmHypervisor::open() else {
            eprintln!("skipped: no KVM");
            return;
        };
        let chosen = choose_from(Ok(kvm), Backing::Module("kvm_pvm"));
        assert_eq!(chosen.hypervisor.kind(), HypervisorKind::Soft);
        assert!(chosen.why.to_string().contains("kvm_pvm"), "{}", chosen.why);
    }

    #[test]
    fn a_kvm_with_a_processor_behind_it_is_chosen_once_it_has_made_a_machine() {
        let Ok(kvm) = KvmHypervisor::open() else {
            eprintln!("skipped: no KVM");
            return;
        };
        let chosen = choose_from(Ok(kvm), Backing::Hardware);
        assert_eq!(chosen.hypervisor.kind(), HypervisorKind::Kvm, "{}", chosen.why);
    }
}

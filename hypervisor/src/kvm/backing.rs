//! Whether the processor is behind a KVM, or software.
//!
//! A KVM can do without the processor's virtualisation: it then emulates what guest kernels execute, at a small part of the
//! soft backend's speed. The device looks the same.

use std::fmt;
use std::fs;
use std::path::Path;

/// Modules of KVMs that do without the processor's virtualisation.
const SOFTWARE: [&str; 1] = ["kvm_pvm"];
/// Flags of processors with virtualisation: Intel's, AMD's.
const HARDWARE: [&str; 2] = ["vmx", "svm"];

/// What is behind this host's KVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backing {
    /// The processor.
    Hardware,
    /// A software KVM, by its module.
    Module(&'static str),
    /// A processor that says nothing of virtualisation.
    NoFlag,
}

impl Backing {
    /// That of the host that runs this.
    pub fn of_this_host() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self::of(&cpuinfo, |module| Path::new("/sys/module").join(module).exists())
    }

    /// Whether SYSCALL of ring 3 is not executed to its end.
    pub fn halves_syscalls(self) -> bool {
        self == Self::Module("kvm_pvm")
    }

    fn of(cpuinfo: &str, has_module: impl Fn(&str) -> bool) -> Self {
        if let Some(module) = SOFTWARE.into_iter().find(|module| has_module(module)) {
            return Self::Module(module);
        }
        let flags = cpuinfo.lines().filter(|line| line.starts_with("flags"));
        let mut words = flags.flat_map(str::split_whitespace);
        match words.any(|word| HARDWARE.contains(&word)) {
            true => Self::Hardware,
            false => Self::NoFlag,
        }
    }
}

impl fmt::Display for Backing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hardware => write!(f, "KVM is backed by the processor"),
            Self::Module(module) => write!(f, "this host's KVM is software (module {module}), and slower"),
            Self::NoFlag => write!(
                f,
                "this host's KVM is software (no vmx or svm in /proc/cpuinfo), and slower"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_with_virtualisation_is_behind_kvm_unless_a_module_stands_in() {
        let none = |_: &str| false;
        assert_eq!(Backing::of("flags\t\t: fpu svm sse\n", none), Backing::Hardware);
        assert_eq!(Backing::of("flags\t\t: fpu vmx\n", none), Backing::Hardware);
        for without in ["", "flags\t\t: fpu vmxish\n", "vmx flags\t\t: svm\n"] {
            assert_eq!(Backing::of(without, none), Backing::NoFlag, "{without:?}");
        }
        let pvm = |module: &str| module == "kvm_pvm";
        assert_eq!(Backing::of("flags\t\t: svm\n", pvm), Backing::Module("kvm_pvm"));
    }
}

//! The processors of a machine.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The processors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CpusConfig {
    /// How many run from the start, 1 or more.
    pub boot_vcpus: u32,
    /// How many there can be; equal to `boot_vcpus` until processors can be added to a running machine.
    pub max_vcpus: u32,
    /// Threads, cores, dies and packages; not there yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topology: Option<CpuTopology>,
    /// Whether the guest finds Hyper-V's interface (CPUID leaves, MSRs, hypercalls) instead of KVM's.
    #[serde(default)]
    pub kvm_hyperv: bool,
    /// The largest width of a guest-physical address, in bits. Default: 46.
    #[serde(default = "CpusConfig::default_max_phys_bits")]
    #[schema(default = 46)]
    pub max_phys_bits: u8,
    /// Whether a guest may use nested virtualisation where the host offers it. Default: true.
    #[serde(default = "super::yes")]
    #[schema(default = true)]
    pub nested: bool,
    /// Which host processors a vCPU may run on; not there yet.
    #[serde(default, deserialize_with = "super::null_is_empty")]
    pub affinity: Vec<CpuAffinity>,
    /// Optional parts of the processor.
    #[serde(default)]
    pub features: CpuFeatures,
}

impl CpusConfig {
    /// `count` processors, all from the start.
    pub fn of(count: u32) -> Self {
        Self {
            boot_vcpus: count,
            max_vcpus: count,
            topology: None,
            kvm_hyperv: false,
            max_phys_bits: Self::default_max_phys_bits(),
            nested: true,
            affinity: Vec::new(),
            features: CpuFeatures::default(),
        }
    }

    pub(super) const fn default_max_phys_bits() -> u8 {
        46
    }
}

impl Default for CpusConfig {
    fn default() -> Self {
        Self::of(1)
    }
}

/// How the processors are told to be arranged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CpuTopology {
    /// Hardware threads of a core.
    #[serde(default)]
    pub threads_per_core: u16,
    /// Cores of a die.
    #[serde(default)]
    pub cores_per_die: u16,
    /// Dies of a package.
    #[serde(default)]
    pub dies_per_package: u16,
    /// Packages of the machine.
    #[serde(default)]
    pub packages: u16,
}

/// The host processors of one vCPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CpuAffinity {
    /// The vCPU.
    pub vcpu: u32,
    /// The host processors it may run on.
    #[serde(default, deserialize_with = "super::null_is_empty")]
    pub host_cpus: Vec<usize>,
}

/// Optional parts of the processor.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CpuFeatures {
    /// Advanced Matrix Extensions; not there yet.
    #[serde(default)]
    pub amx: bool,
}

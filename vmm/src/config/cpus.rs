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
    /// Which processor the guest sees. A member of our own, which cloud-hypervisor's API does not have. Default: host.
    #[serde(default)]
    pub model: CpuModel,
    /// Whether a processor in software runs the guest's hot code as code of the host, which is faster than interpreting it;
    /// if the host does not let it, it interprets, and the log says so. A member of our own. It changes nothing on KVM.
    /// Default: true.
    #[serde(default = "super::yes")]
    #[schema(default = true)]
    pub translate: bool,
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
            model: CpuModel::default(),
            translate: true,
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

/// Which processor a guest sees: its instruction set extensions. What is not announced is an undefined instruction. A level
/// that does not work here is refused by the name of what is missing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CpuModel {
    /// Everything that works here, but AVX-512 only if this host's processor has it.
    #[default]
    Host,
    /// x86-64-v2 (SSE4.2, POPCNT), with AES, PCLMULQDQ and RDRAND.
    V2,
    /// x86-64-v3 (AVX2, FMA, BMI2), with ADX, RDSEED, SHA, CLFLUSHOPT and CLWB.
    V3,
    /// x86-64-v4 (AVX-512).
    V4,
}

impl From<CpuModel> for reprise_hypervisor::CpuModel {
    fn from(model: CpuModel) -> Self {
        match model {
            CpuModel::Host => Self::Host,
            CpuModel::V2 => Self::V2,
            CpuModel::V3 => Self::V3,
            CpuModel::V4 => Self::V4,
        }
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

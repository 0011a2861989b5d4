//! The board: NUMA, PCI segments, firmware tables, TPM; and the VMM's own confinement. None is there yet.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A NUMA node of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NumaConfig {
    /// The node.
    pub guest_numa_id: u32,
    /// Its processors.
    #[serde(default, deserialize_with = "super::null_is_empty")]
    pub cpus: Vec<u32>,
    /// How far the other nodes are.
    #[serde(default, deserialize_with = "super::null_is_empty")]
    pub distances: Vec<NumaDistance>,
    /// Its memory zones.
    #[serde(default, deserialize_with = "super::null_is_empty")]
    pub memory_zones: Vec<String>,
    /// Its PCI segments.
    #[serde(default, deserialize_with = "super::null_is_empty")]
    pub pci_segments: Vec<u16>,
    /// The device whose memory it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_id: Option<String>,
}

/// How far a NUMA node is from another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NumaDistance {
    /// The other node.
    pub destination: u32,
    /// How far, 10 being here.
    pub distance: u8,
}

/// A PCI segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PciSegmentConfig {
    /// The segment.
    pub pci_segment: u16,
    /// Its share of the address space below 4 GiB. Default: 1.
    #[serde(default = "PciSegmentConfig::default_weight")]
    #[schema(default = 1)]
    pub mmio32_aperture_weight: u32,
    /// Its share of the address space above. Default: 1.
    #[serde(default = "PciSegmentConfig::default_weight")]
    #[schema(default = 1)]
    pub mmio64_aperture_weight: u32,
}

impl PciSegmentConfig {
    const fn default_weight() -> u32 {
        1
    }
}

/// What the firmware tables say about the machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PlatformConfig {
    /// PCI segments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_pci_segments: Option<u16>,
    /// The segments behind the virtual IOMMU.
    #[serde(default, deserialize_with = "super::null_is_empty")]
    pub iommu_segments: Vec<u16>,
    /// Address bits of the virtual IOMMU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iommu_address_width: Option<u8>,
    /// The machine's serial number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial_number: Option<String>,
    /// The machine's UUID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Strings for the guest.
    #[serde(default, deserialize_with = "super::null_is_empty")]
    pub oem_strings: Vec<String>,
    /// Intel TDX.
    #[serde(default)]
    pub tdx: bool,
    /// AMD SEV-SNP.
    #[serde(default)]
    pub sev_snp: bool,
}

/// A TPM in another process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TpmConfig {
    /// That process' socket.
    #[schema(value_type = String)]
    pub socket: PathBuf,
}

/// One thing that Landlock lets through.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LandlockConfig {
    /// The file or folder.
    #[schema(value_type = String)]
    pub path: PathBuf,
    /// What may be done with it: `r`, `w` or `rw`.
    pub access: String,
}

impl LandlockConfig {
    /// The rule that lets `access` be done with `path` and what lies beneath.
    pub fn new(path: impl Into<PathBuf>, access: &str) -> Self {
        Self {
            path: path.into(),
            access: access.to_owned(),
        }
    }
}

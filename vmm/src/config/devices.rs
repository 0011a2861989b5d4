//! Smaller devices: the source of entropy, the balloon, vsock; and those that are not there yet.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The source of entropy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RngConfig {
    /// The host's file. Default: `/dev/urandom`.
    pub src: String,
    /// Whether the device sits behind the virtual IOMMU.
    #[serde(default)]
    pub iommu: bool,
}

impl Default for RngConfig {
    fn default() -> Self {
        Self {
            src: "/dev/urandom".to_owned(),
            iommu: false,
        }
    }
}

/// A virtio-balloon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BalloonConfig {
    /// What the guest gives up, in bytes: a multiple of 4096, and less than its memory.
    pub size: u64,
    /// Whether the guest may take it back when it runs out of memory.
    #[serde(default)]
    pub deflate_on_oom: bool,
    /// Whether the guest tells which pages it does not use.
    #[serde(default)]
    pub free_page_reporting: bool,
}

/// A host device passed through with VFIO.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeviceConfig {
    /// Its folder in sysfs.
    #[schema(value_type = String)]
    pub path: PathBuf,
    /// Whether the device sits behind the virtual IOMMU.
    #[serde(default)]
    pub iommu: bool,
    /// The PCI segment.
    #[serde(default)]
    pub pci_segment: u16,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The group of devices that may reach each other directly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x_nv_gpudirect_clique: Option<u8>,
}

/// A device in another process, spoken to with vfio-user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UserDeviceConfig {
    /// That process' socket.
    #[schema(value_type = String)]
    pub socket: PathBuf,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The PCI segment.
    #[serde(default)]
    pub pci_segment: u16,
}

/// A vDPA device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VdpaConfig {
    /// The host's character device.
    pub path: String,
    /// Queues. Default: 1.
    #[serde(default = "VdpaConfig::default_num_queues")]
    #[schema(default = 1)]
    pub num_queues: usize,
    /// Whether the device sits behind the virtual IOMMU.
    #[serde(default)]
    pub iommu: bool,
    /// The PCI segment.
    #[serde(default)]
    pub pci_segment: u16,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

impl VdpaConfig {
    const fn default_num_queues() -> usize {
        1
    }
}

/// A virtio-vsock device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// The guest's address, 3 or more.
    #[schema(minimum = 3)]
    pub cid: u64,
    /// The host's socket: its clients write `CONNECT port`, and the guest's calls to port N lead to `<socket>_N`.
    pub socket: String,
    /// Whether the device sits behind the virtual IOMMU.
    #[serde(default)]
    pub iommu: bool,
    /// The PCI segment.
    #[serde(default)]
    pub pci_segment: u16,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

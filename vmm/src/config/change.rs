//! What the calls take that change a VM.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The device that `vm.remove-device` removes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmRemoveDevice {
    /// Its name.
    pub id: String,
}

/// What `vm.resize` changes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmResize {
    /// The number of vCPUs. Only the one that there is can be met.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desired_vcpus: Option<u32>,
    /// The memory, in bytes. Only what there is can be met.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desired_ram: Option<u64>,
    /// What the balloon is to take from the guest, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desired_balloon: Option<u64>,
}

/// The disk that `vm.resize-disk` changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmResizeDisk {
    /// Its name.
    pub id: String,
    /// Its capacity from now on, in bytes.
    pub desired_size: u64,
}

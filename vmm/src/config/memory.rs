//! The memory of a machine.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The memory. Sizes are bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MemoryConfig {
    /// How much, in bytes: a multiple of 4096.
    pub size: u64,
    /// Room for memory added later; not there yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hotplug_size: Option<u64>,
    /// What was added already; not there yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hotplugged_size: Option<u64>,
    /// Whether the host may merge equal pages; not there yet.
    #[serde(default)]
    pub mergeable: bool,
    /// How memory is added later. Default: `Acpi`.
    #[serde(default)]
    pub hotplug_method: HotplugMethod,
    /// Whether other processes may map it; not there yet.
    #[serde(default)]
    pub shared: bool,
    /// Whether it lies in the host's huge pages; not there yet.
    #[serde(default)]
    pub hugepages: bool,
    /// The size of those pages; not there yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hugepage_size: Option<u64>,
    /// Whether all of it is touched before the guest starts; not there yet.
    #[serde(default)]
    pub prefault: bool,
    /// Whether transparent huge pages may be used. Default: true.
    #[serde(default = "super::yes")]
    #[schema(default = true)]
    pub thp: bool,
    /// Parts with properties of their own; not there yet.
    #[serde(default, deserialize_with = "super::null_is_empty")]
    pub zones: Vec<MemoryZoneConfig>,
}

impl MemoryConfig {
    /// `size` bytes of ordinary memory.
    pub fn of(size: u64) -> Self {
        Self {
            size,
            hotplug_size: None,
            hotplugged_size: None,
            mergeable: false,
            hotplug_method: HotplugMethod::default(),
            shared: false,
            hugepages: false,
            hugepage_size: None,
            prefault: false,
            thp: true,
            zones: Vec::new(),
        }
    }
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self::of(512 << 20)
    }
}

/// How memory is added to a running machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum HotplugMethod {
    /// As memory modules, announced through ACPI.
    #[default]
    Acpi,
    /// With virtio-mem; not there yet.
    VirtioMem,
}

/// A part of memory with properties of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MemoryZoneConfig {
    /// Its name.
    pub id: String,
    /// How much, in bytes.
    pub size: u64,
    /// The file behind it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub file: Option<PathBuf>,
    /// Whether the host may merge equal pages.
    #[serde(default)]
    pub mergeable: bool,
    /// Whether other processes may map it.
    #[serde(default)]
    pub shared: bool,
    /// Whether it lies in the host's huge pages.
    #[serde(default)]
    pub hugepages: bool,
    /// The size of those pages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hugepage_size: Option<u64>,
    /// The host's NUMA node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_numa_node: Option<u32>,
    /// Room for memory added later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hotplug_size: Option<u64>,
    /// What was added already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hotplugged_size: Option<u64>,
    /// Whether all of it is touched before the guest starts.
    #[serde(default)]
    pub prefault: bool,
}

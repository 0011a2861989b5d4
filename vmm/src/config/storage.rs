//! Disks, shares and persistent memory, as other monitors of this family configure them. Of these only disks are there yet: the
//! types of the others are, so that a request for one is refused by name and a misspelt field by its path.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A virtio-blk disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// The image or block device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub path: Option<PathBuf>,
    /// Whether the guest may only read.
    #[serde(default)]
    pub readonly: bool,
    /// Whether the host's page cache is bypassed.
    #[serde(default)]
    pub direct: bool,
    /// Whether the device sits behind the virtual IOMMU.
    #[serde(default)]
    pub iommu: bool,
    /// Request queues. Default: 1.
    #[serde(default = "DiskConfig::default_num_queues")]
    #[schema(default = 1)]
    pub num_queues: usize,
    /// Descriptors of a queue. Default: 128.
    #[serde(default = "DiskConfig::default_queue_size")]
    #[schema(default = 128)]
    pub queue_size: u16,
    /// Whether another process serves it with vhost-user.
    #[serde(default)]
    pub vhost_user: bool,
    /// That process' socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vhost_socket: Option<String>,
    /// How fast it may be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter_config: Option<RateLimiterConfig>,
    /// The PCI segment.
    #[serde(default)]
    pub pci_segment: u16,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The serial number that the guest reads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// The group of disks that share one rate limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit_group: Option<String>,
    /// Which host processors serve a queue.
    #[serde(default, deserialize_with = "super::null_is_empty")]
    pub queue_affinity: Vec<QueueAffinity>,
    /// Whether an image may refer to another.
    #[serde(default)]
    pub backing_files: bool,
    /// Whether blocks that the guest discards are given back to the host. Default: true.
    #[serde(default = "super::yes")]
    #[schema(default = true)]
    pub sparse: bool,
    /// The image's format, `Raw` or `Qcow2`; where absent, `Raw`, but an image that begins like one of another format is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_type: Option<String>,
}

impl DiskConfig {
    const fn default_num_queues() -> usize {
        1
    }

    const fn default_queue_size() -> u16 {
        128
    }
}

/// The host processors of one queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct QueueAffinity {
    /// The queue.
    pub queue_index: u16,
    /// The host processors that serve it.
    #[serde(default, deserialize_with = "super::null_is_empty")]
    pub host_cpus: Vec<usize>,
}

/// How fast a device may be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RateLimiterConfig {
    /// Bytes moved between guest and device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<TokenBucket>,
    /// Requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ops: Option<TokenBucket>,
}

/// A bucket that fills at a steady rate and is emptied by use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenBucket {
    /// What it holds. 0: there is no limit.
    pub size: u64,
    /// What may be used at first beyond `size`, once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_time_burst: Option<u64>,
    /// The time in which it fills, in milliseconds. 0: there is no limit.
    pub refill_time: u64,
}

/// A rate limit shared by several disks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RateLimitGroupConfig {
    /// Its name.
    pub id: String,
    /// The limit.
    pub rate_limiter_config: RateLimiterConfig,
}

/// A virtio-fs share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FsConfig {
    /// The name the guest mounts it by.
    pub tag: String,
    /// The socket of the process that serves it.
    pub socket: String,
    /// Request queues. Default: 1.
    #[serde(default = "FsConfig::default_num_queues")]
    #[schema(default = 1)]
    pub num_queues: usize,
    /// Descriptors of a queue. Default: 1024.
    #[serde(default = "FsConfig::default_queue_size")]
    #[schema(default = 1024)]
    pub queue_size: u16,
    /// The PCI segment.
    #[serde(default)]
    pub pci_segment: u16,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

impl FsConfig {
    const fn default_num_queues() -> usize {
        1
    }

    const fn default_queue_size() -> u16 {
        1024
    }
}

/// A virtio-pmem device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PmemConfig {
    /// The file or folder behind it.
    pub file: String,
    /// How much, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Whether the device sits behind the virtual IOMMU.
    #[serde(default)]
    pub iommu: bool,
    /// Whether what the guest writes is dropped at the end.
    #[serde(default)]
    pub discard_writes: bool,
    /// The PCI segment.
    #[serde(default)]
    pub pci_segment: u16,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

//! Network interfaces.

use reprise_devices::virtio::MacAddress;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::RateLimiterConfig;

/// A virtio-net interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// The host's tap interface, which is made if it is not there. Without a name the host gives one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tap: Option<String>,
    /// The host's address on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<String>,
    /// The mask of that address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<String>,
    /// The guest's hardware address. Default: a random one, administered locally.
    #[serde(
        default = "NetConfig::random_mac",
        deserialize_with = "mac_or_random",
        skip_serializing_if = "Option::is_none"
    )]
    pub mac: Option<String>,
    /// The host's hardware address on the tap. Default: a tap that is there keeps its own; one that is made has the guest's,
    /// with FE in place of the first byte, so that the guest finds the same neighbour when it goes on elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_mac: Option<String>,
    /// The largest frame payload, in bytes: the tap's, and what the guest is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Whether the device sits behind the virtual IOMMU.
    #[serde(default)]
    pub iommu: bool,
    /// Queues, counting both directions. Default: 2.
    #[serde(default = "NetConfig::default_num_queues")]
    #[schema(default = 2)]
    pub num_queues: usize,
    /// Descriptors of a queue. Default: 256.
    #[serde(default = "NetConfig::default_queue_size")]
    #[schema(default = 256)]
    pub queue_size: u16,
    /// Whether another process serves it with vhost-user.
    #[serde(default)]
    pub vhost_user: bool,
    /// That process' socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vhost_socket: Option<String>,
    /// Which side of that socket the VMM is. Default: `Client`.
    #[serde(default)]
    pub vhost_mode: VhostMode,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The PCI segment.
    #[serde(default)]
    pub pci_segment: u16,
    /// How fast it may be in each direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter_config: Option<RateLimiterConfig>,
    /// TCP segmentation by the device. Default: true.
    #[serde(default = "super::yes")]
    #[schema(default = true)]
    pub offload_tso: bool,
    /// UDP fragmentation by the device. Default: true.
    #[serde(default = "super::yes")]
    #[schema(default = true)]
    pub offload_ufo: bool,
    /// Checksums by the device. Default: true.
    #[serde(default = "super::yes")]
    #[schema(default = true)]
    pub offload_csum: bool,
    /// The tap's queues, already open: file descriptors that this process has inherited, one for each queue pair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fds: Option<Vec<i32>>,
}

impl NetConfig {
    /// None only if the host has no randomness.
    fn random_mac() -> Option<String> {
        MacAddress::random().ok().map(|mac| mac.to_string())
    }

    const fn default_num_queues() -> usize {
        2
    }

    const fn default_queue_size() -> u16 {
        256
    }
}

/// An address that is spelled out as null is the default too: made now, it is the same wherever the guest goes on.
fn mac_or_random<'de, D: Deserializer<'de>>(de: D) -> Result<Option<String>, D::Error> {
    Ok(Option::deserialize(de)?.or_else(NetConfig::random_mac))
}

/// Which side of a vhost-user socket the VMM is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum VhostMode {
    /// It connects.
    #[default]
    Client,
    /// It listens.
    Server,
}

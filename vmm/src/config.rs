//! What a virtual machine is made of: the JSON of `vm.create`, the schema of the OpenAPI document, and the target of
//! the command line, all from the types here.
//!
//! # Invariants
//! - Names and shapes are those of cloud-hypervisor's public API description; its clients send whole configurations with
//!   every default spelled out, so a known field at its default is always accepted.
//! - A field nobody knows is refused when the JSON is read, with its path; a known field that asks for what is not there
//!   is refused by [`VmConfig::validate`], by name. Nothing is silently ignored.
//!
//! # Life
//! text -[`VmConfig::from_json`]-> `VmConfig` -[`VmConfig::validate`]-> a config the machine can be built from. The machine
//! checks again what only the host can tell (files, free memory).

mod change;
mod console;
mod cpus;
mod delay;
mod devices;
mod error;
mod memory;
mod net;
mod payload;
mod platform;
mod size;
mod snapshot;
mod spec;
mod storage;
#[cfg(test)]
mod tests;
mod validate;

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

pub use change::{VmRemoveDevice, VmResize, VmResizeDisk};
pub use console::{ConsoleConfig, ConsoleMode, DebugConsoleConfig};
pub use cpus::{CpuAffinity, CpuFeatures, CpuModel, CpuTopology, CpusConfig};
pub use delay::{DelayConfig, DelayTime};
pub use devices::{BalloonConfig, DeviceConfig, RngConfig, UserDeviceConfig, VdpaConfig, VsockConfig};
pub use error::ConfigError;
pub use memory::{HotplugMethod, MemoryConfig, MemoryZoneConfig};
pub use net::{NetConfig, VhostMode};
pub use payload::PayloadConfig;
pub use platform::{LandlockConfig, NumaConfig, NumaDistance, PciSegmentConfig, PlatformConfig, TpmConfig};
pub use size::{SizeError, parse_size};
pub use snapshot::{RestoreConfig, RestoredNetConfig, VmSnapshotConfig};
pub use spec::DeviceSpec;
pub use storage::{
    DiskConfig, FsConfig, PmemConfig, QueueAffinity, RateLimitGroupConfig, RateLimiterConfig, TokenBucket,
};

/// A virtual machine as `vm.create` takes it. Only `payload` is required.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// The processors. Default: one.
    #[serde(default)]
    pub cpus: CpusConfig,
    /// The memory. Default: 512 MiB.
    #[serde(default)]
    pub memory: MemoryConfig,
    /// What the machine boots.
    pub payload: PayloadConfig,
    /// virtio-blk disks.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub disks: Vec<DiskConfig>,
    /// virtio-net interfaces.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub net: Vec<NetConfig>,
    /// The source of entropy behind virtio-rng.
    #[serde(default)]
    pub rng: RngConfig,
    /// The balloon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balloon: Option<BalloonConfig>,
    /// virtio-fs shares.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub fs: Vec<FsConfig>,
    /// Persistent memory; not there yet.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub pmem: Vec<PmemConfig>,
    /// The 16550 serial port at 0x3F8. Default: `Null`, the guest sees a port and its output is dropped.
    #[serde(default = "ConsoleConfig::null")]
    pub serial: ConsoleConfig,
    /// The virtio console, the guest's `hvc0`. Default: `Off`.
    #[serde(default)]
    pub console: ConsoleConfig,
    /// The firmware's debug port. Default: `Off`.
    #[serde(default)]
    pub debug_console: DebugConsoleConfig,
    /// Devices passed through with VFIO; not there yet.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub devices: Vec<DeviceConfig>,
    /// Devices in other processes, vfio-user.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub user_devices: Vec<UserDeviceConfig>,
    /// vDPA devices; not there yet.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub vdpa: Vec<VdpaConfig>,
    /// virtio-vsock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<VsockConfig>,
    /// NUMA nodes; not there yet.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub numa: Vec<NumaConfig>,
    /// A virtual IOMMU; not there yet.
    #[serde(default)]
    pub iommu: bool,
    /// A watchdog; not there yet.
    #[serde(default)]
    pub watchdog: bool,
    /// The pvpanic device; not there yet.
    #[serde(default)]
    pub pvpanic: bool,
    /// PCI segments beyond the first; not there yet.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub pci_segments: Vec<PciSegmentConfig>,
    /// Firmware tables; not there yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<PlatformConfig>,
    /// A TPM in another process; not there yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tpm: Option<TpmConfig>,
    /// Whether the VMM is confined with Landlock by this configuration; refused, for it is confined when it starts or not at all.
    #[serde(default)]
    pub landlock_enable: bool,
    /// What Landlock lets through; refused too: `--landlock-rules` says it.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub landlock_rules: Vec<LandlockConfig>,
    /// Rate limits shared by several disks.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub rate_limit_groups: Vec<RateLimitGroupConfig>,
    /// Devices that answer late, for tests. Reprise's own; shown only if there are any.
    #[serde(default, deserialize_with = "null_is_empty", skip_serializing_if = "Vec::is_empty")]
    pub delays: Vec<DelayConfig>,
}

impl VmConfig {
    /// Reads the JSON of `vm.create`.
    ///
    /// # Errors
    /// [`ConfigError::Json`] naming the JSON path, line and column of the first thing that is not as expected.
    pub fn from_json(text: &[u8]) -> Result<Self, ConfigError> {
        from_json(text)
    }

    /// The names of the devices that the machine can have on its bus, in order.
    pub fn device_names(&self) -> Vec<String> {
        let mut names: Vec<_> = PLATFORM.map(str::to_owned).into();
        if self.serial.mode != ConsoleMode::Off {
            names.push("serial".to_owned());
        }
        names.extend(self.pci_device_names());
        names.sort();
        names
    }
}

/// The devices on the bus of every machine.
const PLATFORM: [&str; 8] = [
    "acpi",
    "debug-exit",
    "i8042",
    "pci-config",
    "pci-ecam",
    "pci-hotplug",
    "post",
    "rtc",
];

/// Reads `text` as a `T` and nothing after it.
///
/// # Errors
/// [`ConfigError::Json`] naming the JSON path, line and column of the first thing that is not as expected.
pub fn from_json<T: serde::de::DeserializeOwned>(text: &[u8]) -> Result<T, ConfigError> {
    let mut json = serde_json::Deserializer::from_slice(text);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|e| ConfigError::Json {
        path: e.path().to_string(),
        source: e.into_inner(),
    })?;
    json.end().map_err(|source| ConfigError::Json {
        path: ".".to_owned(),
        source,
    })?;
    Ok(value)
}

/// A list that may also be spelled `null`, as clients do that print every absent field.
fn null_is_empty<'de, D: Deserializer<'de>, T: Deserialize<'de>>(de: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::<Vec<T>>::deserialize(de)?.unwrap_or_default())
}

/// For `#[serde(default = …)]` on what is on unless said otherwise.
const fn yes() -> bool {
    true
}

//! What the VMM says about itself and its machine: the answers of `vmm.ping`, `vm.info` and `vm.counters`.

use std::collections::BTreeMap;
use std::fmt::{self, Display};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Running;
use crate::config::VmConfig;

/// The state of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum VmState {
    /// It has a configuration and was never started.
    Created,
    /// Its vCPUs run.
    Running,
    /// Its vCPUs and clocks stand still.
    Paused,
    /// It ended; it can be started anew.
    Shutdown,
    /// A debugger holds it.
    BreakPoint,
}

impl Display for VmState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The answer of `vmm.ping`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmmPingResponse {
    /// The build, as precisely as it is known.
    pub build_version: String,
    /// The version of this program.
    pub version: String,
    /// The process id of the VMM.
    pub pid: i64,
    /// What runs the machines, `kvm` or `soft`, and then the same with the reason: `hypervisor=soft: ` and why.
    pub features: Vec<String>,
}

impl VmmPingResponse {
    /// What this process, whose machines `running` runs, says of itself.
    pub fn of_this_process(running: &Running) -> Self {
        let Running { kind, why } = running;
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Self {
            build_version: format!("reprise v{version}"),
            version,
            pid: i64::from(std::process::id()),
            features: vec![(*kind).to_owned(), format!("hypervisor={kind}: {why}")],
        }
    }
}

/// The answer of `vm.info`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmInfo {
    /// The configuration, every default spelled out.
    pub config: VmConfig,
    /// The state.
    pub state: VmState,
    /// The memory the guest has, in bytes.
    pub memory_actual_size: u64,
    /// The PCI devices that the guest has now, by name; none of a VM that does not run.
    #[serde(default)]
    pub device_tree: BTreeMap<String, DeviceNode>,
    /// Whether hot code of the guest runs as code of the host: `cpus.translate` asks for it, the processor is software, and the
    /// host lets it. A member of our own; false of a VM that does not run.
    #[serde(default)]
    pub translating: bool,
}

/// A PCI device that the guest has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeviceNode {
    /// Its name.
    pub id: String,
    /// Where it is: segment, bus, device and function.
    pub pci_bdf: String,
    /// Whether the guest was asked to let go of it.
    #[serde(default)]
    pub removing: bool,
}

impl DeviceNode {
    /// The device called `id` with device number `number`.
    pub(super) fn new(id: &str, number: u8) -> Self {
        Self {
            id: id.to_owned(),
            pci_bdf: format!("0000:00:{number:02x}.0"),
            removing: false,
        }
    }
}

/// The answer of a call that has added a device to a machine that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PciDeviceInfo {
    /// Its name.
    pub id: String,
    /// Where it is: segment, bus, device and function.
    pub bdf: String,
}

/// The answer of `vm.counters`: figures by device and name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct VmCounters(pub BTreeMap<String, BTreeMap<String, u64>>);

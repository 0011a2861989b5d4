//! Which configurations this version can meet.

use std::fmt::Display;
use std::net::{Ipv4Addr, Ipv6Addr};

use reprise_devices::virtio::MacAddress;
use reprise_devices::virtio::block::SERIAL_LENGTH;
use reprise_devices::virtio::net::LEAST_MTU;

use super::{
    ConfigError, ConsoleConfig, ConsoleMode, CpusConfig, DelayConfig, DiskConfig, HotplugMethod, MemoryConfig,
    NetConfig, PLATFORM, RateLimiterConfig, RngConfig, VmConfig, VsockConfig,
};

/// PCI device numbers, without the host bridge's.
const MAX_PCI_DEVICES: usize = 31;
/// The most queues of a device: one for each vCPU of a large machine.
const MAX_QUEUES: usize = 128;

/// The unit in which memory is given to a guest, in bytes.
const PAGE: u64 = 4096;

impl VmConfig {
    /// Checks everything that can be told without the host: values that make no machine, and requests for what is not
    /// there yet. The number of vCPUs is checked against the hypervisor, and memory and files against the host, where
    /// the machine is built.
    ///
    /// # Errors
    /// [`ConfigError::Value`] or [`ConfigError::NotSupported`], naming the first field found.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.validate_payload()?;
        self.cpus.validate()?;
        self.memory.validate()?;
        validate_console("serial", &self.serial)?;
        self.validate_other_consoles()?;

        for (index, disk) in self.disks.iter().enumerate() {
            disk.validate(&format!("disks[{index}]"))?;
        }
        for (index, net) in self.net.iter().enumerate() {
            net.validate(&format!("net[{index}]"))?;
        }
        self.rng.validate()?;
        self.validate_pci()?;
        self.validate_balloon()?;
        absent("fs", self.fs.len())?;
        absent("pmem", self.pmem.len())?;
        absent("devices", self.devices.len())?;
        absent("user_devices", self.user_devices.len())?;
        absent("vdpa", self.vdpa.len())?;
        if let Some(vsock) = &self.vsock {
            vsock.validate()?;
        }
        absent("numa", self.numa.len())?;
        off("iommu", self.iommu)?;
        off("watchdog", self.watchdog)?;
        off("pvpanic", self.pvpanic)?;
        absent("pci_segments", self.pci_segments.len())?;
        self.validate_platform()?;
        absent("tpm", usize::from(self.tpm.is_some()))?;
        off("landlock_enable", self.landlock_enable)?;
        absent("landlock_rules", self.landlock_rules.len())?;
        self.validate_rate_limit_groups()?;
        self.validate_delays()
    }

    /// Names of PCI devices are the machine's names for them, and there are 31 device numbers besides the host bridge's.
    fn validate_pci(&self) -> Result<(), ConfigError> {
        let names = self.pci_device_names();
        for (index, name) in names.iter().enumerate() {
            let of_machine =
                PLATFORM.contains(&name.as_str()) || ["serial", "pci-host", "unclaimed"].contains(&name.as_str());
            let of_vcpu = name
                .strip_prefix("vcpu")
                .is_some_and(|rest| rest.parse::<u32>().is_ok());
            if of_machine || of_vcpu || names[..index].contains(name) {
                let expected = "a name that no other device of the machine has";
                return Err(value(&format!("id of PCI device {index}"), name, expected));
            }
        }
        if names.len() > MAX_PCI_DEVICES {
            let expected = format!("at most {MAX_PCI_DEVICES} PCI devices in all, the source of entropy among them");
            return Err(value("disks", self.disks.len(), expected));
        }
        Ok(())
    }

    /// Groups have names of their own, and disks are in groups that there are.
    fn validate_rate_limit_groups(&self) -> Result<(), ConfigError> {
        let names: Vec<_> = self.rate_limit_groups.iter().map(|group| group.id.as_str()).collect();
        for (index, name) in names.iter().enumerate() {
            if name.is_empty() || names[..index].contains(name) {
                let expected = "a name that no other group has";
                return Err(value(
                    &format!("rate_limit_groups[{index}].id"),
                    format!("{name:?}"),
                    expected,
                ));
            }
        }
        for (index, disk) in self.disks.iter().enumerate() {
            if let Some(group) = &disk.rate_limit_group
                && !names.contains(&group.as_str())
            {
                let expected = format!(
                    "the id of an entry of rate_limit_groups, of which there are: {}",
                    names.join(", ")
                );
                return Err(value(&format!("disks[{index}].rate_limit_group"), group, expected));
            }
        }
        Ok(())
    }

    fn validate_delays(&self) -> Result<(), ConfigError> {
        let known = self.device_names();
        for (index, entry) in self.delays.iter().enumerate() {
            if entry.device != DelayConfig::EVERY_DEVICE && !known.contains(&entry.device) {
                let expected = format!("* or one of {}", known.join(", "));
                return Err(value(&format!("delays[{index}].device"), &entry.device, expected));
            }
            if let Some(expected) = entry.refusal() {
                return Err(value(&format!("delays[{index}].us"), entry.us, expected));
            }
        }
        Ok(())
    }

    fn validate_payload(&self) -> Result<(), ConfigError> {
        if let Some(firmware) = &self.payload.firmware {
            return Err(lacking(
                "payload.firmware",
                firmware.display(),
                "a kernel in payload.kernel",
            ));
        }
        match &self.payload.kernel {
            None => Err(value(
                "payload.kernel",
                "missing",
                "the path of a vmlinux, bzImage, vmlinuz or Multiboot kernel",
            )),
            Some(path) if path.as_os_str().is_empty() => Err(value(
                "payload.kernel",
                "empty",
                "the path of a vmlinux, bzImage, vmlinuz or Multiboot kernel",
            )),
            Some(_) => Ok(()),
        }
    }

    fn validate_other_consoles(&self) -> Result<(), ConfigError> {
        validate_console("console", &self.console)?;
        if self.console.mode == ConsoleMode::Tty && self.serial.mode == ConsoleMode::Tty {
            return Err(value(
                "console.mode",
                "Tty",
                "another mode than serial.mode, for there is one terminal",
            ));
        }
        if !matches!(self.debug_console.mode, ConsoleMode::Off | ConsoleMode::Null) {
            return Err(lacking(
                "debug_console.mode",
                format!("mode {:?}", self.debug_console.mode),
                "Off",
            ));
        }
        Ok(())
    }

    fn validate_balloon(&self) -> Result<(), ConfigError> {
        let Some(balloon) = &self.balloon else { return Ok(()) };
        if !balloon.size.is_multiple_of(PAGE) || balloon.size >= self.memory.size {
            let expected = "bytes, a multiple of 4096 below memory.size";
            return Err(value("balloon.size", balloon.size, expected));
        }
        Ok(())
    }

    /// A platform that says nothing but the defaults is the one there is.
    fn validate_platform(&self) -> Result<(), ConfigError> {
        let Some(platform) = &self.platform else { return Ok(()) };
        if platform.num_pci_segments.is_some_and(|n| n != 1) {
            return Err(lacking("platform.num_pci_segments", "several PCI segments", "1"));
        }
        absent("platform.iommu_segments", platform.iommu_segments.len())?;
        absent(
            "platform.iommu_address_width",
            usize::from(platform.iommu_address_width.is_some()),
        )?;
        absent("platform.serial_number", usize::from(platform.serial_number.is_some()))?;
        absent("platform.uuid", usize::from(platform.uuid.is_some()))?;
        absent("platform.oem_strings", platform.oem_strings.len())?;
        off("platform.tdx", platform.tdx)?;
        off("platform.sev_snp", platform.sev_snp)
    }
}

impl DiskConfig {
    fn validate(&self, at: &str) -> Result<(), ConfigError> {
        let field = |name: &str| format!("{at}.{name}");
        off(&field("vhost_user"), self.vhost_user)?;
        absent(&field("vhost_socket"), usize::from(self.vhost_socket.is_some()))?;
        if self.path.as_deref().is_none_or(|path| path.as_os_str().is_empty()) {
            return Err(value(&field("path"), "missing", "the path of a raw disk image"));
        }
        off(&field("direct"), self.direct)?;
        off(&field("iommu"), self.iommu)?;
        validate_queues(at, self.num_queues, self.queue_size)?;
        let limited = self.rate_limiter_config.as_ref().is_some_and(RateLimiterConfig::limits);
        if let Some(group) = self.rate_limit_group.as_ref().filter(|_| limited) {
            let expected = "no group where there is a rate_limiter_config";
            return Err(value(&field("rate_limit_group"), group, expected));
        }
        validate_place(at, self.pci_segment, self.id.as_deref())?;
        if let Some(serial) = &self.serial
            && serial.len() > SERIAL_LENGTH
        {
            let expected = format!("at most {SERIAL_LENGTH} bytes");
            return Err(value(&field("serial"), serial, expected));
        }
        absent(&field("queue_affinity"), self.queue_affinity.len())?;
        let is = |format: &str| {
            self.image_type
                .as_deref()
                .is_some_and(|name| name.eq_ignore_ascii_case(format))
        };
        if self.backing_files && !is("qcow2") {
            return Err(lacking(
                &field("backing_files"),
                "true",
                "false, unless image_type is Qcow2",
            ));
        }
        match self.image_type.as_deref() {
            Some(name) if !is("raw") && !is("qcow2") => Err(lacking(&field("image_type"), name, "Raw or Qcow2")),
            _ => Ok(()),
        }
    }
}

impl NetConfig {
    fn validate(&self, at: &str) -> Result<(), ConfigError> {
        let field = |name: &str| format!("{at}.{name}");
        off(&field("vhost_user"), self.vhost_user)?;
        absent(&field("vhost_socket"), usize::from(self.vhost_socket.is_some()))?;
        off(&field("iommu"), self.iommu)?;
        validate_queues(at, self.num_queues, self.queue_size)?;
        if !self.num_queues.is_multiple_of(2) {
            let expected = "an even number: each pair has a queue in either direction";
            return Err(value(&field("num_queues"), self.num_queues, expected));
        }
        validate_place(at, self.pci_segment, self.id.as_deref())?;
        for (name, text) in [("mac", &self.mac), ("host_mac", &self.host_mac)] {
            let Some(text) = text else { continue };
            let sound = text.parse::<MacAddress>().is_ok_and(|mac| !mac.is_group());
            if !sound {
                let expected = "the address of one station, like 52:54:00:12:34:56";
                return Err(value(&field(name), format!("{text:?}"), expected));
            }
        }
        for (name, text) in [("ip", &self.ip), ("mask", &self.mask)] {
            let Some(text) = text else { continue };
            if text.parse::<Ipv6Addr>().is_ok() {
                return Err(lacking(&field(name), text, "an IPv4 address"));
            }
            if text.parse::<Ipv4Addr>().is_err() {
                return Err(value(
                    &field(name),
                    format!("{text:?}"),
                    "an IPv4 address, like 192.0.2.1",
                ));
            }
        }
        if let Some(mask) = self.mask.as_deref().and_then(|mask| mask.parse::<Ipv4Addr>().ok()) {
            if mask.to_bits().leading_ones() != mask.to_bits().count_ones() {
                return Err(value(&field("mask"), mask, "ones and then zeros, like 255.255.255.0"));
            }
            if self.ip.is_none() {
                return Err(value(&field("mask"), mask, "none where there is no ip"));
            }
        }
        if let Some(mtu @ ..LEAST_MTU) = self.mtu {
            return Err(value(&field("mtu"), mtu, format!("{LEAST_MTU} or more")));
        }
        let Some(fds) = &self.fds else { return Ok(()) };
        let set_up = [
            ("tap", self.tap.is_some()),
            ("ip", self.ip.is_some()),
            ("host_mac", self.host_mac.is_some()),
        ];
        if let Some((name, _)) = set_up.iter().find(|(_, set)| *set) {
            let expected = "none where the tap is given as file descriptors";
            return Err(value(&field(name), "given", expected));
        }
        if fds.len() * 2 != self.num_queues {
            let expected = format!("twice the number of file descriptors, {}", fds.len() * 2);
            return Err(value(&field("num_queues"), self.num_queues, expected));
        }
        Ok(())
    }
}

impl RateLimiterConfig {
    /// Whether it limits anything.
    fn limits(&self) -> bool {
        let buckets = [&self.bandwidth, &self.ops];
        buckets
            .into_iter()
            .flatten()
            .any(|bucket| bucket.size > 0 && bucket.refill_time > 0)
    }
}

impl VsockConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        // 0 to 2 are the hypervisor's, the local and the host's, and 2^32 - 1 is nobody's (vsock(7)).
        if !(3..u64::from(u32::MAX)).contains(&self.cid) {
            return Err(value("vsock.cid", self.cid, "3 to 4294967294"));
        }
        if self.socket.is_empty() {
            return Err(value("vsock.socket", "empty", "the path of a UNIX socket"));
        }
        off("vsock.iommu", self.iommu)?;
        validate_place("vsock", self.pci_segment, self.id.as_deref())
    }
}

impl RngConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        off("rng.iommu", self.iommu)?;
        if self.src.is_empty() {
            return Err(value("rng.src", "empty", "the path of a file, like /dev/urandom"));
        }
        Ok(())
    }
}

fn validate_queues(at: &str, queues: usize, size: u16) -> Result<(), ConfigError> {
    if !(1..=MAX_QUEUES).contains(&queues) {
        return Err(value(&format!("{at}.num_queues"), queues, format!("1 to {MAX_QUEUES}")));
    }
    if !size.is_power_of_two() || !(4..=1024).contains(&size) {
        let expected = "a power of two from 4 to 1024";
        return Err(value(&format!("{at}.queue_size"), size, expected));
    }
    Ok(())
}

fn validate_place(at: &str, segment: u16, id: Option<&str>) -> Result<(), ConfigError> {
    if segment != 0 {
        return Err(lacking(&format!("{at}.pci_segment"), segment, "0"));
    }
    match id {
        Some(id @ ("" | "*")) => Err(value(&format!("{at}.id"), format!("{id:?}"), "a name")),
        _ => Ok(()),
    }
}

impl CpusConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        if self.boot_vcpus == 0 {
            return Err(value("cpus.boot_vcpus", 0, "1 or more"));
        }
        if self.max_vcpus < self.boot_vcpus {
            let expected = format!("at least cpus.boot_vcpus, {}", self.boot_vcpus);
            return Err(value("cpus.max_vcpus", self.max_vcpus, expected));
        }
        if self.max_vcpus > self.boot_vcpus {
            let expected = format!("cpus.boot_vcpus, {}", self.boot_vcpus);
            return Err(lacking("cpus.max_vcpus", "vCPUs that are added later", expected));
        }
        absent("cpus.topology", usize::from(self.topology.is_some()))?;
        if self.max_phys_bits != Self::default_max_phys_bits() {
            return Err(lacking(
                "cpus.max_phys_bits",
                format!("{} bits", self.max_phys_bits),
                "46",
            ));
        }
        absent("cpus.affinity", self.affinity.len())?;
        off("cpus.features.amx", self.features.amx)
    }
}

impl MemoryConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        absent("memory.zones", self.zones.len())?;
        if self.size == 0 || !self.size.is_multiple_of(PAGE) {
            return Err(value("memory.size", self.size, "bytes, a multiple of 4096 above 0"));
        }
        for (field, size) in [
            ("memory.hotplug_size", self.hotplug_size),
            ("memory.hotplugged_size", self.hotplugged_size),
        ] {
            if let Some(size @ 1..) = size {
                return Err(lacking(
                    field,
                    format!("{size} bytes added later"),
                    "0 or no such field",
                ));
            }
        }
        off("memory.mergeable", self.mergeable)?;
        if self.hotplug_method != HotplugMethod::Acpi {
            return Err(lacking("memory.hotplug_method", "VirtioMem", "Acpi"));
        }
        off("memory.shared", self.shared)?;
        off("memory.hugepages", self.hugepages)?;
        absent("memory.hugepage_size", usize::from(self.hugepage_size.is_some()))?;
        off("memory.prefault", self.prefault)?;
        if !self.thp {
            return Err(lacking("memory.thp", "false", "true"));
        }
        Ok(())
    }
}

fn validate_console(at: &str, console: &ConsoleConfig) -> Result<(), ConfigError> {
    let field = |name: &str| format!("{at}.{name}");
    off(&field("iommu"), console.iommu)?;
    match console.mode {
        ConsoleMode::File if console.file.is_none() => Err(value(
            &field("file"),
            "missing",
            format!("the path of the file, for {at}.mode is File"),
        )),
        ConsoleMode::Socket if console.socket.is_none() => Err(value(
            &field("socket"),
            "missing",
            format!("the path of the socket, for {at}.mode is Socket"),
        )),
        _ => Ok(()),
    }
}

fn off(field: &str, on: bool) -> Result<(), ConfigError> {
    if on {
        Err(lacking(field, "true", "false"))
    } else {
        Ok(())
    }
}

fn absent(field: &str, count: usize) -> Result<(), ConfigError> {
    match count {
        0 => Ok(()),
        1 => Err(lacking(field, "one", "none")),
        n => Err(lacking(field, n, "none")),
    }
}

fn lacking(field: &str, asked: impl Display, expected: impl Display) -> ConfigError {
    ConfigError::NotSupported {
        field: field.to_owned(),
        asked: asked.to_string(),
        expected: expected.to_string(),
    }
}

fn value(field: &str, value: impl Display, expected: impl Display) -> ConfigError {
    ConfigError::Value {
        field: field.to_owned(),
        value: value.to_string(),
        expected: expected.to_string(),
    }
}

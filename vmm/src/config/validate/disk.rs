//! `disks` and `rate_limit_groups`.

use reprise_devices::virtio::block::SERIAL_LENGTH;

use super::checks::{absent, lacking, off, place, queues, value};
use crate::config::{ConfigError, DiskConfig, RateLimiterConfig, VmConfig};

impl DiskConfig {
    pub(super) fn validate(&self, at: &str) -> Result<(), ConfigError> {
        let field = |name: &str| format!("{at}.{name}");
        if self.vhost_user {
            return self.validate_vhost_user(at);
        }
        absent(&field("vhost_socket"), usize::from(self.vhost_socket.is_some()))?;
        if self.path.as_deref().is_none_or(|path| path.as_os_str().is_empty()) {
            return Err(value(&field("path"), "missing", "the path of a raw disk image"));
        }
        off(&field("direct"), self.direct)?;
        off(&field("iommu"), self.iommu)?;
        queues(at, self.num_queues, self.queue_size)?;
        let limited = self.rate_limiter_config.as_ref().is_some_and(RateLimiterConfig::limits);
        if let Some(group) = self.rate_limit_group.as_ref().filter(|_| limited) {
            let expected = "no group where there is a rate_limiter_config";
            return Err(value(&field("rate_limit_group"), group, expected));
        }
        place(at, self.pci_segment, self.id.as_deref())?;
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
            return Err(value(
                &field("backing_files"),
                "true",
                "false, for image_type is not Qcow2",
            ));
        }
        match self.image_type.as_deref() {
            Some(name) if !is("raw") && !is("qcow2") => Err(lacking(&field("image_type"), name, "Raw or Qcow2")),
            _ => Ok(()),
        }
    }

    /// What another process serves is that process's to configure.
    fn validate_vhost_user(&self, at: &str) -> Result<(), ConfigError> {
        let field = |name: &str| format!("{at}.{name}");
        if self.vhost_socket.as_deref().is_none_or(str::is_empty) {
            return Err(value(&field("vhost_socket"), "missing", "the path of a socket"));
        }
        for (name, given) in [
            ("path", self.path.is_some()),
            ("readonly", self.readonly),
            ("direct", self.direct),
            ("iommu", self.iommu),
            ("rate_limiter_config", self.rate_limiter_config.is_some()),
            ("rate_limit_group", self.rate_limit_group.is_some()),
            ("serial", self.serial.is_some()),
            ("queue_affinity", !self.queue_affinity.is_empty()),
            ("backing_files", self.backing_files),
            ("image_type", self.image_type.is_some()),
        ] {
            if given {
                let expected = "nothing: the process behind vhost_socket decides";
                return Err(value(&field(name), "given", expected));
            }
        }
        queues(at, self.num_queues, self.queue_size)?;
        place(at, self.pci_segment, self.id.as_deref())
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

impl VmConfig {
    /// Groups have names of their own, and disks are in groups that there are.
    pub(super) fn validate_rate_limit_groups(&self) -> Result<(), ConfigError> {
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
}

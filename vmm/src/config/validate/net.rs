//! `net`.

use std::net::{Ipv4Addr, Ipv6Addr};

use reprise_devices::virtio::MacAddress;
use reprise_devices::virtio::net::LEAST_MTU;

use super::checks::{absent, lacking, off, place, queues, value};
use crate::config::{ConfigError, NetConfig};

impl NetConfig {
    pub(super) fn validate(&self, at: &str) -> Result<(), ConfigError> {
        let field = |name: &str| format!("{at}.{name}");
        off(&field("vhost_user"), self.vhost_user)?;
        absent(&field("vhost_socket"), usize::from(self.vhost_socket.is_some()))?;
        off(&field("iommu"), self.iommu)?;
        queues(at, self.num_queues, self.queue_size)?;
        if !self.num_queues.is_multiple_of(2) {
            let expected = "an even number: each pair has a queue in either direction";
            return Err(value(&field("num_queues"), self.num_queues, expected));
        }
        place(at, self.pci_segment, self.id.as_deref())?;
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

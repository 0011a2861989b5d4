//! Entries of `net`.

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use reprise_devices::virtio::{MacAddress, Net, NetOptions, Tap, TapError, TapOptions};

use super::BoardError;
use super::device::{Context, Made};
use super::limits::limiter;
use crate::config::NetConfig;
use crate::inherited::inherited;

/// The network card that `config` asks for. Its tap is opened or made.
pub(super) fn make(name: &str, config: &NetConfig, context: &Context) -> Result<Made, BoardError> {
    let failed = |source| BoardError::Net {
        name: name.to_owned(),
        source,
    };
    // What is checked with the configuration is not said again: a text that is none there is none here.
    let mac = config.mac.as_deref().and_then(|mac| mac.parse::<MacAddress>().ok());
    let host = |source| BoardError::NetHost {
        name: name.to_owned(),
        source,
    };
    let mac = match mac {
        Some(mac) => mac,
        None => MacAddress::random().map_err(host)?,
    };
    let tap = match &config.fds {
        Some(fds) => Tap::from_queues(files(fds).map_err(failed)?),
        None => Tap::open(&options(config, mac)),
    };
    let tap = tap.map_err(failed)?;
    tracing::info!(device = name, tap = tap.name(), %mac, "a network card has its tap");
    let limits = config.rate_limiter_config.as_ref();
    let net = Net::new(
        Arc::new(tap),
        NetOptions {
            mtu: config.mtu,
            queue_size: config.queue_size,
            checksums: config.offload_csum,
            tcp_segments: config.offload_tso,
            udp_fragments: config.offload_ufo,
            // Each direction has the whole of it.
            receive_limiter: limits.map(limiter),
            transmit_limiter: limits.map(limiter),
            ..NetOptions::new(mac)
        },
    );
    context.virtio(name, Arc::new(net.map_err(host)?))
}

fn options(config: &NetConfig, guest_mac: MacAddress) -> TapOptions {
    let address = |text: &Option<String>| text.as_deref().and_then(|text| text.parse::<Ipv4Addr>().ok());
    TapOptions {
        name: config.tap.clone(),
        // Two queues each.
        pairs: u16::try_from(config.num_queues / 2).unwrap_or(u16::MAX),
        ip: address(&config.ip),
        mask: address(&config.mask),
        host_mac: config.host_mac.as_deref().and_then(|mac| mac.parse().ok()),
        guest_mac: Some(guest_mac),
        mtu: config.mtu,
    }
}

fn files(fds: &[i32]) -> Result<Vec<OwnedFd>, TapError> {
    let files = fds.iter().enumerate();
    files
        .map(|(index, fd)| inherited(*fd).map_err(|source| TapError::NoTap { index, source }))
        .collect()
}

//! What a driver has settled: offloads, queue pairs, filter and address.
//!
//! # Invariants
//! - Once a queue has begun, the link does what is settled here; both change under one lock.
//! - No vCPU thread asks the link for anything: a reset is the driver's word only.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use super::filter::{Filter, TABLE};
use super::{GUEST_CSUM, GUEST_ECN, GUEST_OFFLOADS, GUEST_TSO4, GUEST_TSO6, GUEST_UFO, Link, MQ, MacAddress};
use crate::sync::lock;
use crate::virtio::device::DeviceStateError;

/// The settings of a card.
#[derive(Debug)]
pub(super) struct Mode {
    /// The address that the card has after a reset.
    own: MacAddress,
    offered: u64,
    settled: Mutex<Settled>,
    /// A copy of the filter's, which each frame asks for.
    promiscuous: AtomicBool,
}

/// What changes, and is saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Settled {
    /// The features that the driver has accepted, since a queue has begun.
    accepted: Option<u64>,
    /// Of [`GUEST_OFFLOADS`].
    offloads: u64,
    pairs: u16,
    mac: MacAddress,
    filter: Filter,
}

impl Settled {
    fn new(mac: MacAddress) -> Self {
        Self {
            accepted: None,
            offloads: 0,
            pairs: 1,
            mac,
            filter: Filter::new(),
        }
    }
}

/// What a driver asks for cannot be.
#[derive(Debug)]
pub(super) struct Refused;

impl Mode {
    pub(super) fn new(own: MacAddress, offered: u64) -> Self {
        Self {
            own,
            offered,
            settled: Mutex::new(Settled::new(own)),
            promiscuous: AtomicBool::new(true),
        }
    }

    pub(super) fn offered(&self) -> u64 {
        self.offered
    }

    /// The features that the driver has accepted, once a queue has begun.
    pub(super) fn accepted(&self) -> u64 {
        lock(&self.settled).accepted.unwrap_or(0)
    }

    pub(super) fn mac(&self) -> MacAddress {
        lock(&self.settled).mac
    }

    pub(super) fn set_mac(&self, mac: MacAddress) {
        lock(&self.settled).mac = mac;
    }

    /// Whether a frame to `destination` is wanted.
    pub(super) fn admits(&self, destination: MacAddress) -> bool {
        let settled = lock(&self.settled);
        settled.filter.admits(destination, settled.mac)
    }

    /// Whether every frame is wanted.
    pub(super) fn admits_all(&self) -> bool {
        self.promiscuous.load(Ordering::Relaxed)
    }

    pub(super) fn change_filter(&self, change: impl FnOnce(&mut Filter)) {
        let mut settled = lock(&self.settled);
        change(&mut settled.filter);
        self.promiscuous.store(settled.filter.promiscuous, Ordering::Relaxed);
    }

    /// The driver has reset the card. The link follows when a queue begins: before, nothing is sent or received.
    pub(super) fn reset(&self) {
        *lock(&self.settled) = Settled::new(self.own);
        self.promiscuous.store(true, Ordering::Relaxed);
    }

    /// A queue begins, for a driver that has accepted `features`: the first has the link do what they say, on one pair.
    pub(super) fn begin(&self, features: u64, link: &dyn Link) {
        let mut settled = lock(&self.settled);
        if settled.accepted.is_some() {
            return;
        }
        settled.accepted = Some(features);
        settled.offloads = features & GUEST_OFFLOADS;
        let offloads = link.set_offloads(tun_flags(settled.offloads));
        if let Err(error) = offloads.and_then(|()| link.set_pairs(1)) {
            tracing::warn!(%error, "the link of a network card refuses what its driver has accepted");
        }
    }

    pub(super) fn set_offloads(&self, offloads: u64, link: &dyn Link) -> Result<(), Refused> {
        let mut settled = lock(&self.settled);
        if offloads & !(settled.accepted.unwrap_or(0) & GUEST_OFFLOADS) != 0 {
            return Err(Refused);
        }
        link.set_offloads(tun_flags(offloads)).map_err(|_| Refused)?;
        settled.offloads = offloads;
        Ok(())
    }

    pub(super) fn set_pairs(&self, pairs: u16, most: u16, link: &dyn Link) -> Result<(), Refused> {
        let mut settled = lock(&self.settled);
        if !(1..=most).contains(&pairs) || settled.accepted.unwrap_or(0) & MQ == 0 {
            return Err(Refused);
        }
        link.set_pairs(pairs).map_err(|_| Refused)?;
        settled.pairs = pairs;
        Ok(())
    }

    pub(super) fn save(&self) -> Vec<u8> {
        // Writing to memory fails for want of memory only.
        postcard::to_allocvec(&*lock(&self.settled)).unwrap_or_default()
    }

    pub(super) fn restore(&self, saved: &[u8], link: &dyn Link, most: u16) -> Result<(), DeviceStateError> {
        let (saved, rest): (Settled, _) = postcard::take_from_bytes(saved).map_err(DeviceStateError::new)?;
        let tables = [&saved.filter.unicast, &saved.filter.multicast];
        let is_sound = rest.is_empty()
            && saved.accepted.is_none_or(|accepted| saved.offloads & !accepted == 0)
            && saved.offloads & !GUEST_OFFLOADS == 0
            && tables.iter().all(|table| table.addresses.len() <= TABLE);
        if !is_sound {
            return Err(DeviceStateError::new("no network card is like this"));
        }
        if !(1..=most).contains(&saved.pairs) {
            let reason = format!("its driver uses {} queue pairs; this one has {most}", saved.pairs);
            return Err(DeviceStateError::new(reason));
        }
        let mut settled = lock(&self.settled);
        let refused =
            |error: io::Error| DeviceStateError::new(format!("its link refuses what its driver uses: {error}"));
        link.set_offloads(tun_flags(saved.offloads)).map_err(refused)?;
        link.set_pairs(saved.pairs).map_err(refused)?;
        self.promiscuous.store(saved.filter.promiscuous, Ordering::Relaxed);
        *settled = saved;
        Ok(())
    }
}

/// What a tap calls these offloads. What needs checksums is nothing without.
fn tun_flags(offloads: u64) -> u32 {
    if offloads & GUEST_CSUM == 0 {
        return 0;
    }
    let segments = [
        (GUEST_TSO4, libc::TUN_F_TSO4),
        (GUEST_TSO6, libc::TUN_F_TSO6),
        (GUEST_UFO, libc::TUN_F_UFO),
    ];
    let mut flags = libc::TUN_F_CSUM;
    for (offload, flag) in segments {
        if offloads & offload != 0 {
            flags |= flag;
        }
    }
    if offloads & GUEST_ECN != 0 && offloads & (GUEST_TSO4 | GUEST_TSO6) != 0 {
        flags |= libc::TUN_F_TSO_ECN;
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_need_checksums_and_congestion_needs_segments() {
        let all = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN | libc::TUN_F_UFO;
        assert_eq!(tun_flags(GUEST_OFFLOADS), all);
        assert_eq!(tun_flags(GUEST_OFFLOADS & !GUEST_CSUM), 0);
        assert_eq!(tun_flags(GUEST_CSUM | GUEST_ECN), libc::TUN_F_CSUM);
        assert_eq!(tun_flags(GUEST_CSUM | GUEST_TSO6), libc::TUN_F_CSUM | libc::TUN_F_TSO6);
    }
}

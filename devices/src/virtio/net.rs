//! virtio-net: a network card whose other end is a tap of the host (virtio 1.2, "Network Device").
//!
//! # Purpose
//! A frame goes from guest memory to the [`Link`] and back as it is, in one call, behind the header with which both sides speak of
//! checksums and segments that are still to be made. Who makes them is settled between the driver and the link; the device only
//! passes the header on, and checks that it says nothing that was not agreed.
//!
//! # Invariants
//! - No frame takes more memory of the host than [`FRAME`] and a header, whatever the guest describes.
//! - A frame that cannot go anywhere is dropped and counted, never an error of the machine: networks lose frames.
//! - Queue pairs beyond those that the driver has asked for carry nothing.
//!
//! # Life
//! Reset: one pair, every frame is received, no offloads. The first queue that begins has the link do what the driver accepts; the
//! control queue changes it. A card that goes on after a restore asks its driver to announce the guest (VIRTIO_NET_S_ANNOUNCE).

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use virtio_bindings::virtio_net as bits;

use super::device::{ConfigChange, DeviceKind, DeviceStateError, QueueHandler, VirtioDevice};
use super::rate_limiter::{RateLimiter, limited};
use crate::sync::lock;

mod control;
mod filter;
mod header;
mod mac;
mod mode;
mod receive;
pub mod tap;
mod transmit;

pub use mac::{MacAddress, NoMacAddress};
pub use tap::{Tap, TapError, TapOptions};

use control::Controller;
use mode::Mode;
use receive::Receiver;
use transmit::Transmitter;

/// The most bytes of a frame, of which a segment that the other side is to cut may have that many.
pub const FRAME: usize = 65_535 + ETHERNET;
/// Bytes before the payload: addresses, two VLAN tags, type.
const ETHERNET: usize = 22;
/// The most queue pairs.
pub const MOST_PAIRS: u16 = 64;
/// The least maximum transmission unit (virtio 1.2, "Device Requirements: Device configuration layout").
pub const LEAST_MTU: u16 = 68;

/// Bytes of the configuration structure, up to mtu.
const CONFIG_LENGTH: usize = 12;
/// Descriptors of the control queue.
const CONTROL_QUEUE_SIZE: u16 = 64;
/// The control queue of a driver that uses one pair.
const EARLY_CONTROL: u16 = 2;

const CSUM: u64 = 1 << bits::VIRTIO_NET_F_CSUM;
const GUEST_CSUM: u64 = 1 << bits::VIRTIO_NET_F_GUEST_CSUM;
const GUEST_TSO4: u64 = 1 << bits::VIRTIO_NET_F_GUEST_TSO4;
const GUEST_TSO6: u64 = 1 << bits::VIRTIO_NET_F_GUEST_TSO6;
const GUEST_ECN: u64 = 1 << bits::VIRTIO_NET_F_GUEST_ECN;
const GUEST_UFO: u64 = 1 << bits::VIRTIO_NET_F_GUEST_UFO;
const HOST_TSO4: u64 = 1 << bits::VIRTIO_NET_F_HOST_TSO4;
const HOST_TSO6: u64 = 1 << bits::VIRTIO_NET_F_HOST_TSO6;
const HOST_ECN: u64 = 1 << bits::VIRTIO_NET_F_HOST_ECN;
const HOST_UFO: u64 = 1 << bits::VIRTIO_NET_F_HOST_UFO;
const MRG_RXBUF: u64 = 1 << bits::VIRTIO_NET_F_MRG_RXBUF;
const MQ: u64 = 1 << bits::VIRTIO_NET_F_MQ;
const ANNOUNCE: u64 = 1 << bits::VIRTIO_NET_F_GUEST_ANNOUNCE;
/// What a driver may switch on and off.
const GUEST_OFFLOADS: u64 = GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | GUEST_UFO;

/// What carries frames, each behind a header of `struct virtio_net_hdr_v1`, 12 bytes in little-endian order.
pub trait Link: Send + Sync {
    /// Queue pairs.
    fn pairs(&self) -> u16;

    /// Where the frames of pair `index` are read and written: one with each call, and none blocks.
    fn pair(&self, index: u16) -> BorrowedFd<'_>;

    /// From now on frames may come as `offloads` says, `TUN_F_*`.
    ///
    /// # Errors
    /// The operating system's.
    fn set_offloads(&self, offloads: u32) -> io::Result<()>;

    /// From now on frames come to the first `pairs` pairs.
    ///
    /// # Errors
    /// The operating system's.
    fn set_pairs(&self, pairs: u16) -> io::Result<()>;
}

/// A network card besides its link.
#[derive(Debug, Clone)]
pub struct NetOptions {
    /// The guest's hardware address.
    pub mac: MacAddress,
    /// What the driver is told about the largest payload of a frame, in bytes.
    pub mtu: Option<u16>,
    /// Descriptors of a queue, a power of two.
    pub queue_size: u16,
    /// Whether either side may leave checksums to the other.
    pub checksums: bool,
    /// Whether either side may leave the cutting of TCP segments to the other.
    pub tcp_segments: bool,
    /// Whether either side may leave the cutting of UDP datagrams to the other.
    pub udp_fragments: bool,
    /// What limits all that the guest receives.
    pub receive_limiter: Option<Arc<RateLimiter>>,
    /// What limits all that it sends.
    pub transmit_limiter: Option<Arc<RateLimiter>>,
}

impl NetOptions {
    /// A card with the address `mac`, without limits.
    #[must_use]
    pub fn new(mac: MacAddress) -> Self {
        Self {
            mac,
            mtu: None,
            queue_size: 256,
            checksums: true,
            tcp_segments: true,
            udp_fragments: true,
            receive_limiter: None,
            transmit_limiter: None,
        }
    }
}

/// A network card.
#[derive(Debug)]
pub struct Net {
    shared: Arc<Shared>,
    mtu: Option<u16>,
    queue_size: u16,
    receive_limiter: Option<Arc<RateLimiter>>,
    transmit_limiter: Option<Arc<RateLimiter>>,
}

/// What the queues of a card share.
struct Shared {
    link: Arc<dyn Link>,
    pairs: u16,
    mode: Mode,
    counters: Counters,
    change: Mutex<Option<ConfigChange>>,
    /// Whether the driver is asked to tell its network where the guest is now: VIRTIO_NET_S_ANNOUNCE.
    announce: AtomicBool,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Counters {
    rx_bytes: AtomicU64,
    rx_frames: AtomicU64,
    /// Frames for others, of which the driver wants none.
    rx_filtered: AtomicU64,
    rx_drops: AtomicU64,
    tx_bytes: AtomicU64,
    tx_frames: AtomicU64,
    tx_drops: AtomicU64,
    /// Frames whose header says what was not agreed or cannot be, or that are none.
    tx_malformed: AtomicU64,
    control: AtomicU64,
    control_refused: AtomicU64,
}

fn count(counter: &AtomicU64, by: usize) {
    counter.fetch_add(by as u64, Ordering::Relaxed);
}

impl Net {
    /// A card on `link`, which has 1 to [`MOST_PAIRS`] pairs.
    ///
    /// # Errors
    /// The operating system's, if the link refuses to carry nothing but whole frames on one pair.
    pub fn new(link: Arc<dyn Link>, options: NetOptions) -> io::Result<Self> {
        let pairs = link.pairs().clamp(1, MOST_PAIRS);
        let mut features = MRG_RXBUF
            | 1 << bits::VIRTIO_NET_F_MAC
            | 1 << bits::VIRTIO_NET_F_STATUS
            | 1 << bits::VIRTIO_NET_F_CTRL_VQ
            | ANNOUNCE
            | 1 << bits::VIRTIO_NET_F_CTRL_RX
            | 1 << bits::VIRTIO_NET_F_CTRL_RX_EXTRA
            | 1 << bits::VIRTIO_NET_F_CTRL_MAC_ADDR;
        if options.mtu.is_some() {
            features |= 1 << bits::VIRTIO_NET_F_MTU;
        }
        if pairs > 1 {
            features |= MQ;
        }
        if options.checksums {
            features |= CSUM | GUEST_CSUM | 1 << bits::VIRTIO_NET_F_CTRL_GUEST_OFFLOADS;
            // Segments are cut where checksums are made.
            if options.tcp_segments {
                features |= HOST_TSO4 | HOST_TSO6 | HOST_ECN | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN;
            }
            if options.udp_fragments {
                features |= HOST_UFO | GUEST_UFO;
            }
        }
        link.set_offloads(0)?;
        link.set_pairs(1)?;
        Ok(Self {
            shared: Arc::new(Shared {
                link,
                pairs,
                mode: Mode::new(options.mac, features),
                counters: Counters::default(),
                change: Mutex::default(),
                announce: AtomicBool::new(false),
            }),
            mtu: options.mtu,
            queue_size: options.queue_size,
            receive_limiter: options.receive_limiter,
            transmit_limiter: options.transmit_limiter,
        })
    }

    /// The guest's hardware address as it is now.
    #[must_use]
    pub fn mac(&self) -> MacAddress {
        self.shared.mode.mac()
    }
}

impl VirtioDevice for Net {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Net
    }

    fn features(&self) -> u64 {
        self.shared.mode.offered()
    }

    fn queue_sizes(&self) -> Vec<u16> {
        let mut sizes = vec![self.queue_size; usize::from(self.shared.pairs) * 2];
        sizes.push(CONTROL_QUEUE_SIZE);
        sizes
    }

    fn config(&self) -> Vec<u8> {
        let mut config = vec![0; CONFIG_LENGTH];
        config[0..6].copy_from_slice(&self.mac().bytes());
        let mut status = bits::VIRTIO_NET_S_LINK_UP as u16;
        if self.shared.announce.load(Ordering::SeqCst) {
            status |= bits::VIRTIO_NET_S_ANNOUNCE as u16;
        }
        config[6..8].copy_from_slice(&status.to_le_bytes());
        config[8..10].copy_from_slice(&self.shared.pairs.to_le_bytes());
        config[10..12].copy_from_slice(&self.mtu.unwrap_or(0).to_le_bytes());
        config
    }

    fn connect(&self, change: ConfigChange) {
        *lock(&self.shared.change) = Some(change);
    }

    fn reset(&self) {
        self.shared.announce.store(false, Ordering::SeqCst);
        self.shared.mode.reset();
    }

    fn save(&self) -> Vec<u8> {
        self.shared.mode.save()
    }

    fn restore(&self, saved: &[u8]) -> Result<(), DeviceStateError> {
        self.shared.mode.restore(saved, &*self.shared.link, self.shared.pairs)
    }

    /// The guest is somewhere else: switches learn that from the frames that its driver is asked to send.
    fn goes_on(&self) {
        if self.shared.mode.accepted() & ANNOUNCE == 0 {
            return;
        }
        self.shared.announce.store(true, Ordering::SeqCst);
        if let Some(change) = &*lock(&self.shared.change) {
            change.announce();
        }
    }

    fn handler(&self, index: u16) -> Box<dyn QueueHandler> {
        let shared = || Arc::clone(&self.shared);
        let pair = index / 2;
        if index == self.shared.pairs * 2 {
            return Box::new(Controller::new(shared()));
        }
        let (handler, limiter): (Box<dyn QueueHandler>, _) = if index.is_multiple_of(2) {
            let receiver = Receiver::new(shared(), pair);
            let limiter = self.receive_limiter.clone();
            if index == EARLY_CONTROL {
                (Box::new(ReceiverOrController::new(receiver, shared())), limiter)
            } else {
                (Box::new(receiver), limiter)
            }
        } else {
            (
                Box::new(Transmitter::new(shared(), pair)),
                self.transmit_limiter.clone(),
            )
        };
        limited(handler, limiter)
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let counters = &self.shared.counters;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        vec![
            ("rx_bytes", load(&counters.rx_bytes)),
            ("rx_frames", load(&counters.rx_frames)),
            ("rx_filtered", load(&counters.rx_filtered)),
            ("rx_drops", load(&counters.rx_drops)),
            ("tx_bytes", load(&counters.tx_bytes)),
            ("tx_frames", load(&counters.tx_frames)),
            ("tx_drops", load(&counters.tx_drops)),
            ("tx_malformed", load(&counters.tx_malformed)),
            ("control", load(&counters.control)),
            ("control_refused", load(&counters.control_refused)),
        ]
    }
}

/// The third queue of a card with several pairs: without VIRTIO_NET_F_MQ it is the control queue.
struct ReceiverOrController {
    receiver: Receiver,
    controller: Controller,
    controls: bool,
}

impl ReceiverOrController {
    fn new(receiver: Receiver, shared: Arc<Shared>) -> Self {
        Self {
            receiver,
            controller: Controller::new(shared),
            controls: false,
        }
    }

    fn role(&mut self) -> &mut dyn QueueHandler {
        if self.controls {
            &mut self.controller
        } else {
            &mut self.receiver
        }
    }
}

impl QueueHandler for ReceiverOrController {
    fn begin(&mut self, features: u64) {
        self.controls = features & MQ == 0;
        self.role().begin(features);
    }

    fn handle(&mut self, chain: &super::Chain<'_>) -> Result<super::Handled, super::ChainError> {
        self.role().handle(chain)
    }

    fn put_back(&mut self, all: bool) {
        self.role().put_back(all);
    }

    fn source(&self) -> Option<BorrowedFd<'_>> {
        if self.controls {
            self.controller.source()
        } else {
            self.receiver.source()
        }
    }
}

#[cfg(test)]
mod tests;

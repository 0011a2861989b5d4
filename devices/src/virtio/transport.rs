//! The PCI transport: virtio's registers in BAR 0, and the capabilities that tell where they are (virtio 1.2, "Virtio Over PCI
//! Bus").
//!
//! # Invariants
//! - A register does what its bytes say, whatever the width and the offset of the access; what is read-only stays.
//! - A driver that has accepted features that were not offered, or not VIRTIO_F_VERSION_1, finds FEATURES_OK clear.
//! - A driver that finds config_generation unchanged has read one state of the device configuration structure, whatever
//!   changed meanwhile: the generation counts the states that were shown.
//! - No queue is served before DRIVER_OK, nor while the function is no bus master.
//! - device_status reads as zero after a reset only when no queue's thread touches guest memory any more.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use virtio_bindings::virtio_config as bits;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueState, QueueT};

use super::device::{ConfigChange, ResizeError, VirtioDevice};
use super::dma::Dma;
use super::doorbells::{Doorbells, Kept};
use super::interrupts::Interrupts;
use super::queue::{QueueCounters, QueueThread};
use crate::bus::Response;
use crate::bytes;
use crate::pci::config::ConfigSpaceError;
use crate::pci::{Bar, ConfigSpace, Function, Identity, Messages, Msix, MsixPlace, Registers, spec};
use crate::sync::lock;

mod common;
mod state;

use common::Common;
pub use state::{QueueSetupState, VirtioState, VirtioStateError};

/// PCI's Vendor ID of virtio devices.
const VENDOR: u16 = 0x1af4;
/// PCI's Device ID of a device of type 0.
const FIRST_DEVICE: u16 = 0x1040;
/// A Revision ID of 1 or more says that the device is modern.
const REVISION: u8 = 1;

/// The BAR with everything in it, and where.
const BAR: u8 = 0;
const BAR_LENGTH: u64 = 0x8000;
const COMMON: u64 = 0x0000;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const TABLE: u32 = 0x4000;
const PENDING: u32 = 0x5000;
/// The room that each of these has.
const REGION: u64 = 0x1000;
/// Bytes between the notification addresses of two queues.
const NOTIFY_MULTIPLIER: u64 = 4;
/// The most queues of a device: each has a vector of its own, there is one more for the configuration, and the table has room
/// for 256.
const MAX_QUEUES: usize = 255;

/// cfg_type of a virtio capability.
mod cfg_type {
    pub const COMMON: u8 = 1;
    pub const NOTIFY: u8 = 2;
    pub const ISR: u8 = 3;
    pub const DEVICE: u8 = 4;
    pub const PCI: u8 = 5;
}

/// Offsets in the capability of the PCI configuration access window.
mod window {
    pub const BAR: u8 = 4;
    pub const OFFSET: u8 = 8;
    pub const LENGTH: u8 = 12;
    pub const DATA: u8 = 16;
    pub const DATA_LENGTH: u64 = 4;
}

/// Bits of device_status.
mod status {
    use super::bits;

    pub const DRIVER_OK: u8 = bits::VIRTIO_CONFIG_S_DRIVER_OK as u8;
    pub const FEATURES_OK: u8 = bits::VIRTIO_CONFIG_S_FEATURES_OK as u8;
    pub const NEEDS_RESET: u8 = bits::VIRTIO_CONFIG_S_NEEDS_RESET as u8;
}

const VERSION_1: u64 = 1 << bits::VIRTIO_F_VERSION_1;
const RING_RESET: u64 = 1 << bits::VIRTIO_F_RING_RESET;
const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
const INDIRECT_DESC: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC;
/// What every device offers.
const TRANSPORT_FEATURES: u64 = VERSION_1 | RING_RESET | EVENT_IDX | INDIRECT_DESC;

/// A device cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum VirtioError {
    /// It has no queues, too many, or one of a size that is none.
    #[error("{name} cannot have queues of {sizes:?} descriptors; expected 1 to 255 powers of two up to 32768")]
    Queues {
        /// Its name.
        name: String,
        /// The sizes.
        sizes: Vec<u16>,
    },
    /// The host has no thread for a queue.
    #[error("the host refused a thread for queue {queue} of {name}")]
    Thread {
        /// The device.
        name: String,
        /// The queue.
        queue: usize,
        /// What it says.
        source: io::Error,
    },
    /// The function cannot be laid out.
    #[error("the configuration space of {name} cannot be laid out")]
    Config {
        /// The device.
        name: String,
        /// Why.
        source: ConfigSpaceError,
    },
}

/// A virtio device on PCI.
pub struct VirtioPci {
    name: String,
    device: Arc<dyn VirtioDevice>,
    /// Its configuration structure as the driver last saw it.
    config: Mutex<Shown>,
    offered: u64,
    dma: Dma,
    common: Mutex<Common>,
    interrupts: Arc<Interrupts>,
    queues: Vec<QueueThread>,
    counters: Arc<QueueCounters>,
    resets: AtomicU64,
    /// Who notifies in the guest's place, and what it does so for.
    doorbells: OnceLock<Arc<dyn Doorbells>>,
    bells: Mutex<Vec<Kept>>,
    /// Where in configuration space the access window is.
    window: u8,
    /// Whether it was restored, and has not gone on since.
    restored: AtomicBool,
}

/// A state of the device configuration structure, and how many there were, modulo 2^8.
struct Shown {
    config: Vec<u8>,
    generation: u8,
}

impl VirtioPci {
    /// `device` as a PCI function called `name`, which reaches guest memory by `dma` and sends its interrupts to `messages`.
    /// Both handles lead to the same; the function goes onto a bus.
    ///
    /// # Errors
    /// [`VirtioError`].
    pub fn new(
        name: impl Into<String>,
        device: Arc<dyn VirtioDevice>,
        dma: Dma,
        messages: Arc<dyn Messages>,
    ) -> Result<(Arc<Self>, Function), VirtioError> {
        let name = name.into();
        let sizes = device.queue_sizes();
        let sound = |size: &u16| size.is_power_of_two();
        if sizes.is_empty() || sizes.len() > MAX_QUEUES || !sizes.iter().all(sound) {
            return Err(VirtioError::Queues { name, sizes });
        }
        let vectors = sizes.len() as u16 + 1;
        let msix = Arc::new(Msix::new(vectors, messages));
        let interrupts = Arc::new(Interrupts::new(Arc::clone(&msix), sizes.len()));
        let counters = Arc::new(QueueCounters::default());
        let mut queues = Vec::new();
        for index in 0..sizes.len() {
            let thread = QueueThread::spawn(
                format!("{name}.{index}"),
                index,
                dma.clone(),
                Arc::clone(&interrupts),
                Arc::clone(&counters),
                device.handler(index as u16),
            );
            queues.push(thread.map_err(|source| VirtioError::Thread {
                name: name.clone(),
                queue: index,
                source,
            })?);
        }
        device.connect(ConfigChange::new(Arc::clone(&interrupts)));
        let config = device.config();
        let laid_out = |source| VirtioError::Config {
            name: name.clone(),
            source,
        };
        let (space, window) = lay_out(&*device, &config, sizes.len()).map_err(laid_out)?;
        let this = Arc::new(Self {
            name: name.clone(),
            offered: device.features() | TRANSPORT_FEATURES & device.transport_features(),
            device,
            config: Mutex::new(Shown { config, generation: 0 }),
            dma,
            common: Mutex::new(Common::new(&sizes)),
            interrupts,
            queues,
            counters,
            resets: AtomicU64::new(0),
            doorbells: OnceLock::new(),
            bells: Mutex::default(),
            window,
            restored: AtomicBool::new(false),
        });
        let place = MsixPlace {
            bar: BAR,
            table: TABLE,
            pending: PENDING,
            pending_bar: BAR,
        };
        let function = Function::new(&*name, space, Arc::clone(&this) as Arc<dyn Registers>)
            .with_msix(msix, place)
            .map_err(laid_out)?;
        Ok((this, function))
    }

    /// The device's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Has `doorbells` take the driver's notifications from now on, before they are accesses of this device. To be called before
    /// it is on a bus; it is given them once.
    pub fn take_notifications_by(&self, doorbells: Arc<dyn Doorbells>) {
        let _given_before = self.doorbells.set(doorbells);
    }

    /// What the register device_status reads as.
    #[must_use]
    pub fn device_status(&self) -> u8 {
        lock(&self.common).shown_status(self)
    }

    /// As [`VirtioDevice::resize`].
    ///
    /// # Errors
    /// As there.
    pub fn resize(&self, bytes: u64) -> Result<(), ResizeError> {
        self.device.resize(bytes)
    }

    /// Stops (true) or continues (false) the device. Once stopped, it touches guest memory and interrupts no more until it is
    /// continued: this waits for the requests that are being served, `patience` at most. False if one is being served still.
    pub fn set_paused(&self, paused: bool, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        // All of them first, so that they finish side by side.
        let instantly = Instant::now();
        for queue in &self.queues {
            queue.set_paused(paused, instantly);
        }
        let done = self.queues.iter().all(|queue| queue.set_paused(paused, deadline));
        if !paused && self.restored.swap(false, Ordering::SeqCst) {
            self.device.goes_on();
        }
        done
    }

    fn read_register(&self, offset: u64, size: u8) -> u64 {
        let within = offset % REGION;
        match offset - within {
            COMMON => {
                let common = lock(&self.common);
                let image = common.image(self);
                read_slice(&image, within, size)
            }
            // Any read clears it; it is one byte.
            ISR if within == 0 => self.interrupts.take_isr().into(),
            DEVICE => read_slice(&self.shown().config, within, size),
            _ => 0,
        }
    }

    /// The device configuration structure as it is now.
    fn shown(&self) -> MutexGuard<'_, Shown> {
        let mut shown = lock(&self.config);
        let mut config = self.device.config();
        // Its length is in the capability.
        config.resize(shown.config.len(), 0);
        if config != shown.config {
            *shown = Shown {
                config,
                generation: shown.generation.wrapping_add(1),
            };
        }
        shown
    }

    fn write_device(&self, within: u64, size: u8, value: u64) {
        let length = lock(&self.config).config.len() as u64;
        let inside = length.saturating_sub(within).min(size.into()) as usize;
        if inside > 0 {
            self.device.write_config(within, &value.to_le_bytes()[..inside]);
        }
    }

    fn write_register(&self, offset: u64, size: u8, value: u64) {
        let within = offset % REGION;
        match offset - within {
            COMMON => {
                let mut common = lock(&self.common);
                common.write(self, within, size, value);
            }
            NOTIFY => {
                self.counters.notifications.fetch_add(1, Ordering::Relaxed);
                let queue = usize::try_from(within / NOTIFY_MULTIPLIER).unwrap_or(usize::MAX);
                if let Some(queue) = self.queues.get(queue) {
                    queue.notify();
                }
            }
            DEVICE => self.write_device(within, size, value),
            _ => {}
        }
    }

    /// Whether a queue's thread holds rings that were taken away from it.
    fn is_letting_go(&self) -> bool {
        self.queues.iter().any(QueueThread::is_serving)
    }

    fn reset(&self) {
        self.resets.fetch_add(1, Ordering::Relaxed);
        for queue in &self.queues {
            queue.reset();
        }
        self.interrupts.reset();
        self.device.reset();
    }

    /// Starts queue `index` with the rings in `state`.
    fn start(&self, index: usize, state: QueueState, features: u64) {
        match self.queue(state) {
            Some(queue) => self.queues[index].start(queue, features),
            None => {
                if self.counters.malformed.fetch_add(1, Ordering::Relaxed) == 0 {
                    tracing::warn!(
                        device = self.name,
                        queue = index,
                        ?state,
                        "the rings of a queue are not in guest memory; the device needs a reset"
                    );
                }
                self.interrupts.need_reset();
            }
        }
    }

    /// A queue with the rings in `state`, if they are aligned and in guest memory.
    fn queue(&self, state: QueueState) -> Option<Queue> {
        let queue = Queue::try_from(state).ok()?;
        // Zero is where nobody has put anything.
        (queue.is_valid(self.dma.memory()) && state.avail_ring != 0).then_some(queue)
    }

    /// The access that the window asks for: its offset in the BAR and its size.
    fn window_access(&self, config: &ConfigSpace) -> Option<(u64, u8)> {
        let at = |place: u8| config.u32(self.window + place);
        let (bar, offset) = (config.read((self.window + window::BAR).into(), 1), at(window::OFFSET));
        let size = u8::try_from(at(window::LENGTH))
            .ok()
            .filter(|size| matches!(size, 1 | 2 | 4))?;
        let aligned = offset.is_multiple_of(size.into());
        (bar == u64::from(BAR) && aligned && u64::from(offset) < u64::from(TABLE)).then_some((offset.into(), size))
    }

    /// Whether an access of configuration space touches the window's data.
    fn is_window(&self, offset: u64, size: u8) -> bool {
        let data = u64::from(self.window + window::DATA);
        offset < data + window::DATA_LENGTH && offset.saturating_add(size.into()) > data
    }
}

/// The bytes of `slice` at `offset`; zero beyond its end.
fn read_slice(slice: &[u8], offset: u64, size: u8) -> u64 {
    bytes::read(offset, size, |at| {
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        slice.get(at).copied().unwrap_or(0)
    })
}

/// The configuration space of `device`, and where in it the access window is.
fn lay_out(device: &dyn VirtioDevice, config: &[u8], queues: usize) -> Result<(ConfigSpace, u8), ConfigSpaceError> {
    let id = FIRST_DEVICE + device.kind().number();
    let mut space = ConfigSpace::new(Identity {
        vendor: VENDOR,
        device: id,
        revision: REVISION,
        class: device.kind().class(),
        subsystem_vendor: VENDOR,
        subsystem: id,
    });
    space.add_bar(Bar {
        index: BAR,
        size: BAR_LENGTH,
        wide: true,
        prefetchable: false,
    })?;
    let mut add = |kind: u8, offset: u64, length: u64, more: &[u8], writable: &[u8]| {
        // Its own length counts its two-byte head.
        let mut body = vec![16 + more.len() as u8, kind, BAR, 0, 0, 0];
        body.extend((offset as u32).to_le_bytes());
        body.extend((length as u32).to_le_bytes());
        body.extend(more);
        space.add_capability(spec::capability::VENDOR, &body, writable)
    };
    add(cfg_type::COMMON, COMMON, common::LENGTH as u64, &[], &[])?;
    let notify = (NOTIFY_MULTIPLIER as u32).to_le_bytes();
    add(
        cfg_type::NOTIFY,
        NOTIFY,
        queues as u64 * NOTIFY_MULTIPLIER,
        &notify,
        &[],
    )?;
    add(cfg_type::ISR, ISR, 1, &[], &[])?;
    if !config.is_empty() {
        add(cfg_type::DEVICE, DEVICE, config.len() as u64, &[], &[])?;
    }
    // The driver chooses bar, offset and length, and accesses by the data.
    let chosen = [
        &[0, 0, 0xff, 0, 0, 0][..],
        &[0xff; 4],
        &[0xff; 4],
        &[0xff; window::DATA_LENGTH as usize],
    ]
    .concat();
    let window = add(cfg_type::PCI, 0, 0, &[0; window::DATA_LENGTH as usize], &chosen)?;
    Ok((space, window))
}

impl Registers for VirtioPci {
    fn read(&self, _bar: u8, offset: u64, size: u8) -> Response {
        Response::Done(self.read_register(offset, size))
    }

    fn write(&self, _bar: u8, offset: u64, size: u8, value: u64) -> Response {
        self.write_register(offset, size, value);
        Response::Done(0)
    }

    fn set_master(&self, master: bool) {
        for queue in &self.queues {
            queue.set_barred(!master);
        }
    }

    fn placed(&self, _bar: u8, address: Option<u64>) {
        let Some(doorbells) = self.doorbells.get() else { return };
        let mut bells = lock(&self.bells);
        // The old ones first: the new may be at the same address.
        bells.clear();
        let Some(start) = address else { return };
        for (queue, index) in self.queues.iter().zip(0..) {
            // The other queues' notifications are accesses then.
            bells.extend(doorbells.keep(start + NOTIFY + NOTIFY_MULTIPLIER * index, queue.bell()));
        }
    }

    fn before_config_read(&self, config: &mut ConfigSpace, offset: u64, size: u8) {
        if !self.is_window(offset, size) {
            return;
        }
        if let Some((offset, size)) = self.window_access(config) {
            let value = self.read_register(offset, size).to_le_bytes();
            config.set(self.window + window::DATA, &value[..size.into()]);
        }
    }

    fn after_config_write(&self, config: &ConfigSpace, offset: u64, size: u8) {
        if !self.is_window(offset, size) {
            return;
        }
        if let Some((offset, size)) = self.window_access(config) {
            let value = config.read((self.window + window::DATA).into(), size);
            self.write_register(offset, size, value);
        }
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let doorbells = self.counters.doorbells();
        let mut figures = vec![
            ("requests", load(&self.counters.requests)),
            ("malformed", load(&self.counters.malformed)),
            ("notifications", load(&self.counters.notifications) + doorbells),
            ("doorbells", doorbells),
            ("interrupts", load(&self.counters.interrupts)),
            ("resets", load(&self.resets)),
        ];
        figures.extend(self.device.counters());
        figures
    }
}

#[cfg(test)]
mod tests;

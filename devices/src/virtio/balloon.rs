//! virtio-balloon: memory that the guest gives up, and pages that it tells it does not use (virtio 1.2, "Traditional Memory
//! Balloon Device").
//!
//! # Invariants
//! - Only whole pages that the guest names are given back, and only of its own memory. What it names beyond that is counted and
//!   left alone.
//! - A page that was given back reads as zero, and no processor goes on with instructions decoded from it: [`GiveBack`] sees
//!   to both.
//!
//! # Life
//! [`resize`](VirtioDevice::resize) changes the target (num_pages) and tells the driver, which inflates or deflates and says by
//! `actual` how far it has got.

use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use super::chain::{Chain, ChainError};
use super::device::{ConfigChange, DeviceKind, DeviceStateError, Handled, QueueHandler, ResizeError, VirtioDevice};
use crate::sync::lock;

/// Bytes of a page of the balloon, whatever the guest's are.
pub const PAGE: u64 = 4096;

/// Descriptors of each of its queues.
const QUEUE_SIZE: u16 = 128;
const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;
/// free page reporting has virtqueue 4 (virtio 1.2, "Virtqueues"), but drivers before Linux 6.11 count only the queues whose
/// features they use, and look for it at 2. Nobody else uses those numbers here.
const QUEUES_WITH_REPORTING: usize = 5;
/// VIRTIO_BALLOON_F_DEFLATE_ON_OOM and VIRTIO_BALLOON_F_REPORTING.
const DEFLATE_ON_OOM: u64 = 1 << 2;
const REPORTING: u64 = 1 << 5;
/// The most bytes of page numbers in a request; Linux sends 1024.
const MOST: u64 = 64 << 10;
/// Offset of `actual` in the configuration structure, which ends with it.
const ACTUAL: u64 = 4;

/// Gives guest memory back to the host.
pub trait GiveBack: Send + Sync {
    /// The host may have `length` bytes from `address` on, whole pages; they read as zero from now on. Whoever keeps decoded
    /// instructions of them is told.
    ///
    /// # Errors
    /// If that is not all guest memory, or the host refuses. Parts may have been given back then.
    fn give_back(&self, address: u64, length: u64) -> io::Result<()>;
}

impl<F: Fn(u64, u64) -> io::Result<()> + Send + Sync> GiveBack for F {
    fn give_back(&self, address: u64, length: u64) -> io::Result<()> {
        self(address, length)
    }
}

/// What a balloon is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BalloonOptions {
    /// What the guest shall give up, in bytes; whole pages count.
    pub size: u64,
    /// Whether it may take memory back when it runs out.
    pub deflate_on_oom: bool,
    /// Whether it tells which pages it does not use.
    pub free_page_reporting: bool,
}

/// A balloon.
pub struct Balloon {
    options: BalloonOptions,
    shared: Arc<Shared>,
}

struct Shared {
    host: Box<dyn GiveBack>,
    /// Pages: how many the guest shall give up, and how many it says it has.
    target: AtomicU32,
    actual: AtomicU32,
    change: Mutex<Option<ConfigChange>>,
    inflated: AtomicU64,
    deflated: AtomicU64,
    reported: AtomicU64,
    refused: AtomicU64,
}

/// What the device remembers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct BalloonState {
    target: u32,
    actual: u32,
}

impl Balloon {
    /// A balloon whose pages go to `host`.
    #[must_use]
    pub fn new(options: BalloonOptions, host: Box<dyn GiveBack>) -> Self {
        Self {
            options,
            shared: Arc::new(Shared {
                host,
                target: AtomicU32::new(pages(options.size)),
                actual: AtomicU32::new(0),
                change: Mutex::default(),
                inflated: AtomicU64::new(0),
                deflated: AtomicU64::new(0),
                reported: AtomicU64::new(0),
                refused: AtomicU64::new(0),
            }),
        }
    }

    /// What the guest shall give up, in bytes.
    #[must_use]
    pub fn target(&self) -> u64 {
        u64::from(self.shared.target.load(Ordering::SeqCst)) * PAGE
    }

    /// What the guest says it has given up, in bytes.
    #[must_use]
    pub fn actual(&self) -> u64 {
        u64::from(self.shared.actual.load(Ordering::SeqCst)) * PAGE
    }
}

/// The whole pages of `size` bytes; there are at most 2^32 - 1, which are 16 TiB.
fn pages(size: u64) -> u32 {
    u32::try_from(size / PAGE).unwrap_or(u32::MAX)
}

impl VirtioDevice for Balloon {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Balloon
    }

    fn features(&self) -> u64 {
        let feature = |wanted, feature| if wanted { feature } else { 0 };
        feature(self.options.deflate_on_oom, DEFLATE_ON_OOM) | feature(self.options.free_page_reporting, REPORTING)
    }

    fn queue_sizes(&self) -> Vec<u16> {
        let queues = if self.options.free_page_reporting {
            QUEUES_WITH_REPORTING
        } else {
            2
        };
        vec![QUEUE_SIZE; queues]
    }

    fn config(&self) -> Vec<u8> {
        let (target, actual) = (&self.shared.target, &self.shared.actual);
        [
            target.load(Ordering::SeqCst).to_le_bytes(),
            actual.load(Ordering::SeqCst).to_le_bytes(),
        ]
        .concat()
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        let mut config = self.config();
        for (at, byte) in (offset..).zip(data) {
            if let Some(place) = config.get_mut(at as usize).filter(|_| at >= ACTUAL) {
                *place = *byte;
            }
        }
        if let Some((_, actual)) = config.split_last_chunk() {
            self.shared.actual.store(u32::from_le_bytes(*actual), Ordering::SeqCst);
        }
    }

    fn connect(&self, change: ConfigChange) {
        *lock(&self.shared.change) = Some(change);
    }

    /// The guest shall give up `bytes` from now on, in whole pages. When it has done so, if it ever does, is seen by
    /// [`actual`](Self::actual).
    fn resize(&self, bytes: u64) -> Result<(), ResizeError> {
        let before = self.shared.target.swap(pages(bytes), Ordering::SeqCst);
        if before != pages(bytes)
            && let Some(change) = &*lock(&self.shared.change)
        {
            change.announce();
        }
        Ok(())
    }

    fn reset(&self) {
        // All pages are the guest's again.
        self.shared.actual.store(0, Ordering::SeqCst);
    }

    fn save(&self) -> Vec<u8> {
        let state = BalloonState {
            target: self.shared.target.load(Ordering::SeqCst),
            actual: self.shared.actual.load(Ordering::SeqCst),
        };
        postcard::to_stdvec(&state).expect("plain data is written to memory")
    }

    fn restore(&self, saved: &[u8]) -> Result<(), DeviceStateError> {
        let state: BalloonState = postcard::from_bytes(saved).map_err(DeviceStateError::new)?;
        self.shared.target.store(state.target, Ordering::SeqCst);
        self.shared.actual.store(state.actual, Ordering::SeqCst);
        Ok(())
    }

    fn handler(&self, index: u16) -> Box<dyn QueueHandler> {
        let shared = Arc::clone(&self.shared);
        match index {
            INFLATE => Box::new(Inflater(shared)),
            DEFLATE => Box::new(Deflater(shared)),
            _ => Box::new(Reporter(shared)),
        }
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        vec![
            ("target_bytes", self.target()),
            ("actual_bytes", self.actual()),
            ("inflated_pages", load(&self.shared.inflated)),
            ("deflated_pages", load(&self.shared.deflated)),
            ("reported_bytes", load(&self.shared.reported)),
            ("refused", load(&self.shared.refused)),
        ]
    }
}

impl Shared {
    /// Gives `length` bytes back; false if they are none that can be.
    fn give_back(&self, address: u64, length: u64) -> bool {
        let given = self.host.give_back(address, length);
        if let Err(error) = &given
            && self.refused.fetch_add(1, Ordering::Relaxed) == 0
        {
            tracing::warn!(address, length, %error, "memory cannot be given back to the host");
        }
        given.is_ok()
    }
}

/// The page numbers in a request.
fn numbers(chain: &Chain<'_>) -> Result<Vec<u32>, ChainError> {
    let length = chain.readable();
    if length == 0 || !length.is_multiple_of(4) {
        return Err(ChainError::Short);
    }
    if length > MOST {
        return Err(ChainError::Long);
    }
    let mut bytes = vec![0; length as usize];
    chain.read(0, &mut bytes)?;
    let (numbers, _) = bytes.as_chunks::<4>();
    Ok(numbers.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect())
}

/// `numbers` as runs of pages that follow each other: the first, and how many. A guest names neighbours in any order, and
/// the host takes them most cheaply together.
fn runs(mut numbers: Vec<u32>) -> Vec<(u64, u64)> {
    numbers.sort_unstable();
    numbers.dedup();
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for number in numbers.into_iter().map(u64::from) {
        match runs.last_mut() {
            Some((first, count)) if *first + *count == number => *count += 1,
            _ => runs.push((number, 1)),
        }
    }
    runs
}

/// Takes pages.
struct Inflater(Arc<Shared>);

impl QueueHandler for Inflater {
    fn handle(&mut self, chain: &Chain<'_>) -> Result<Handled, ChainError> {
        for (first, count) in runs(numbers(chain)?) {
            // Both are less than 2^32.
            if self.0.give_back(first * PAGE, count * PAGE) {
                self.0.inflated.fetch_add(count, Ordering::Relaxed);
            }
        }
        Ok(Handled::Used(0))
    }
}

/// Lets the guest have pages again. They are its own already: the host provides them as they are touched.
struct Deflater(Arc<Shared>);

impl QueueHandler for Deflater {
    fn handle(&mut self, chain: &Chain<'_>) -> Result<Handled, ChainError> {
        let count = numbers(chain)?.len() as u64;
        self.0.deflated.fetch_add(count, Ordering::Relaxed);
        Ok(Handled::Used(0))
    }
}

/// Takes pages that the guest does not use now and may use again at any time after this.
struct Reporter(Arc<Shared>);

impl QueueHandler for Reporter {
    fn handle(&mut self, chain: &Chain<'_>) -> Result<Handled, ChainError> {
        if chain.writable() == 0 {
            return Err(ChainError::Short);
        }
        for (address, length) in chain.writable_buffers() {
            // Whole pages only: what is beside them on a page is in use.
            let start = address.checked_next_multiple_of(PAGE);
            let end = address.checked_add(length).map(|end| end / PAGE * PAGE);
            let (Some(start), Some(end)) = (start, end) else {
                self.0.refused.fetch_add(1, Ordering::Relaxed);
                continue;
            };
            if start < end && self.0.give_back(start, end - start) {
                self.0.reported.fetch_add(end - start, Ordering::Relaxed);
            }
        }
        Ok(Handled::Used(0))
    }
}

#[cfg(test)]
mod tests;

//! A driver for tests: rings in guest memory, and a device's registers by their names.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{Dma, VirtioDevice, VirtioPci};
use crate::bus::Device;
use crate::pci::Function;
use crate::pci::testing::Inbox;

pub(super) const MEMORY: u64 = 1 << 20;
pub(super) const NEXT: u16 = 1;
pub(super) const WRITE: u16 = 2;
pub(super) const INDIRECT: u16 = 4;
/// VIRTIO_F_VERSION_1, _RING_RESET, and the features of rings.
pub(super) const VERSION_1: u64 = 1 << 32;
pub(super) const RING_RESET: u64 = 1 << 40;
pub(super) const EVENT_IDX: u64 = 1 << 29;

/// Where the rings of queue n are: 0x4000 bytes for each from here on.
const RINGS: u64 = 0x8_0000;
/// Buffers for requests, before the rings.
pub(super) const BUFFERS: u64 = 0x1_0000;

/// Waits for what is going to happen.
pub(super) fn eventually(what: &str, mut happens: impl FnMut() -> bool) {
    let start = Instant::now();
    while !happens() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what} does not happen");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What devices wrote, in order: address and length.
#[derive(Default)]
pub(super) struct Writes(pub(super) Mutex<Vec<(u64, u64)>>);

/// A device, guest memory, and a driver in between.
pub(super) struct Driver {
    pub(super) memory: GuestMemoryMmap,
    pub(super) device: Arc<VirtioPci>,
    pub(super) function: Function,
    pub(super) inbox: Arc<Inbox>,
    pub(super) writes: Arc<Writes>,
    queues: Vec<Ring>,
    size: u16,
}

/// A driver's view of a queue.
#[derive(Clone, Copy, Default)]
struct Ring {
    available: u16,
    free: u16,
}

impl Driver {
    /// `device` after reset, as a bus master.
    pub(super) fn new(device: Arc<dyn VirtioDevice>) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap();
        Self::with(device, memory)
    }

    pub(super) fn with(device: Arc<dyn VirtioDevice>, memory: GuestMemoryMmap) -> Self {
        let (inbox, writes) = (Arc::new(Inbox::default()), Arc::new(Writes::default()));
        let told = Arc::clone(&writes);
        let watcher = move |address, length| told.0.lock().unwrap().push((address, length));
        let dma = Dma::new(memory.clone(), Arc::new(watcher));
        let queues = vec![Ring::default(); device.queue_sizes().len()];
        let (device, function) = VirtioPci::new("device", device, dma, Arc::clone(&inbox) as _).unwrap();
        function.write_config(4, 2, 6);
        Self {
            memory,
            device,
            function,
            inbox,
            writes,
            queues,
            size: 16,
        }
    }

    pub(super) fn read(&self, offset: u64, size: u8) -> u64 {
        let ones = if size == 8 { u64::MAX } else { (1 << (8 * size)) - 1 };
        Device::read(&self.function, offset, size).wait() & ones
    }

    pub(super) fn write(&self, offset: u64, size: u8, value: u64) {
        let _ = Device::write(&self.function, offset, size, value).wait();
    }

    pub(super) fn status(&self) -> u64 {
        self.read(0x14, 1)
    }

    pub(super) fn offered(&self) -> u64 {
        let half = |select| {
            self.write(0x00, 4, select);
            self.read(0x04, 4)
        };
        half(0) | half(1) << 32
    }

    /// As far as FEATURES_OK, which is returned.
    pub(super) fn negotiate(&self, features: u64) -> bool {
        self.write(0x14, 1, 0);
        eventually("the reset", || self.status() == 0);
        self.write(0x14, 1, 1);
        self.write(0x14, 1, 3);
        for (select, half) in [(0, features & 0xffff_ffff), (1, features >> 32)] {
            self.write(0x08, 4, select);
            self.write(0x0c, 4, half);
        }
        self.write(0x14, 1, 0xb);
        self.status() & 8 != 0
    }

    /// Sets up all queues with 16 descriptors each, and vector n + 1 for queue n, and says DRIVER_OK.
    pub(super) fn run(&mut self, features: u64) {
        assert!(self.negotiate(features));
        self.enable_msix();
        for queue in 0..self.queues.len() {
            self.set_up(queue);
        }
        self.write(0x14, 1, 0xf);
        assert_eq!(self.status(), 0xf);
    }

    fn enable_msix(&self) {
        for vector in 0..=self.queues.len() as u64 {
            self.write(0x4000 + vector * 16, 8, 0xfee0_0000);
            self.write(0x4008 + vector * 16, 8, 0x40 + vector);
        }
        let at = self.msix_control();
        self.function.write_config(at, 2, 0x8000);
    }

    pub(super) fn msix_control(&self) -> u64 {
        let mut at = self.function.read_config(0x34, 1);
        while self.function.read_config(at, 1) != 0x11 {
            at = self.function.read_config(at + 1, 1);
        }
        at + 2
    }

    pub(super) fn set_up(&mut self, queue: usize) {
        let (desc, driver, device) = rings(queue);
        self.memory.write_slice(&[0; 0x4000], GuestAddress(desc)).unwrap();
        self.queues[queue] = Ring::default();
        self.write(0x16, 2, queue as u64);
        self.write(0x18, 2, self.size.into());
        self.write(0x1a, 2, queue as u64 + 1);
        self.write(0x20, 8, desc);
        self.write(0x28, 8, driver);
        self.write(0x30, 8, device);
        self.write(0x1c, 2, 1);
    }

    /// Puts a descriptor into a table.
    pub(super) fn describe(&self, table: u64, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        let at = GuestAddress(table + 16 * u64::from(index));
        let mut bytes = Vec::from(address.to_le_bytes());
        bytes.extend(length.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.memory.write_slice(&bytes, at).unwrap();
    }

    /// Makes a chain of `buffers` (address, length, whether the device writes it) available, without telling; its head.
    pub(super) fn offer(&mut self, queue: usize, buffers: &[(u64, u32, bool)]) -> u16 {
        let (desc, ..) = rings(queue);
        let head = self.queues[queue].free;
        for (index, (address, length, written)) in buffers.iter().enumerate() {
            let at = (head + index as u16) % self.size;
            let more = index + 1 < buffers.len();
            let flags = if *written { WRITE } else { 0 } | if more { NEXT } else { 0 };
            self.describe(desc, at, *address, *length, flags, (at + 1) % self.size);
        }
        self.queues[queue].free = (head + buffers.len() as u16) % self.size;
        self.make_available(queue, head);
        head
    }

    pub(super) fn make_available(&mut self, queue: usize, head: u16) {
        let (_, driver, _) = rings(queue);
        let ring = &mut self.queues[queue];
        let place = driver + 4 + 2 * u64::from(ring.available % self.size);
        ring.available = ring.available.wrapping_add(1);
        self.memory.write_obj(head, GuestAddress(place)).unwrap();
        self.memory.write_obj(ring.available, GuestAddress(driver + 2)).unwrap();
    }

    pub(super) fn set_available(&mut self, queue: usize, index: u16) {
        let (_, driver, _) = rings(queue);
        self.queues[queue].available = index;
        self.memory.write_obj(index, GuestAddress(driver + 2)).unwrap();
    }

    pub(super) fn notify(&self, queue: usize) {
        self.write(0x3000 + 4 * queue as u64, 2, queue as u64);
    }

    /// The number of buffers used so far.
    pub(super) fn used(&self, queue: usize) -> u16 {
        let (_, _, device) = rings(queue);
        self.memory.read_obj(GuestAddress(device + 2)).unwrap()
    }

    /// Element `index` of the used ring: head and length.
    pub(super) fn used_element(&self, queue: usize, index: u16) -> (u32, u32) {
        let (_, _, device) = rings(queue);
        let at = GuestAddress(device + 4 + 8 * u64::from(index % self.size));
        let [head, length]: [u32; 2] = self.memory.read_obj(at).unwrap();
        (head, length)
    }

    /// Offers a chain, tells the device, and waits until it is used: the length written.
    pub(super) fn request(&mut self, queue: usize, buffers: &[(u64, u32, bool)]) -> u32 {
        let before = self.used(queue);
        let head = self.offer(queue, buffers);
        self.notify(queue);
        eventually("the answer", || self.used(queue) != before);
        let (used, length) = self.used_element(queue, before);
        assert_eq!(used, u32::from(head));
        length
    }

    pub(super) fn put(&self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    pub(super) fn get(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    pub(super) fn counter(&self, name: &str) -> u64 {
        let figures = Device::counters(&self.function);
        figures.iter().find(|(counter, _)| *counter == name).unwrap().1
    }
}

/// Descriptor table, available ring and used ring of a queue.
pub(super) fn rings(queue: usize) -> (u64, u64, u64) {
    let base = RINGS + 0x4000 * queue as u64;
    (base, base + 0x1000, base + 0x2000)
}

//! A driver of a virtio device that knows its registers and rings, and does with them whatever it is told to.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use reprise_devices::Device;
use reprise_devices::pci::{Function, Message, Messages};
use reprise_devices::virtio::{Dma, VirtioDevice, VirtioPci};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Bytes of guest memory.
pub const MEMORY: u64 = 0x4_0000;
/// Entries of each queue.
pub const QUEUE: u64 = 16;

/// Descriptor table, available ring and used ring of a queue.
pub fn rings(queue: u64) -> [u64; 3] {
    let base = 0x1000 + 0x3000 * queue;
    [base, base + 0x1000, base + 0x2000]
}

pub fn eventually(what: &str, mut happens: impl FnMut() -> bool) {
    let start = Instant::now();
    while !happens() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what} does not happen");
        std::thread::sleep(Duration::from_micros(100));
    }
}

struct Nobody;

impl Messages for Nobody {
    fn send(&self, _message: Message) {}
}

/// A device, and guest memory.
pub struct Driver {
    pub memory: GuestMemoryMmap,
    pub device: Arc<VirtioPci>,
    pub function: Function,
    pub queues: u64,
    /// Where what the device said it wrote ends.
    furthest: Arc<AtomicU64>,
}

impl Driver {
    pub fn new(device: Arc<dyn VirtioDevice>) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap();
        let furthest = Arc::new(AtomicU64::new(0));
        let told = Arc::clone(&furthest);
        let watcher = move |address: u64, length| {
            told.fetch_max(address.saturating_add(length), Ordering::SeqCst);
        };
        let dma = Dma::new(memory.clone(), Arc::new(watcher));
        let queues = device.queue_sizes().len() as u64;
        let (device, function) = VirtioPci::new("fuzzed", device, dma, Arc::new(Nobody)).unwrap();
        function.write_config(4, 2, 6);
        Self {
            memory,
            device,
            function,
            queues,
            furthest,
        }
    }

    pub fn write(&self, offset: u64, size: u8, value: u64) {
        let _ = Device::write(&self.function, offset, size, value).wait();
    }

    fn read(&self, offset: u64, size: u8) -> u64 {
        Device::read(&self.function, offset, size).wait()
    }

    /// Sets all queues up, for a driver that makes `accepts` of the low half of what is offered.
    pub fn set_up(&self, accepts: impl FnOnce(u64) -> u64) {
        self.write(0x14, 1, 0);
        eventually("the reset", || self.read(0x14, 1) == 0);
        self.write(0x14, 1, 3);
        self.write(0x00, 4, 0);
        let features = accepts(self.read(0x04, 4));
        for (half, features) in [(0, features), (1, 1)] {
            self.write(0x08, 4, half);
            self.write(0x0c, 4, features);
        }
        self.write(0x14, 1, 0xb);
        assert_eq!(self.read(0x14, 1), 0xb);
        for queue in 0..self.queues {
            let rings = rings(queue);
            self.memory.write_slice(&[0; 0x3000], GuestAddress(rings[0])).unwrap();
            self.write(0x16, 2, queue);
            self.write(0x18, 2, QUEUE);
            for (register, ring) in [0x20, 0x28, 0x30].into_iter().zip(rings) {
                self.write(register, 8, ring);
            }
            self.write(0x1c, 2, 1);
        }
        self.write(0x14, 1, 0xf);
    }

    pub fn describe(&self, queue: u64, index: u64, address: u64, length: u32, flags: u16, next: u16) {
        let bytes = [
            &address.to_le_bytes()[..],
            &length.to_le_bytes(),
            &flags.to_le_bytes(),
            &next.to_le_bytes(),
        ]
        .concat();
        let at = rings(queue)[0] + 16 * (index % QUEUE);
        self.memory.write_slice(&bytes, GuestAddress(at)).unwrap();
    }

    pub fn make_available(&self, queue: u64, index: u16) {
        let ring = rings(queue)[1];
        for place in 0..QUEUE {
            self.memory
                .write_obj(place as u16, GuestAddress(ring + 4 + 2 * place))
                .unwrap();
        }
        self.memory.write_obj(index, GuestAddress(ring + 2)).unwrap();
    }

    pub fn notify(&self, queue: u64) {
        self.write(0x3000 + 4 * queue, 2, queue);
    }

    pub fn used(&self, queue: u64) -> u16 {
        self.memory.read_obj(GuestAddress(rings(queue)[2] + 2)).unwrap()
    }

    pub fn counter(&self, name: &str) -> u64 {
        let figures = Device::counters(&self.function);
        figures.iter().find(|(counter, _)| *counter == name).unwrap().1
    }

    /// Where what the device said it wrote since it was asked last ends; 0 if it said nothing.
    pub fn take_furthest(&self) -> u64 {
        self.furthest.swap(0, Ordering::SeqCst)
    }

    /// Pauses the device amid whatever it does, has it remember that, and lets it go on.
    pub fn settle(&self) {
        std::thread::sleep(Duration::from_micros(200));
        if self.device.set_paused(true, Duration::from_secs(60)) {
            let state = self.device.state().unwrap();
            // Rings that a hostile driver has moved need not be those that were saved.
            let _ = self.device.restore(&state);
        }
        self.device.set_paused(false, Duration::ZERO);
    }
}

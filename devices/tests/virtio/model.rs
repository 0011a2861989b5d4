//! Drivers made of bytes, and what a sane one finds after them.

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use reprise_devices::Device;
use reprise_devices::pci::{Function, Message, Messages};
use reprise_devices::virtio::{Block, BlockOptions, Dma, Rng, VirtioDevice, VirtioPci};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const MEMORY: u64 = 0x4_0000;
const DESC: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
const BUFFERS: u64 = 0x1_0000;
const QUEUE: u64 = 16;
const SECTORS: u64 = 16;

struct Nobody;

impl Messages for Nobody {
    fn send(&self, _message: Message) {}
}

struct World {
    memory: GuestMemoryMmap,
    device: Arc<VirtioPci>,
    function: Function,
    /// Bytes that the device said it wrote.
    told: Arc<Mutex<u64>>,
}

impl World {
    fn new(device: Arc<dyn VirtioDevice>) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap();
        let told = Arc::new(Mutex::new(0));
        let count = Arc::clone(&told);
        let watcher = move |_address, length| *count.lock().unwrap() += length;
        let dma = Dma::new(memory.clone(), Arc::new(watcher));
        let (device, function) = VirtioPci::new("fuzzed", device, dma, Arc::new(Nobody)).unwrap();
        function.write_config(4, 2, 6);
        Self {
            memory,
            device,
            function,
            told,
        }
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        let _ = Device::write(&self.function, offset, size, value).wait();
    }

    fn read(&self, offset: u64, size: u8) -> u64 {
        Device::read(&self.function, offset, size).wait()
    }

    fn eventually(what: &str, mut happens: impl FnMut() -> bool) {
        let start = Instant::now();
        while !happens() {
            assert!(start.elapsed() < Duration::from_secs(60), "{what} does not happen");
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// Sets the first queue up, for a driver with event index and indirect descriptors if it `wants` them.
    fn set_up(&self, wants: bool) {
        self.write(0x14, 1, 0);
        Self::eventually("the reset", || self.read(0x14, 1) == 0);
        self.write(0x14, 1, 3);
        self.write(0x08, 4, 0);
        self.write(0x0c, 4, if wants { 3 << 28 } else { 0 });
        self.write(0x08, 4, 1);
        self.write(0x0c, 4, 1);
        self.write(0x14, 1, 0xb);
        assert_eq!(self.read(0x14, 1), 0xb);
        self.write(0x16, 2, 0);
        self.write(0x18, 2, QUEUE);
        self.write(0x20, 8, DESC);
        self.write(0x28, 8, AVAIL);
        self.write(0x30, 8, USED);
        self.memory.write_slice(&[0; 0x3000], GuestAddress(DESC)).unwrap();
        self.write(0x1c, 2, 1);
        self.write(0x14, 1, 0xf);
    }

    fn describe(&self, index: u64, address: u64, length: u32, flags: u16, next: u16) {
        let bytes = [
            &address.to_le_bytes()[..],
            &length.to_le_bytes(),
            &flags.to_le_bytes(),
            &next.to_le_bytes(),
        ]
        .concat();
        self.memory
            .write_slice(&bytes, GuestAddress(DESC + 16 * (index % QUEUE)))
            .unwrap();
    }

    fn make_available(&self, index: u16) {
        for place in 0..QUEUE {
            self.memory
                .write_obj(place as u16, GuestAddress(AVAIL + 4 + 2 * place))
                .unwrap();
        }
        self.memory.write_obj(index, GuestAddress(AVAIL + 2)).unwrap();
    }

    fn notify(&self) {
        self.write(0x3000, 2, 0);
    }

    fn counter(&self, name: &str) -> u64 {
        let figures = Device::counters(&self.function);
        figures.iter().find(|(counter, _)| *counter == name).unwrap().1
    }

    /// Pauses the device amid whatever it does, and lets it go on.
    fn settle(&self) {
        std::thread::sleep(Duration::from_micros(200));
        self.device.set_paused(true, Duration::from_secs(60));
        self.device.set_paused(false, Duration::ZERO);
    }
}

/// The first byte says which device; then operations of six bytes. The number of requests that were served.
pub fn operate(bytes: &[u8]) -> u64 {
    let Some((which, operations)) = bytes.split_first() else {
        return 0;
    };
    let mut image = tempfile::NamedTempFile::new().unwrap();
    image.write_all(&[0x11; 512 * SECTORS as usize]).unwrap();
    let disk = which & 1 == 0;
    let device: Arc<dyn VirtioDevice> = if disk {
        Arc::new(Block::open(image.path(), &BlockOptions::default()).unwrap())
    } else {
        Arc::new(Rng::open(Path::new("/dev/zero")).unwrap())
    };
    let world = World::new(device);
    world.set_up(which & 2 != 0);
    for operation in operations.chunks_exact(6) {
        let [what, a, b, c, d, e] = *operation else {
            unreachable!("chunks of six")
        };
        match what % 6 {
            // A descriptor; its address is anywhere near memory.
            0 => {
                let address = u64::from(b) << 12 | u64::from(a) << 4;
                world.describe(
                    a.into(),
                    address,
                    u32::from(c) << (e >> 4),
                    u16::from(d) & 7,
                    u16::from(e) & 0x1f,
                );
            }
            1 => world.make_available(u16::from(a) | u16::from(b) << 8),
            2 => world.notify(),
            // A register, sometimes one of the rings'.
            3 => world.write(u64::from(a & 0x3f), 1 << (b % 4), u64::from(c) << (8 * (d % 8))),
            // A header, or whatever else a buffer holds.
            4 => {
                let at = GuestAddress(BUFFERS + u64::from(a) * 16);
                let header = [u32::from(b & 0x1f), 0, u32::from(c), u32::from(d)];
                world.memory.write_obj(header, at).unwrap();
            }
            _ => world.settle(),
        }
    }
    let requests = world.counter("requests");

    // After that, a sane driver.
    world.function.write_config(4, 2, 6);
    world.set_up(false);
    let before = *world.told.lock().unwrap();
    let (length, status) = (512, BUFFERS + 0x2000);
    world.memory.write_slice(&[0; 16], GuestAddress(BUFFERS)).unwrap();
    if disk {
        world.describe(0, BUFFERS, 16, 1, 1);
        world.describe(1, BUFFERS + 0x1000, length, 3, 2);
        world.describe(2, status, 1, 2, 0);
    } else {
        world.describe(0, BUFFERS + 0x1000, length, 2, 0);
    }
    world.memory.write_obj(0xffff_u32, GuestAddress(status)).unwrap();
    world.make_available(1);
    world.notify();
    World::eventually("a sane request", || {
        let used: u16 = world.memory.read_obj(GuestAddress(USED + 2)).unwrap();
        used == 1
    });
    World::eventually("that it is told", || *world.told.lock().unwrap() > before);
    if disk {
        let status: u8 = world.memory.read_obj(GuestAddress(status)).unwrap();
        assert_eq!(status, 0);
    }
    let size = image.as_file().metadata().unwrap().len();
    assert_eq!(size, 512 * SECTORS, "the image keeps its size");
    requests
}

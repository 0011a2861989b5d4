//! Drivers and networks made of bytes, and what a sane driver finds after them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use reprise_devices::Device;
use reprise_devices::pci::{Function, Message, Messages};
use reprise_devices::virtio::net::Link;
use reprise_devices::virtio::{Dma, MacAddress, Net, NetOptions, VirtioPci};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const MEMORY: u64 = 0x4_0000;
const BUFFERS: u64 = 0x1_0000;
const QUEUE: u64 = 16;
const QUEUES: u64 = 3;
const RECEIVE: u64 = 0;
const TRANSMIT: u64 = 1;
const MRG_RXBUF: u64 = 1 << 15;
/// Checksums, segments, the control queue and all it takes: what a driver may accept of the low half.
const EVERYTHING: u64 = 0x0097_7fa7;

/// Descriptor table, available ring and used ring of a queue.
fn rings(queue: u64) -> [u64; 3] {
    let base = 0x1000 + 0x3000 * queue;
    [base, base + 0x1000, base + 0x2000]
}

struct Nobody;

impl Messages for Nobody {
    fn send(&self, _message: Message) {}
}

/// One end of a socket, whose messages are frames.
struct Wire(UnixDatagram);

impl Link for Wire {
    fn pairs(&self) -> u16 {
        1
    }
    fn pair(&self, _index: u16) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
    fn set_offloads(&self, _offloads: u32) -> io::Result<()> {
        Ok(())
    }
    fn set_pairs(&self, _pairs: u16) -> io::Result<()> {
        Ok(())
    }
}

struct World {
    memory: GuestMemoryMmap,
    device: Arc<VirtioPci>,
    function: Function,
    network: UnixDatagram,
    /// What the device said it wrote: address and length.
    told: Arc<Mutex<Vec<(u64, u64)>>>,
}

impl World {
    fn new() -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap();
        let told = Arc::new(Mutex::new(Vec::new()));
        let list = Arc::clone(&told);
        let watcher = move |address, length| list.lock().unwrap().push((address, length));
        let dma = Dma::new(memory.clone(), Arc::new(watcher));
        let (ours, network) = UnixDatagram::pair().unwrap();
        for end in [&ours, &network] {
            end.set_nonblocking(true).unwrap();
        }
        let net = Net::new(
            Arc::new(Wire(ours)),
            NetOptions::new(MacAddress::new([2, 0, 0, 0, 0, 1])),
        )
        .unwrap();
        let (device, function) = VirtioPci::new("fuzzed", Arc::new(net), dma, Arc::new(Nobody)).unwrap();
        function.write_config(4, 2, 6);
        Self {
            memory,
            device,
            function,
            network,
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

    /// Sets all queues up, for a driver that accepts `features` of the low half.
    fn set_up(&self, features: u64) {
        self.write(0x14, 1, 0);
        Self::eventually("the reset", || self.read(0x14, 1) == 0);
        self.write(0x14, 1, 3);
        for (half, features) in [(0, features), (1, 1)] {
            self.write(0x08, 4, half);
            self.write(0x0c, 4, features);
        }
        self.write(0x14, 1, 0xb);
        assert_eq!(self.read(0x14, 1), 0xb);
        for queue in 0..QUEUES {
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

    fn describe(&self, queue: u64, index: u64, address: u64, length: u32, flags: u16, next: u16) {
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

    fn make_available(&self, queue: u64, index: u16) {
        let ring = rings(queue)[1];
        for place in 0..QUEUE {
            self.memory
                .write_obj(place as u16, GuestAddress(ring + 4 + 2 * place))
                .unwrap();
        }
        self.memory.write_obj(index, GuestAddress(ring + 2)).unwrap();
    }

    fn notify(&self, queue: u64) {
        self.write(0x3000 + 4 * queue, 2, queue);
    }

    fn used(&self, queue: u64) -> u16 {
        self.memory.read_obj(GuestAddress(rings(queue)[2] + 2)).unwrap()
    }

    fn counter(&self, name: &str) -> u64 {
        let figures = Device::counters(&self.function);
        figures.iter().find(|(counter, _)| *counter == name).unwrap().1
    }

    /// Takes all frames off the wire, of which none may be longer than a segment that others cut.
    fn drain(&self) {
        let mut frame = vec![0; 1 << 17];
        while let Ok(length) = self.network.recv(&mut frame) {
            assert!((12 + 14..=12 + 65_535 + 22).contains(&length), "{length}");
            assert_eq!(frame[10..12], [0, 0], "num_buffers");
        }
    }

    /// Pauses the device amid whatever it does, has it remember that, and lets it go on.
    fn settle(&self) {
        std::thread::sleep(Duration::from_micros(200));
        if self.device.set_paused(true, Duration::from_secs(60)) {
            let state = self.device.state().unwrap();
            // Rings that a hostile driver has moved need not be those that were saved.
            let _ = self.device.restore(&state);
        }
        self.device.set_paused(false, Duration::ZERO);
    }
}

/// The first byte says what the driver accepts; then operations of six bytes, whose first has the queue in its upper bits. The
/// number of requests that were served.
pub fn operate(bytes: &[u8]) -> u64 {
    let Some((which, operations)) = bytes.split_first() else {
        return 0;
    };
    let world = World::new();
    let rings_too = if which & 2 != 0 { 3 << 28 } else { 0 };
    world.set_up(EVERYTHING | rings_too | if which & 1 != 0 { MRG_RXBUF } else { 0 });
    for operation in operations.chunks_exact(6) {
        let [what, a, b, c, d, e] = *operation else {
            unreachable!("chunks of six")
        };
        let queue = u64::from(what >> 6) % QUEUES;
        match what % 8 {
            // A descriptor; its address is anywhere near memory, and its length up to 4 GiB.
            0 => {
                let address = u64::from(b) << 12 | u64::from(a) << 4;
                let length = (u32::from(c) << 4) << (e & 0x17);
                world.describe(queue, a.into(), address, length, u16::from(d) & 7, u16::from(d >> 4));
            }
            1 => world.make_available(queue, u16::from(a) | u16::from(b) << 8),
            2 => world.notify(queue),
            3 => world.write(u64::from(a & 0x3f), 1 << (b % 4), u64::from(c) << (8 * (d % 8))),
            // A header, a command, or whatever else a buffer holds.
            4 => {
                let at = GuestAddress(BUFFERS + u64::from(a) * 16);
                world.memory.write_obj([b, c, d, e, 0, b, 0, c], at).unwrap();
            }
            // A frame from the network, of any length.
            5 => {
                let length = (usize::from(a) << (b & 7)).min(65_569);
                let _ = world.network.send(&vec![c; length]);
            }
            6 => world.settle(),
            _ => world.drain(),
        }
    }
    let requests = world.counter("requests");

    // After that, a sane driver and a sane network.
    world.function.write_config(4, 2, 6);
    world.set_up(MRG_RXBUF);
    world.drain();
    let frame: Vec<u8> = (0..12 + 60).map(|i| if i < 12 { 0 } else { i }).collect();
    world.memory.write_slice(&frame, GuestAddress(BUFFERS)).unwrap();
    world.describe(TRANSMIT, 0, BUFFERS, frame.len() as u32, 0, 0);
    world.make_available(TRANSMIT, 1);
    world.notify(TRANSMIT);
    World::eventually("a sane frame", || world.used(TRANSMIT) == 1);
    let mut sent = [0; 100];
    assert_eq!(world.network.recv(&mut sent).unwrap(), frame.len());
    assert_eq!(sent[..frame.len()], frame[..]);

    // What the hostile network has sent may still come first.
    for index in 0..QUEUE {
        world.describe(RECEIVE, index, BUFFERS + 0x1000 * index, 0x1000, 2, 0);
    }
    world.told.lock().unwrap().clear();
    let mut seen = 0;
    world.make_available(RECEIVE, QUEUE as u16);
    world.notify(RECEIVE);
    World::eventually("that a frame arrives", || {
        let _ = world.network.send(&frame);
        let used = world.used(RECEIVE);
        while seen != used {
            let element = rings(RECEIVE)[2] + 4 + 8 * (u64::from(seen) % QUEUE);
            let [head, length]: [u32; 2] = world.memory.read_obj(GuestAddress(element)).unwrap();
            let mut bytes = vec![0; frame.len()];
            let at = GuestAddress(BUFFERS + 0x1000 * u64::from(head));
            world.memory.read_slice(&mut bytes, at).unwrap();
            if length as usize == frame.len() && bytes[12..] == frame[12..] {
                return true;
            }
            seen += 1;
        }
        // Those that were used are offered again.
        world.make_available(RECEIVE, seen + QUEUE as u16);
        world.notify(RECEIVE);
        false
    });
    let told = world.told.lock().unwrap();
    assert!(
        told.iter().all(|(address, length)| address + length <= MEMORY),
        "outside memory"
    );
    requests
}

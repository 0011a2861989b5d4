//! Drivers and networks made of bytes, and what a sane driver finds after them.

#[path = "../driver/mod.rs"]
mod driver;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use driver::{Driver, MEMORY, QUEUE, eventually, rings};
use reprise_devices::virtio::net::Link;
use reprise_devices::virtio::{MacAddress, Net, NetOptions};
use vm_memory::{Bytes, GuestAddress};

const BUFFERS: u64 = 0x1_0000;
const RECEIVE: u64 = 0;
const TRANSMIT: u64 = 1;
const MRG_RXBUF: u64 = 1 << 15;
/// Checksums, segments, the control queue and all it takes: what a driver may accept of the low half.
const EVERYTHING: u64 = 0x0097_7fa7;

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
    driver: Driver,
    network: UnixDatagram,
}

impl World {
    fn new() -> Self {
        let (ours, network) = UnixDatagram::pair().unwrap();
        for end in [&ours, &network] {
            end.set_nonblocking(true).unwrap();
        }
        let options = NetOptions::new(MacAddress::new([2, 0, 0, 0, 0, 1]));
        let net = Net::new(Arc::new(Wire(ours)), options).unwrap();
        let driver = Driver::new(Arc::new(net));
        Self { driver, network }
    }

    /// Takes all frames off the wire, of which none may be longer than a segment that others cut.
    fn drain(&self) {
        let mut frame = vec![0; 1 << 17];
        while let Ok(length) = self.network.recv(&mut frame) {
            assert!((12 + 14..=12 + 65_535 + 22).contains(&length), "{length}");
            assert_eq!(frame[10..12], [0, 0], "num_buffers");
        }
    }
}

/// The first byte says what the driver accepts; then operations of six bytes, whose first has the queue in its upper bits. The
/// number of requests that were served.
pub fn operate(bytes: &[u8]) -> u64 {
    let Some((which, operations)) = bytes.split_first() else {
        return 0;
    };
    let world = World::new();
    let driver = &world.driver;
    let rings_too = if which & 2 != 0 { 3 << 28 } else { 0 };
    driver.set_up(|_| EVERYTHING | rings_too | if which & 1 != 0 { MRG_RXBUF } else { 0 });
    for operation in operations.chunks_exact(6) {
        let [what, a, b, c, d, e] = *operation else {
            unreachable!("chunks of six")
        };
        let queue = u64::from(what >> 6) % driver.queues;
        match what % 8 {
            // A descriptor; its address is anywhere near memory, and its length up to 4 GiB.
            0 => {
                let address = u64::from(b) << 12 | u64::from(a) << 4;
                let length = (u32::from(c) << 4) << (e & 0x17);
                driver.describe(queue, a.into(), address, length, u16::from(d) & 7, u16::from(d >> 4));
            }
            1 => driver.make_available(queue, u16::from(a) | u16::from(b) << 8),
            2 => driver.notify(queue),
            3 => driver.write(u64::from(a & 0x3f), 1 << (b % 4), u64::from(c) << (8 * (d % 8))),
            // A header, a command, or whatever else a buffer holds.
            4 => {
                let at = GuestAddress(BUFFERS + u64::from(a) * 16);
                driver.memory.write_obj([b, c, d, e, 0, b, 0, c], at).unwrap();
            }
            // A frame from the network, of any length.
            5 => {
                let length = (usize::from(a) << (b & 7)).min(65_569);
                let _ = world.network.send(&vec![c; length]);
            }
            6 => driver.settle(),
            _ => world.drain(),
        }
    }
    let requests = driver.counter("requests");

    // After that, a sane driver and a sane network.
    driver.function.write_config(4, 2, 6);
    driver.set_up(|_| MRG_RXBUF);
    world.drain();
    let frame: Vec<u8> = (0..12 + 60).map(|i| if i < 12 { 0 } else { i }).collect();
    driver.memory.write_slice(&frame, GuestAddress(BUFFERS)).unwrap();
    driver.describe(TRANSMIT, 0, BUFFERS, frame.len() as u32, 0, 0);
    driver.make_available(TRANSMIT, 1);
    driver.notify(TRANSMIT);
    eventually("a sane frame", || driver.used(TRANSMIT) == 1);
    let mut sent = [0; 100];
    assert_eq!(world.network.recv(&mut sent).unwrap(), frame.len());
    assert_eq!(sent[..frame.len()], frame[..]);

    // What the hostile network has sent may still come first.
    for index in 0..QUEUE {
        driver.describe(RECEIVE, index, BUFFERS + 0x1000 * index, 0x1000, 2, 0);
    }
    driver.take_furthest();
    let mut seen = 0;
    driver.make_available(RECEIVE, QUEUE as u16);
    driver.notify(RECEIVE);
    eventually("that a frame arrives", || {
        let _ = world.network.send(&frame);
        let used = driver.used(RECEIVE);
        while seen != used {
            let element = rings(RECEIVE)[2] + 4 + 8 * (u64::from(seen) % QUEUE);
            let [head, length]: [u32; 2] = driver.memory.read_obj(GuestAddress(element)).unwrap();
            let mut bytes = vec![0; frame.len()];
            let at = GuestAddress(BUFFERS + 0x1000 * u64::from(head));
            driver.memory.read_slice(&mut bytes, at).unwrap();
            if length as usize == frame.len() && bytes[12..] == frame[12..] {
                return true;
            }
            seen += 1;
        }
        // Those that were used are offered again.
        driver.make_available(RECEIVE, seen + QUEUE as u16);
        driver.notify(RECEIVE);
        false
    });
    assert!(driver.take_furthest() <= MEMORY, "outside memory");
    requests
}

//! Drivers made of bytes, and what a sane one finds after them.

#[path = "../driver/mod.rs"]
mod driver;

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use driver::{Driver, MEMORY, eventually};
use reprise_devices::virtio::{Block, BlockOptions, Rng, VirtioDevice};
use vm_memory::{Bytes, GuestAddress};

const BUFFERS: u64 = 0x1_0000;
const SECTORS: u64 = 16;

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
    let world = Driver::new(device);
    world.set_up(|_| if which & 2 != 0 { 3 << 28 } else { 0 });
    for operation in operations.chunks_exact(6) {
        let [what, a, b, c, d, e] = *operation else {
            unreachable!("chunks of six")
        };
        match what % 6 {
            // A descriptor; its address is anywhere near memory.
            0 => {
                let address = u64::from(b) << 12 | u64::from(a) << 4;
                world.describe(
                    0,
                    a.into(),
                    address,
                    u32::from(c) << (e >> 4),
                    u16::from(d) & 7,
                    u16::from(e) & 0x1f,
                );
            }
            1 => world.make_available(0, u16::from(a) | u16::from(b) << 8),
            2 => world.notify(0),
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
    world.set_up(|_| 0);
    assert!(world.take_furthest() <= MEMORY, "outside memory");
    let (length, status) = (512, BUFFERS + 0x2000);
    world.memory.write_slice(&[0; 16], GuestAddress(BUFFERS)).unwrap();
    if disk {
        world.describe(0, 0, BUFFERS, 16, 1, 1);
        world.describe(0, 1, BUFFERS + 0x1000, length, 3, 2);
        world.describe(0, 2, status, 1, 2, 0);
    } else {
        world.describe(0, 0, BUFFERS + 0x1000, length, 2, 0);
    }
    world.memory.write_obj(0xffff_u32, GuestAddress(status)).unwrap();
    world.make_available(0, 1);
    world.notify(0);
    eventually("a sane request", || world.used(0) == 1);
    eventually("that it is told", || world.take_furthest() > BUFFERS);
    if disk {
        let status: u8 = world.memory.read_obj(GuestAddress(status)).unwrap();
        assert_eq!(status, 0);
    }
    let size = image.as_file().metadata().unwrap().len();
    assert_eq!(size, 512 * SECTORS, "the image keeps its size");
    requests
}

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use tempfile::NamedTempFile;

use super::super::rate_limiter::{Bucket, RateLimits};
use super::super::testing::{BUFFERS, Driver, VERSION_1};
use super::*;
use crate::clock::HostClock;

const FLUSH: u64 = 1 << 9;
const STATUS: u64 = BUFFERS + 0x4_0000;

/// An image of `sectors` sectors, sector n full of bytes n + 1.
fn image(sectors: u64) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    for sector in 0..sectors {
        file.write_all(&[sector as u8 + 1; SECTOR as usize]).unwrap();
    }
    file
}

fn options() -> BlockOptions {
    BlockOptions::default()
}

fn driver(image: &NamedTempFile, options: &BlockOptions) -> Driver {
    driver_of(Block::open(image.path(), options).unwrap())
}

pub(super) fn driver_of(block: Block) -> Driver {
    let mut driver = Driver::new(Arc::new(block));
    driver.run(VERSION_1 | FLUSH);
    driver
}

/// A request with `out` behind its header and room for `room` bytes: its status, and the length used.
pub(super) fn request(driver: &mut Driver, kind: u32, sector: u64, out: &[u8], room: u32) -> (u8, u32) {
    driver.put(
        BUFFERS,
        &[&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes(), out].concat(),
    );
    driver.put(STATUS, &[0xee]);
    let mut buffers = vec![(BUFFERS, 16 + out.len() as u32, false)];
    if room > 0 {
        buffers.push((BUFFERS + 0x2_0000, room, true));
    }
    buffers.push((STATUS, 1, true));
    let used = driver.request(0, &buffers);
    (driver.get(STATUS, 1)[0], used)
}

pub(super) fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

#[test]
fn sectors_are_read_and_written() {
    let image = image(8);
    let mut driver = driver(&image, &options());
    assert_eq!(request(&mut driver, 0, 2, &[], 1024), (0, 1025));
    let read = driver.get(BUFFERS + 0x2_0000, 1024);
    assert_eq!(read, [[3; 512], [4; 512]].concat());
    assert_eq!(request(&mut driver, 1, 7, &[0x99; 512], 0).0, 0);
    let bytes = std::fs::read(image.path()).unwrap();
    assert_eq!((bytes[7 * 512 - 1], &bytes[7 * 512..]), (7, &[0x99; 512][..]));
    assert_eq!(request(&mut driver, 4, 0, &[], 0).0, 0, "flush");
    assert_eq!(driver.counter("read_bytes"), 1024);
    assert_eq!(driver.counter("written_bytes"), 512);
}

#[test]
fn a_request_is_what_its_bytes_say_however_they_are_cut() {
    let image = image(8);
    let mut driver = driver(&image, &options());
    driver.put(
        BUFFERS,
        &[&1_u32.to_le_bytes()[..], &[0; 4], &3_u64.to_le_bytes(), &[0x42; 512]].concat(),
    );
    let buffers = [
        (BUFFERS, 5, false),
        (BUFFERS + 5, 300, false),
        (BUFFERS + 305, 223, false),
        (STATUS, 1, true),
    ];
    driver.request(0, &buffers);
    assert_eq!(driver.get(STATUS, 1), [0]);
    assert_eq!(std::fs::read(image.path()).unwrap()[3 * 512..4 * 512], [0x42; 512]);
    // The status behind the data, in one buffer with its end.
    driver.put(BUFFERS, &[0; 16]);
    let buffers = [
        (BUFFERS, 16, false),
        (BUFFERS + 0x1000, 100, true),
        (BUFFERS + 0x2000, 413, true),
    ];
    assert_eq!(driver.request(0, &buffers), 513);
    assert_eq!(driver.get(BUFFERS + 0x2000, 413), [[1; 412].as_slice(), &[0]].concat());
}

#[test]
fn what_reaches_beyond_the_disk_is_an_error() {
    let image = image(8);
    let mut driver = driver(&image, &options());
    for (kind, sector, out, room) in [
        (0, 8, 0, 512),
        (0, 7, 0, 1024),
        (0, u64::MAX, 0, 512),
        (0, 0, 0, 511),
        (1, 8, 512, 0),
        (1, u64::MAX / 512, 512, 0),
        (1, 0, 100, 0),
    ] {
        let (status, _) = request(&mut driver, kind, sector, &vec![0x77; out], room);
        assert_eq!(status, 1, "{kind} {sector} {out} {room}");
    }
    assert_eq!(request(&mut driver, 77, 0, &[], 0).0, 2, "there is no such request");
    assert_eq!(std::fs::metadata(image.path()).unwrap().len(), 8 * 512);
}

#[test]
fn an_image_that_was_truncated_since_is_an_error_and_not_zeros() {
    let image = image(8);
    let mut driver = driver(&image, &options());
    image.as_file().set_len(512).unwrap();
    assert_eq!(request(&mut driver, 0, 4, &[], 512).0, 1);
    assert_eq!(driver.counter("errors"), 1);
    assert_eq!(request(&mut driver, 0, 0, &[], 512).0, 0);
}

#[test]
fn zeroes_and_discards_are_checked_whole_and_then_done() {
    let image = image(16);
    let mut driver = driver(&image, &options());
    let both = [range(1, 2, 0), range(5, 1, 1)].concat();
    assert_eq!(request(&mut driver, 13, 0, &both, 0).0, 0);
    let bytes = std::fs::read(image.path()).unwrap();
    for sector in 0..16_usize {
        let expected = if matches!(sector, 1 | 2 | 5) {
            0
        } else {
            sector as u8 + 1
        };
        assert_eq!(bytes[sector * 512..][..512], [expected; 512], "sector {sector}");
    }
    for (kind, out, status) in [
        (13, [range(8, 1, 0), range(16, 1, 0)].concat(), 1),
        (13, range(8, 1, 2), 2),
        (13, range(8, 1, 0)[..15].to_vec(), 1),
        (13, vec![], 1),
        (13, range(0, u32::MAX, 0), 1),
        (11, range(8, 1, 1), 2),
        (11, range(u64::MAX, 1, 0), 1),
        (11, range(0, 0, 0).repeat(33), 1),
    ] {
        assert_eq!(request(&mut driver, kind, 0, &out, 0).0, status, "{kind} {out:x?}");
    }
    assert_eq!(
        std::fs::read(image.path()).unwrap(),
        bytes,
        "refused before anything happened"
    );
    let blocks = image.as_file().metadata().unwrap().blocks();
    assert_eq!(request(&mut driver, 11, 0, &range(8, 8, 0), 0).0, 0);
    assert!(image.as_file().metadata().unwrap().blocks() <= blocks);
}

#[test]
fn a_disk_to_be_read_only_is_never_written() {
    let image = image(8);
    let before = std::fs::read(image.path()).unwrap();
    let options = BlockOptions {
        readonly: true,
        ..options()
    };
    let mut driver = driver(&image, &options);
    assert_eq!(driver.offered() & (1 << 5 | 1 << 13 | 1 << 14), 1 << 5);
    for (kind, out) in [(1, vec![0; 512]), (11, range(0, 1, 0)), (13, range(0, 1, 0))] {
        assert_eq!(request(&mut driver, kind, 0, &out, 0).0, 1, "{kind}");
    }
    assert_eq!(request(&mut driver, 0, 0, &[], 512).0, 0);
    assert_eq!(std::fs::read(image.path()).unwrap(), before);
}

#[test]
fn the_configuration_tells_the_disk() {
    let image = image(8);
    let options = BlockOptions {
        queues: 3,
        queue_size: 64,
        serial: "reprise-1".to_owned(),
        ..options()
    };
    let mut driver = driver(&image, &options);
    assert_eq!(driver.read(0x2000, 8), 8, "capacity");
    assert_eq!(driver.read(0x200c, 4), 62, "seg_max");
    assert_eq!(driver.read(0x2014, 4), 512, "blk_size");
    assert_eq!(driver.read(0x2022, 2), 3, "num_queues");
    assert_eq!(driver.read(0x12, 2), 3);
    assert_ne!(driver.offered() & 1 << 12, 0, "VIRTIO_BLK_F_MQ");
    assert_eq!(request(&mut driver, 8, 0, &[], 20), (0, 21));
    assert_eq!(driver.get(BUFFERS + 0x2_0000, 20), *b"reprise-1\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(request(&mut driver, 8, 0, &[], 4), (0, 5));
}

#[test]
fn a_disk_grows_with_its_image_and_the_driver_is_told() {
    let image = image(8);
    let disk = Arc::new(Block::open(image.path(), &options()).unwrap());
    let mut driver = Driver::new(Arc::clone(&disk) as Arc<dyn VirtioDevice>);
    driver.run(VERSION_1 | FLUSH);
    assert_eq!(request(&mut driver, 1, 8, &[7; 512], 0).0, 1, "beyond the end");
    for bytes in [0, 7 * SECTOR, 8 * SECTOR + 1, u64::MAX] {
        let refused = disk.resize(bytes);
        assert!(matches!(refused, Err(ResizeError::Size { .. })), "{bytes}: {refused:?}");
    }
    driver.write(0x10, 2, 0);
    driver.inbox.take();
    disk.resize(16 * SECTOR).unwrap();
    assert_eq!(driver.read(0x2000, 8), 16);
    assert_eq!(driver.inbox.take().len(), 1, "the configuration has changed");
    assert_eq!(request(&mut driver, 1, 8, &[7; 512], 0).0, 0);
    assert_eq!(image.as_file().metadata().unwrap().len(), 16 * SECTOR);
    let readonly = BlockOptions {
        readonly: true,
        format: Some(ImageFormat::Raw),
        ..options()
    };
    drop((driver, disk));
    let disk = Block::open(image.path(), &readonly).unwrap();
    assert!(matches!(disk.resize(32 * SECTOR), Err(ResizeError::Fixed)));
}

#[test]
fn a_request_without_header_or_status_is_malformed() {
    let image = image(8);
    let mut driver = driver(&image, &options());
    driver.put(BUFFERS, &[0; 16]);
    assert_eq!(driver.request(0, &[(BUFFERS, 15, false), (STATUS, 1, true)]), 0);
    assert_eq!(driver.request(0, &[(BUFFERS, 16, false)]), 0);
    driver.put(STATUS, &[0xee]);
    let outside = [(BUFFERS, 16, false), (1 << 40, 512, true), (STATUS, 1, true)];
    assert_eq!(driver.request(0, &outside), 0);
    assert_eq!(
        driver.get(STATUS, 1),
        [1],
        "buffers that are no memory: an error where it can be told"
    );
    assert_eq!(driver.counter("malformed"), 3);
}

#[test]
fn an_image_has_one_writer_or_many_readers() {
    let image = image(8);
    let readonly = BlockOptions {
        readonly: true,
        ..options()
    };
    let writer = Block::open(image.path(), &options()).unwrap();
    for wanted in [&options(), &readonly] {
        let refused = Block::open(image.path(), wanted);
        assert!(matches!(refused, Err(BlockError::Locked { .. })));
    }
    drop(writer);
    let _one = Block::open(image.path(), &readonly).unwrap();
    let _two = Block::open(image.path(), &readonly).unwrap();
    assert!(Block::open(image.path(), &options()).is_err());
}

#[test]
fn an_image_that_makes_no_disk_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let error = |path: &Path| Block::open(path, &options()).unwrap_err().to_string();
    let missing = folder.path().join("missing");
    assert!(error(&missing).contains("missing cannot be opened for reading and writing"));
    assert!(error(&file("empty", b"")).contains("has 0 bytes; expected a multiple of 512"));
    assert!(error(&file("cut", &[0; 700])).contains("has 700 bytes"));
    assert!(error(Path::new("/dev/null")).contains("neither a file nor a block device"));
    let mut header = [0; 512];
    header[..4].copy_from_slice(b"QFI\xfb");
    let qcow2 = file("qcow2", &header);
    assert!(error(&qcow2).contains("is a qcow2 image; expected a raw one"));
    let raw = BlockOptions {
        format: Some(ImageFormat::Raw),
        ..options()
    };
    assert!(Block::open(&qcow2, &raw).is_ok(), "if it is said to be raw, it is");
    let serial = BlockOptions {
        serial: "x".repeat(21),
        ..options()
    };
    assert!(matches!(Block::open(&qcow2, &serial), Err(BlockError::Serial { .. })));
}

#[test]
fn disks_of_a_group_share_their_rate() {
    let images = [image(8), image(8)];
    let bandwidth = Bucket {
        size: 2048,
        one_time_burst: 0,
        refill_time: Duration::from_millis(80),
    };
    let limits = RateLimits {
        bandwidth: Some(bandwidth),
        ops: None,
    };
    let limiter = Arc::new(RateLimiter::new(&limits, Arc::new(HostClock::new())));
    let start = Instant::now();
    let mut drivers: Vec<_> = images
        .iter()
        .map(|image| {
            let disk = Block::open(image.path(), &options()).unwrap();
            let mut driver = Driver::new(Arc::new(disk.with_limiter(Arc::clone(&limiter))));
            driver.run(VERSION_1 | FLUSH);
            driver
        })
        .collect();
    for round in 0..4 {
        for driver in &mut drivers {
            assert_eq!(request(driver, 0, 0, &[], 1024).0, 0, "{round}");
        }
    }
    // The first two are there, and the last waits for the one before it; four flow in at 25.6 bytes a millisecond.
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(160), "{took:?}");
}

#[test]
fn what_is_read_goes_straight_to_where_the_guest_wants_it_and_is_told() {
    let image = image(8);
    let mut driver = driver(&image, &options());
    driver.put(BUFFERS, &[&[0; 8][..], &1_u64.to_le_bytes()].concat());
    let pieces: Vec<_> = (0..14)
        .map(|piece| (BUFFERS + 0x1000 * (piece + 1), if piece == 13 { 8 } else { 157 }, true))
        .collect();
    let total: u32 = pieces.iter().map(|(_, length, _)| length).sum();
    assert_eq!(total % 512, 1, "four sectors and the status");
    driver.request(0, &[&[(BUFFERS, 16, false)][..], &pieces].concat());
    let bytes: Vec<u8> = pieces
        .iter()
        .flat_map(|(address, length, _)| driver.get(*address, *length as usize))
        .collect();
    let expected: Vec<u8> = (0..total - 1).map(|at| 2 + (at / 512) as u8).chain([0]).collect();
    assert_eq!(bytes, expected);
    let told = driver.writes.0.lock().unwrap();
    for (address, length, _) in pieces {
        let is_told = |at: u64| {
            told.iter()
                .any(|(start, length)| (*start..start + length).contains(&at))
        };
        assert!((address..address + u64::from(length)).all(is_told), "{address:#x}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn a_disk_is_an_array_of_sectors(
        steps in prop::collection::vec((0_u32..5, 0_u64..20, 1_u32..6, any::<u8>()), 1..30),
    ) {
        let image = image(16);
        let mut model = std::fs::read(image.path()).unwrap();
        let mut driver = driver(&image, &options());
        for (what, sector, sectors, byte) in steps {
            let length = sectors as usize * 512;
            let inside = sector + u64::from(sectors) <= 16;
            let place = sector as usize * 512;
            let (kind, out, room) = match what {
                0 | 1 => (0, vec![], length as u32),
                2 | 3 => (1, vec![byte; length], 0),
                _ => (13, range(sector, sectors, u32::from(byte & 1)), 0),
            };
            let (status, _) = request(&mut driver, kind, sector, &out, room);
            prop_assert_eq!(status, u8::from(!inside));
            if !inside { continue; }
            match kind {
                0 => prop_assert_eq!(&driver.get(BUFFERS + 0x2_0000, length), &model[place..][..length]),
                1 => model[place..][..length].fill(byte),
                _ => model[place..][..length].fill(0),
            }
        }
        prop_assert_eq!(std::fs::read(image.path()).unwrap(), model);
    }
}

//! The images are `qemu-img`'s. Where that is not, these tests say that they are skipped; with `REPRISE_REQUIRE=qemu-img` they
//! fail instead.

use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::super::tests::{driver_of, range, request};
use super::super::{Block, BlockOptions, ImageFormat};
use super::*;
use crate::virtio::testing::{BUFFERS, Driver};

/// Bytes of the disks.
const SIZE: u64 = 4 << 20;

struct World(TempDir);

impl World {
    fn new() -> Option<Self> {
        let there = Command::new("qemu-img").arg("--version").stdout(Stdio::null()).status();
        if there.is_ok_and(|status| status.success()) {
            return Some(Self(tempfile::tempdir().unwrap()));
        }
        let required =
            std::env::var("REPRISE_REQUIRE").is_ok_and(|list| list.split(',').any(|item| item == "qemu-img"));
        assert!(!required, "there is no qemu-img");
        eprintln!("skipped: there is no qemu-img (Debian's package qemu-utils)");
        None
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn qemu_img(&self, arguments: &str) -> String {
        let mut command = Command::new("qemu-img");
        let output = command
            .args(arguments.split(' '))
            .current_dir(self.0.path())
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "qemu-img {arguments}: {told}");
        told
    }

    /// An image whose byte n of sector m is m.
    fn image(&self, name: &str, options: &str) -> PathBuf {
        let bytes: Vec<u8> = (0..SIZE).map(|at| (at / 512) as u8).collect();
        std::fs::write(self.path("raw"), bytes).unwrap();
        self.qemu_img(&format!("convert -f raw -O qcow2{options} raw {name}"));
        self.path(name)
    }
}

fn options() -> BlockOptions {
    BlockOptions {
        format: Some(ImageFormat::Qcow2),
        ..BlockOptions::default()
    }
}

fn with_backing() -> BlockOptions {
    BlockOptions {
        backing_files: true,
        ..options()
    }
}

fn driver(path: &Path, options: &BlockOptions) -> Driver {
    driver_of(Block::open(path, options).unwrap())
}

/// The first byte of a sector.
fn sector(driver: &mut Driver, sector: u64) -> u8 {
    assert_eq!(request(driver, 0, sector, &[], 512), (0, 513));
    let bytes = driver.get(BUFFERS + 0x2_0000, 512);
    assert!(bytes.iter().all(|byte| *byte == bytes[0]));
    bytes[0]
}

fn error(path: &Path, options: &BlockOptions) -> BlockError {
    Block::open(path, options).unwrap_err()
}

#[test]
fn an_image_is_read_and_written_and_sound_afterwards() {
    let Some(world) = World::new() else { return };
    for (name, how) in [("plain", ""), ("small", " -o cluster_size=512"), ("compressed", " -c")] {
        let path = world.image(name, how);
        let mut driver = driver(&path, &options());
        assert_eq!(driver.read(0x2000, 8), SIZE / 512);
        assert_eq!((sector(&mut driver, 7), sector(&mut driver, 8191)), (7, 255));
        assert_eq!(request(&mut driver, 1, 300, &[0x99; 1024], 0).0, 0);
        assert_eq!(request(&mut driver, 1, 8191, &[0x77; 1024], 0).0, 1, "beyond the end");
        assert_eq!(request(&mut driver, 4, 0, &[], 0).0, 0, "flush");
        // 0x20000 bytes of zeros, and 0x10000 given back.
        assert_eq!(request(&mut driver, 13, 0, &range(1024, 256, 0), 0).0, 0);
        assert_eq!(request(&mut driver, 11, 0, &range(2048, 128, 0), 0).0, 0);
        let found: Vec<_> = [299, 300, 301, 302, 1023, 1024, 1279, 1280, 2048, 2175, 2176]
            .map(|at| sector(&mut driver, at))
            .into();
        assert_eq!(found, [43, 0x99, 0x99, 46, 255, 0, 0, 0, 0, 0, 128], "{name}");
        drop(driver);
        assert!(world.qemu_img(&format!("check {name}")).contains("No errors"), "{name}");
        world.qemu_img(&format!("convert -O raw {name} back"));
        let back = std::fs::read(world.path("back")).unwrap();
        assert_eq!((back[300 * 512], back[1024 * 512], back[9 * 512]), (0x99, 0, 9));
    }
}

#[test]
fn what_is_saved_is_in_the_file() {
    let Some(world) = World::new() else { return };
    world.qemu_img("create -q -f qcow2 empty 4M");
    let mut driver = driver(&world.path("empty"), &options());
    assert_eq!(sector(&mut driver, 9), 0);
    assert_eq!(request(&mut driver, 1, 9, &[0x42; 512], 0).0, 0);
    assert!(driver.device.set_paused(true, Duration::from_secs(60)));
    driver.device.state().unwrap();
    // As it is, though somebody writes it.
    world.qemu_img("convert -U -O raw empty back");
    assert_eq!(std::fs::read(world.path("back")).unwrap()[9 * 512], 0x42);
}

#[test]
fn an_image_is_what_it_is_said_to_be() {
    let Some(world) = World::new() else { return };
    let path = world.image("image", "");
    assert!(matches!(
        error(&path, &BlockOptions::default()),
        BlockError::Format { format: "qcow2", .. }
    ));
    assert!(matches!(
        error(&world.path("raw"), &options()),
        BlockError::Damaged { .. }
    ));
    assert!(matches!(
        error(&world.path("none"), &options()),
        BlockError::Open { .. }
    ));
}

#[test]
fn a_read_only_image_stays_as_it_is_and_has_many_readers() {
    let Some(world) = World::new() else { return };
    let path = world.image("image", "");
    let before = std::fs::read(&path).unwrap();
    let readonly = BlockOptions {
        readonly: true,
        ..options()
    };
    let mut one = driver(&path, &readonly);
    let mut two = driver(&path, &readonly);
    assert!(matches!(error(&path, &options()), BlockError::Locked { .. }));
    assert_eq!((sector(&mut one, 3), sector(&mut two, 4)), (3, 4));
    assert_eq!(request(&mut one, 1, 3, &[0; 512], 0).0, 1);
    drop((one, two));
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[test]
fn backing_files_are_used_if_they_are_allowed_and_only_read() {
    let Some(world) = World::new() else { return };
    let base = world.image("base", "");
    world.qemu_img("create -q -f qcow2 -b base -F qcow2 middle");
    world.qemu_img("create -q -f qcow2 -b middle -F qcow2 top");
    world.qemu_img("create -q -f qcow2 -b raw -F raw on-raw");
    let top = world.path("top");
    assert!(matches!(error(&top, &options()), BlockError::Refers { .. }));
    let before = std::fs::read(&base).unwrap();
    let mut first = driver(&top, &with_backing());
    assert_eq!(sector(&mut first, 5), 5);
    assert_eq!(request(&mut first, 1, 5, &[0x55; 512], 0).0, 0);
    assert_eq!((sector(&mut first, 5), sector(&mut first, 6)), (0x55, 6));
    assert_eq!(sector(&mut driver(&world.path("on-raw"), &with_backing()), 77), 77);
    assert!(
        matches!(error(&base, &options()), BlockError::Locked { .. }),
        "it is in use"
    );
    drop(first);
    assert_eq!(std::fs::read(&base).unwrap(), before);
    let _writer = Block::open(&base, &options()).unwrap();
    assert!(matches!(error(&top, &with_backing()), BlockError::Locked { .. }));
}

#[test]
fn a_backing_file_that_is_missing_or_leads_back_is_named() {
    let Some(world) = World::new() else { return };
    world.qemu_img("create -q -f qcow2 -u -b gone -F qcow2 orphan 4M");
    let orphan = error(&world.path("orphan"), &with_backing());
    assert!(
        matches!(&orphan, BlockError::Backing { backing, .. } if backing.ends_with("gone")),
        "{orphan:?}"
    );
    world.qemu_img("create -q -f qcow2 -u -b two -F qcow2 one 4M");
    world.qemu_img("create -q -f qcow2 -u -b one -F qcow2 two 4M");
    world.qemu_img("create -q -f qcow2 -u -b two -F qcow2 self 4M");
    world.qemu_img("rebase -u -f qcow2 -b self -F qcow2 self");
    for name in ["one", "self"] {
        let turns = error(&world.path(name), &with_backing());
        assert!(matches!(turns, BlockError::Loop { .. }), "{turns:?}");
    }
    for number in 0..40 {
        world.qemu_img(&format!(
            "create -q -f qcow2 -u -b long{} -F qcow2 long{number} 4M",
            number + 1
        ));
    }
    let long = error(&world.path("long0"), &with_backing());
    assert!(matches!(long, BlockError::Loop { .. }), "{long:?}");
}

#[test]
fn an_image_that_was_cut_off_or_spoilt_is_refused_or_does_no_harm() {
    let Some(world) = World::new() else { return };
    let path = world.image("image", "");
    let whole = std::fs::read(&path).unwrap();
    for length in [
        0,
        1,
        47,
        48,
        100,
        512,
        65536,
        3 * 65536,
        4 * 65536,
        whole.len() / 2,
        whole.len() - 65536,
    ] {
        std::fs::write(&path, &whole[..length]).unwrap();
        let cut = error(&path, &options());
        assert!(matches!(cut, BlockError::Damaged { .. }), "{length}: {cut:?}");
    }
    // One byte of the header or of a table at a time.
    let mut refused = 0;
    let places = (0..112).chain((65536..whole.len().min(5 * 65536)).step_by(4099));
    for place in places {
        for bits in [0x01, 0x80, 0xff] {
            let mut spoilt = whole.clone();
            spoilt[place] ^= bits;
            std::fs::write(&path, &spoilt).unwrap();
            match Block::open(&path, &options()) {
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    refused += 1;
                }
                Ok(block) => {
                    let mut driver = driver_of(block);
                    for sector in [0, 500, 8191] {
                        request(&mut driver, 0, sector, &[], 512);
                        request(&mut driver, 1, sector, &[1; 512], 0);
                    }
                }
            }
        }
    }
    assert!(refused > 20, "{refused}");
}

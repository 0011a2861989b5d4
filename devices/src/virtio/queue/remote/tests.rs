//! A disk that a process of QEMU's serves. Without the program `qemu-storage-daemon` these tests say that they are skipped, and
//! with `REPRISE_REQUIRE=vhost-user` in the environment they fail instead.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

use crate::vhost_user::{VhostUser, VhostUserError};
use crate::virtio::Dma;
use crate::virtio::testing::{BUFFERS, Driver, MEMORY, VERSION_1, eventually};

const ROOM: u64 = BUFFERS + 0x2_0000;
const STATUS: u64 = BUFFERS + 0x4_0000;
/// DEVICE_NEEDS_RESET.
const NEEDS_RESET: u64 = 0x40;

/// A process that serves a disk of eight sectors, sector n full of bytes n + 1; killed at the end.
struct Process {
    child: Child,
    folder: TempDir,
}

impl Process {
    fn start() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let sectors: Vec<u8> = (1..=8).flat_map(|sector| [sector; 512]).collect();
        std::fs::write(folder.path().join("image"), sectors).unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let child = Command::new("qemu-storage-daemon")
            .args([
                "--blockdev",
                &format!("driver=file,node-name=disk,filename={}", path("image")),
            ])
            .arg("--export")
            .arg(format!(
                "type=vhost-user-blk,id=export,node-name=disk,writable=on,addr.type=unix,addr.path={}",
                path("socket")
            ))
            .stdout(Stdio::null())
            .spawn();
        let Ok(child) = child else {
            let required =
                std::env::var("REPRISE_REQUIRE").is_ok_and(|list| list.split(',').any(|item| item == "vhost-user"));
            assert!(!required, "there is no qemu-storage-daemon");
            eprintln!("skipped: there is no qemu-storage-daemon");
            return None;
        };
        let process = Self { child, folder };
        eventually("the socket", || process.socket().exists());
        Some(process)
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    fn image(&self) -> Vec<u8> {
        std::fs::read(self.folder.path().join("image")).unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn dma(memory: &GuestMemoryMmap) -> Dma {
    Dma::new(memory.clone(), Arc::new(|_: u64, _: u64| {}))
}

/// A driver of the process's disk, not yet running.
fn driver(process: &Process) -> Driver {
    let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, MEMORY).unwrap();
    let file = FileOffset::new(File::from(file), 0);
    let memory = GuestMemoryMmap::from_ranges_with_files([(GuestAddress(0), MEMORY as usize, Some(file))]).unwrap();
    let disk = VhostUser::disk(&process.socket(), 1, 16, &dma(&memory)).unwrap();
    Driver::with(Arc::new(disk), memory)
}

/// Offers a request for sector `sector`, with `out` behind its header and room for `room` bytes.
fn buffers(driver: &Driver, kind: u32, sector: u64, out: &[u8], room: u32) -> Vec<(u64, u32, bool)> {
    let header = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes(), out].concat();
    driver.put(BUFFERS, &header);
    driver.put(STATUS, &[0xee]);
    let mut buffers = vec![(BUFFERS, header.len() as u32, false)];
    if room > 0 {
        buffers.push((ROOM, room, true));
    }
    buffers.push((STATUS, 1, true));
    buffers
}

fn request(driver: &mut Driver, kind: u32, sector: u64, out: &[u8], room: u32) -> u8 {
    let buffers = buffers(driver, kind, sector, out, room);
    driver.request(0, &buffers);
    driver.get(STATUS, 1)[0]
}

#[test]
fn another_process_serves_the_queue_across_a_pause_and_a_reset() {
    let Some(process) = Process::start() else { return };
    let mut driver = driver(&process);
    assert_eq!(driver.read(0x2000, 8), 8, "capacity, in sectors");
    for round in 0..2_u8 {
        driver.run(VERSION_1);
        assert_eq!(request(&mut driver, 0, 2, &[], 1024), 0);
        assert_eq!(driver.get(ROOM, 1024), [[3; 512], [4; 512]].concat());
        assert_eq!(request(&mut driver, 1, 7, &[0x90 + round; 512], 0), 0);
        assert_eq!(process.image()[7 * 512..], [0x90 + round; 512]);
        eventually("the interrupt", || !driver.inbox.take().is_empty());

        assert!(driver.device.set_paused(true, Duration::from_secs(60)));
        let state = driver.device.state().unwrap();
        assert_eq!(state.queues[0].next_avail, Some(2));
        let waiting = buffers(&driver, 0, 0, &[], 512);
        driver.offer(0, &waiting);
        driver.notify(0);
        assert_eq!(driver.used(0), 2, "nothing happens while it is paused");
        driver.device.set_paused(false, Duration::ZERO);
        eventually("the answer", || driver.used(0) == 3);
        assert_eq!(driver.get(ROOM, 512), [1; 512]);
    }
}

#[test]
fn rule_22_a_process_that_is_killed_costs_its_device_and_nothing_else() {
    let Some(process) = Process::start() else { return };
    let mut driver = driver(&process);
    driver.run(VERSION_1);
    assert_eq!(request(&mut driver, 0, 0, &[], 512), 0);
    process.signal(Signal::STOP);
    let buffers = buffers(&driver, 0, 1, &[], 512);
    driver.offer(0, &buffers);
    driver.notify(0);
    assert_eq!(driver.status(), 0xf, "it is only silent");
    drop(process);
    eventually("it needs a reset", || driver.status() & NEEDS_RESET != 0);
    // As often as a driver tries.
    for _ in 0..2 {
        driver.write(0x14, 1, 0);
        eventually("the reset", || driver.status() == 0);
        assert!(driver.negotiate(VERSION_1));
        driver.set_up(0);
        driver.write(0x14, 1, 0xf);
        eventually("it needs a reset", || driver.status() & NEEDS_RESET != 0);
    }
}

#[test]
fn memory_that_is_not_shared_is_refused_to_the_process_and_the_device_lost() {
    let Some(process) = Process::start() else { return };
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap();
    let disk = VhostUser::disk(&process.socket(), 1, 16, &dma(&memory)).unwrap();
    let mut driver = Driver::with(Arc::new(disk), memory);
    assert!(driver.negotiate(VERSION_1));
    driver.set_up(0);
    driver.write(0x14, 1, 0xf);
    eventually("it needs a reset", || driver.status() & NEEDS_RESET != 0);
}

#[test]
fn a_socket_that_nobody_serves_and_a_tag_that_is_none_are_refused() {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap();
    let nobody = VhostUser::disk("/nonexistent/s".as_ref(), 1, 16, &dma(&memory)).map(drop);
    assert!(matches!(nobody, Err(VhostUserError::Process { .. })), "{nobody:?}");
    for tag in ["", "a name of more than thirty-six bytes, as it happens"] {
        let refused = VhostUser::share("/nonexistent/s".as_ref(), tag, 1, 16, &dma(&memory)).map(drop);
        assert!(matches!(refused, Err(VhostUserError::Tag { .. })), "{refused:?}");
    }
}

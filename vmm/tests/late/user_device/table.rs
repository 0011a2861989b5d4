//! A device whose process wants to know which vectors are unmasked and takes its time, and a guest that fills the device's table
//! of MSI-X with one string move.

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::thread;
use std::time::Duration;

use iced_x86::code_asm::*;
use serde_json::json;
use vfio_bindings::bindings::vfio::vfio_region_info;
use vfio_user::{DmaMapFlags, DmaUnmapFlags, IrqInfo, Server, ServerBackend, ServerRegion};

use super::guest::find;
use super::long;
use super::process::{Process, TABLE};
use crate::code::{assemble, print};
use crate::second::SVR;
use crate::world::{World, eventually};

const VECTORS: i32 = 4;
/// The one whose Vector Control says, in the guest's memory, that it stays masked.
const MASKED: i32 = 2;
/// Configuration space as the example has it, but for the number of vectors.
const CONFIG: [u32; 19] = [
    0x00fe1b36,
    0x100000,
    0xff000000,
    0,
    0,
    0,
    0,
    0,
    0,
    0,
    0,
    0,
    0,
    0x40,
    0,
    0,
    0x0003_0011,
    0x800,
    0xc00,
];
/// Where they lie in BAR 0, and the register that has a vector signalled.
const ENTRIES: i32 = 0x800;
const PENDING: i32 = 0xc00;
const SIGNAL: i32 = 0x10;
/// What the guest moves to the table.
const IMAGE: i32 = 0x32_0000;
/// The first vector's interrupt.
const INTERRUPT: i32 = 0x41;
/// Interrupts 0x40 to 0x5f that were requested (SDM Vol. 3, Local APIC Register Address Map).
const IRR: i32 = 0xfee0_0220_u32 as i32;

/// Flags of DEVICE_SET_IRQS: the vectors are unmasked; these are their events.
const UNMASK: u32 = 1 << 4;
const EVENTS: u32 = 1 << 2 | 1 << 5;

/// Says that a vector shall be unmasked by a file `asked-N` in a folder, and agrees when there is `go-N`.
struct Careful<'a> {
    folder: &'a Path,
    events: Vec<File>,
}

impl ServerBackend for Careful<'_> {
    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let config = CONFIG.map(u32::to_le_bytes).concat();
        for (byte, at) in data.iter_mut().zip(usize::try_from(offset).unwrap()..) {
            *byte = config.get(at).copied().filter(|_| region == 7).unwrap_or(0);
        }
        Ok(())
    }

    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        if (region, offset) == (0, u64::try_from(SIGNAL).unwrap()) {
            self.events[usize::from(data[0])].write_all(&1_u64.to_ne_bytes())?;
        }
        Ok(())
    }

    fn dma_map(&mut self, _: DmaMapFlags, _: u64, _: u64, _: u64, _: Option<File>) -> io::Result<()> {
        Ok(())
    }

    fn dma_unmap(&mut self, _: DmaUnmapFlags, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn reset(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn set_irqs(&mut self, _: u32, flags: u32, start: u32, _: u32, events: Vec<File>) -> io::Result<()> {
        if flags & EVENTS == EVENTS {
            self.events.extend(events);
        }
        if flags & UNMASK != 0 {
            File::create(self.folder.join(format!("asked-{start}")))?;
            let go = self.folder.join(format!("go-{start}"));
            // Whoever started this process ends it too.
            while !go.exists() {
                thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(())
    }
}

/// Serves one client at `socket`, with the files beside it.
pub fn serve(socket: &Path) -> Result<(), Box<dyn Error>> {
    let region = |(index, size)| ServerRegion {
        region_info: vfio_region_info {
            index,
            size,
            flags: 3,
            ..Default::default()
        },
        sparse_areas: Vec::new(),
        mmap_fd: None,
    };
    let regions = (0..).zip([0x1000, 0, 0, 0, 0, 0, 0, 0x100, 0]).map(region);
    // Its vectors have events, and can be masked.
    let irq = |(index, count)| IrqInfo { index, flags: 3, count };
    let irqs = (0..).zip([0, 0, VECTORS.unsigned_abs(), 0, 0]).map(irq);
    let server = Server::new(socket, true, irqs.collect(), regions.collect())?;
    let folder = socket.parent().ok_or("no folder")?;
    let events = Vec::new();
    Ok(server.run(&mut Careful { folder, events })?)
}

/// How the guest's processor executes the string move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// In protected mode, where each word is moved on its own.
    Protected,
    /// In 64-bit mode, where the words are moved by reference.
    Long,
}

/// A guest that does what [`use_table`] says in `mode`.
fn guest(mode: Mode) -> Vec<u8> {
    assemble(|a| {
        find(a)?;
        match mode {
            Mode::Protected => use_table(a),
            Mode::Long => long::enter(a, use_table),
        }
    })
}

/// Fills the table, prints `u`, and the number of each vector that interrupts; `p` when the masked one is pending, which is then
/// unmasked too. Addresses are in registers of 32 bits, but for those of the move, and so are good in either mode.
fn use_table(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut halt = a.create_label();
    a.mov(ebx, SVR)?;
    a.mov(dword_ptr(ebx), 0x1ff)?;
    for vector in 0..VECTORS {
        let masked = i32::from(vector == MASKED);
        a.mov(esi, IMAGE + 16 * vector)?;
        for (word, value) in (0..).zip([0xfee0_0000_u32 as i32, 0, INTERRUPT + vector, masked]) {
            a.mov(dword_ptr(esi + 4 * word), value)?;
        }
    }
    a.mov(ebp, edi)?;
    a.add(edi, ENTRIES)?;
    a.mov(esi, IMAGE)?;
    a.mov(ecx, 4 * VECTORS)?;
    a.cld()?;
    a.rep().movsd()?;
    a.mov(edi, ebp)?;
    print(a, "u")?;
    a.mov(ebx, IRR)?;
    let signal = |a: &mut CodeAssembler, vector: i32| a.mov(dword_ptr(edi + SIGNAL), vector);
    let arrives = |a: &mut CodeAssembler, vector: i32| -> Result<(), IcedError> {
        let mut wait = a.create_label();
        a.set_label(&mut wait)?;
        a.test(dword_ptr(ebx), 1 << (INTERRUPT + vector - 0x40))?;
        a.je(wait)?;
        print(a, &vector.to_string())
    };
    for vector in (0..VECTORS).filter(|vector| *vector != MASKED) {
        signal(a, vector)?;
        arrives(a, vector)?;
    }
    let mut wait = a.create_label();
    signal(a, MASKED)?;
    a.set_label(&mut wait)?;
    a.test(dword_ptr(edi + PENDING), 1 << MASKED)?;
    a.je(wait)?;
    print(a, "p")?;
    a.mov(dword_ptr(edi + ENTRIES + 16 * MASKED + 12), 0)?;
    arrives(a, MASKED)?;
    a.set_label(&mut halt)?;
    a.hlt()?;
    a.jmp(halt)
}

/// The device's process with its files, and a machine that has the device.
struct Scene {
    process: Process,
    world: World,
    folder: tempfile::TempDir,
}

impl Scene {
    fn new(mode: Mode) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let process = Process::serve(TABLE, &folder.path().join("device"));
        let world = World::boot_with(&guest(mode), 1, "user_devices", &json!([{"socket": process.socket}]));
        Self { process, world, folder }
    }

    /// Waits until the process is asked to unmask a vector and the guest waits for that: how many writes have reached the device's
    /// registers and table by then.
    fn asked(&self, vector: u32) -> u64 {
        let file = self.folder.path().join(format!("asked-{vector}"));
        eventually("an unmasking", || file.exists());
        let before = self.world.counter("vcpu0", "parked_us");
        eventually("time", || self.world.counter("vcpu0", "parked_us") > before);
        self.world.counter("user0", "writes")
    }

    /// What the vCPU has asked for by then.
    fn requests(&self) -> u64 {
        self.world.counter("vcpu0", "device_accesses")
    }

    fn go(&self, vector: u32) {
        File::create(self.folder.path().join(format!("go-{vector}"))).unwrap();
    }
}

/// The table is filled, and each vector unmasked in its turn; how many requests moved the eight words of the last two.
fn fill(mode: Mode) -> u64 {
    let scene = Scene::new(mode);
    let writes = scene.asked(0);
    scene.go(0);
    // Each word is written once, and none before the vector before it is unmasked.
    assert_eq!(scene.asked(1), writes + 4);
    let requests = scene.requests();
    scene.go(1);
    assert_eq!(scene.asked(3), writes + 12);
    let requests = scene.requests() - requests;
    assert_eq!(scene.world.counter("serial", "written"), 0, "the move is not complete");
    scene.go(3);
    let mut console = scene.world.console();
    console.expect("u013p");
    let _ = scene.asked(2);
    assert_eq!(scene.world.counter("serial", "written"), 5, "it is not unmasked yet");
    scene.go(2);
    console.expect("2");
    scene.world.put("vm.delete");
    requests
}

#[test]
fn rule_13_a_table_filled_by_a_string_move_is_routed_and_each_vector_unmasked_when_its_device_knows() {
    assert_eq!(fill(Mode::Protected), 8);
}

#[test]
fn rule_13_a_table_filled_by_a_move_by_reference_is_routed_and_each_vector_unmasked_when_its_device_knows() {
    assert_eq!(fill(Mode::Long), 1, "by reference");
}

#[test]
fn rule_13_and_23_a_string_move_that_waits_for_an_unmasking_is_finished_in_another_process() {
    finish_elsewhere(Mode::Protected);
}

#[test]
fn rule_13_and_23_a_move_by_reference_that_waits_for_an_unmasking_is_finished_in_another_process() {
    finish_elsewhere(Mode::Long);
}

fn finish_elsewhere(mode: Mode) {
    let scene = Scene::new(mode);
    let _ = scene.asked(0);
    scene.go(0);
    let _ = scene.asked(1);
    let snapshot = scene.folder.path().join("snapshot");
    scene.world.put("vm.pause");
    let destination = json!({"destination_url": format!("file://{}", snapshot.display())});
    let (status, body) = scene.world.call("PUT", "vm.snapshot", &destination.to_string());
    assert_eq!(status, 204, "{body}");

    let Scene { process, world, folder } = scene;
    let socket = process.socket.clone();
    drop(process);
    fs::remove_file(folder.path().join("asked-1")).unwrap();
    let process = Process::serve(TABLE, &socket);
    let world = world.restored(&snapshot);
    let scene = Scene { process, world, folder };
    let _ = scene.asked(3);
    scene.go(3);
    let mut console = scene.world.console();
    console.expect("u013p");
    scene.go(2);
    console.expect("2");
    let asked = scene.folder.path().join("asked-1");
    assert!(
        !asked.exists(),
        "the table is the guest's, whatever its device has been told"
    );
    scene.world.put("vm.delete");
}

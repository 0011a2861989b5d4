//! Assembles an image, and runs it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reprise_hypervisor::Hypervisor;
use reprise_vmm::config::{CpusConfig, MemoryConfig, PayloadConfig, VmConfig};
use reprise_vmm::console::Console;
use reprise_vmm::machine::{Machine, MachineEnd, MachineOptions};
use tempfile::TempDir;

/// As long as it takes.
const LONG: Duration = Duration::from_secs(120);
/// Where an image is linked.
const ADDRESS: &str = "0x200000";
/// What an image that has come to its end writes to the debug-exit port.
const DONE: u8 = 1;

/// A Multiboot kernel, ready to run.
pub struct Image {
    folder: TempDir,
}

impl Image {
    pub fn assemble(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/processor/images");
        let object = folder.path().join("object");
        let image = Self { folder };
        run(Command::new("cc")
            .args(["-m64", "-c", "-x", "assembler", "-I"])
            .arg(&sources)
            .arg("-o")
            .arg(&object)
            .arg(sources.join(format!("{name}.S"))));
        // Code of all widths is in one object, which only 64-bit objects can hold; Multiboot wants a 32-bit one.
        let linked = image.folder.path().join("linked");
        run(Command::new("ld")
            .args(["-m", "elf_x86_64", "-nostdlib", "--no-warn-rwx-segments"])
            .args(["-z", "max-page-size=4096", "-Ttext", ADDRESS])
            .arg("-o")
            .arg(&linked)
            .arg(&object));
        for (format, to) in [("elf32-i386", image.kernel()), ("binary", image.flat())] {
            run(Command::new("objcopy").args(["-O", format]).arg(&linked).arg(to));
        }
        image
    }

    /// What it prints in Bochs; `None` if there is none and need not be.
    pub fn run_on_bochs(&self) -> Option<String> {
        const SECTOR: usize = 512;
        const CYLINDER: usize = 16 * 63 * SECTOR;
        let path = |name: &str| self.folder.path().join(name);
        let emulator = Path::new(env!("CARGO_MANIFEST_DIR")).join("../emulator/src/bin/differential/bochs");
        run(Command::new("cc")
            .args(["-m32", "-c", "-x", "assembler", "-o"])
            .arg(path("boot.o"))
            .arg(emulator.join("boot.S")));
        run(Command::new("ld")
            .args(["-m", "elf_i386", "-nostdlib", "--oformat", "binary", "-Ttext", "0x7c00"])
            .arg("-o")
            .arg(path("boot"))
            .arg(path("boot.o")));
        let mut disk = std::fs::read(path("boot")).unwrap();
        let image = std::fs::read(self.flat()).unwrap();
        let sectors = u32::try_from(image.len().div_ceil(SECTOR)).unwrap();
        disk[506..510].copy_from_slice(&sectors.to_le_bytes());
        disk.extend(image);
        let cylinders = disk.len().div_ceil(CYLINDER).max(20);
        disk.resize(cylinders * CYLINDER, 0);
        std::fs::write(path("disk"), disk).unwrap();
        let configuration = format!(
            "megs: 64
cpu: model=corei7_icelake_u, count=1, ips=400000000, reset_on_triple_fault=0, ignore_bad_msrs=0
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest
display_library: rfb, options=\"timeout=0\"
boot: disk
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=disk, path=\"{}\", mode=flat, cylinders={cylinders}, heads=16, spt=63
log: {}
panic: action=fatal
error: action=ignore
info: action=ignore
clock: sync=none
port_e9_hack: enabled=1
sound: waveoutdrv=dummy, waveindrv=dummy, midioutdrv=dummy
",
            path("disk").display(),
            path("log").display()
        );
        std::fs::write(path("bochsrc"), configuration).unwrap();
        // A Bochs with a debugger waits to be told.
        std::fs::write(path("commands"), "c\nq\n").unwrap();
        let output = Command::new("timeout")
            .arg(LONG.as_secs().to_string())
            .args(["bochs", "-q", "-f"])
            .arg(path("bochsrc"))
            .arg("-rc")
            .arg(path("commands"))
            .stdin(Stdio::null())
            .output();
        match output {
            Ok(output) if output.status.code() != Some(127) => {
                let mut printed = String::from_utf8_lossy(&output.stdout).into_owned();
                // What its debugger has to say of a far jump to a task.
                while let Some(start) = printed.find("bx_dbg_read_pmode_descriptor") {
                    let end = printed[start..]
                        .find('\n')
                        .map_or(printed.len(), |line| start + line + 1);
                    printed.replace_range(start..end, "");
                }
                let log = std::fs::read_to_string(path("log")).unwrap_or_default();
                assert!(log.contains("Shutdown port"), "printed so far: {printed}");
                Some(printed)
            }
            _ => {
                assert!(!is_required("bochs"), "there is no bochs");
                eprintln!("skipped in Bochs: there is none");
                None
            }
        }
    }

    /// The image as it lies in memory.
    fn flat(&self) -> PathBuf {
        self.folder.path().join("flat")
    }

    fn kernel(&self) -> PathBuf {
        self.folder.path().join("kernel")
    }

    /// What it prints on a processor of `hypervisor`.
    pub fn run_on_reprise(&self, hypervisor: &dyn Hypervisor) -> String {
        let config = VmConfig {
            cpus: CpusConfig::of(1),
            memory: MemoryConfig::of(64 << 20),
            payload: PayloadConfig {
                kernel: Some(self.kernel()),
                ..PayloadConfig::default()
            },
            ..VmConfig::default()
        };
        let printed = Printed::default();
        let options = MachineOptions {
            debug_exit: true,
            console: Some(Console::sink(Box::new(printed.clone())).unwrap()),
            ..MachineOptions::default()
        };
        let (tell, ends) = channel();
        let on_end = Box::new(move |end| tell.send(end).unwrap());
        let machine = Machine::new(&config, hypervisor, options, on_end).unwrap();
        machine.start();
        let end = ends.recv_timeout(LONG);
        machine.stop();
        let printed = String::from_utf8_lossy(&printed.0.lock().unwrap()).into_owned();
        assert_eq!(end, Ok(MachineEnd::DebugExit(DONE)), "printed so far: {printed}");
        printed
    }

    /// What it prints there; `None` if there is no QEMU and need not be.
    pub fn run_on_qemu(&self) -> Option<String> {
        let printed = self.folder.path().join("printed");
        let status = Command::new("timeout")
            .arg(LONG.as_secs().to_string())
            .arg("qemu-system-x86_64")
            .args(["-machine", "pc", "-accel", "tcg", "-cpu", "max", "-m", "64"])
            .args(["-display", "none", "-nodefaults", "-no-reboot"])
            .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=1", "-serial"])
            .arg(format!("file:{}", printed.display()))
            .arg("-kernel")
            .arg(self.kernel())
            .stdin(Stdio::null())
            .status();
        match status {
            Ok(status) if status.code() != Some(127) => {
                let printed = String::from_utf8_lossy(&std::fs::read(printed).unwrap()).into_owned();
                assert_eq!(
                    status.code(),
                    Some(i32::from(DONE) << 1 | 1),
                    "printed so far: {printed}"
                );
                Some(printed)
            }
            _ => {
                assert!(!is_required("qemu"), "there is no qemu-system-x86_64");
                eprintln!("skipped on QEMU: there is none");
                None
            }
        }
    }
}

/// `REPRISE_REQUIRE` names it.
fn is_required(tool: &str) -> bool {
    std::env::var("REPRISE_REQUIRE").is_ok_and(|what| what.split(',').any(|one| one == tool))
}

/// Runs a tool, which must be content.
fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
}

#[derive(Clone, Default)]
struct Printed(Arc<Mutex<Vec<u8>>>);

impl Write for Printed {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

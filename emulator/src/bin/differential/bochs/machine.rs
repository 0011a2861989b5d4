//! Runs batches of cases in Bochs: the disk image with the cases, and what it holds when Bochs is through.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, io};

use super::case::{Case, Pool};
use super::outcome::Outcome;

const SECTOR: usize = 512;
/// Sectors in a cylinder.
const CYLINDER: usize = 16 * 63;
/// Size of what `executor.S` makes.
const EXECUTOR_SIZE: usize = 0x1_0000;
/// Size of what is before the pool: how many cases, where the results go.
const HEADER_SIZE: usize = 4096;
/// Size of a case there.
const CASE_SIZE: usize = 320;

/// A batch takes a few seconds.
const PATIENCE: Duration = Duration::from_secs(600);

/// Why a batch could not be run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A tool is not there, or does not work.
    #[error("{tool}: {said}")]
    Tool { tool: &'static str, said: String },
    /// A file cannot be written or read.
    #[error("{}", path.display())]
    File { path: PathBuf, source: io::Error },
}

/// Bochs, ready to run batches.
pub struct Bochs {
    folder: PathBuf,
    boot: Vec<u8>,
    executor: Vec<u8>,
}

impl Bochs {
    /// Assembles the image.
    pub fn new() -> Result<Bochs, Error> {
        let folder = std::env::temp_dir().join(format!("reprise-bochs-{}", std::process::id()));
        fs::create_dir_all(&folder).map_err(|source| Error::File {
            path: folder.clone(),
            source,
        })?;
        let mut bochs = Bochs {
            folder,
            boot: Vec::new(),
            executor: Vec::new(),
        };
        bochs.boot = bochs.assemble(include_str!("boot.S"), "0x7c00")?;
        bochs.executor = bochs.assemble(include_str!("executor.S"), "0x200000")?;
        Ok(bochs)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<PathBuf, Error> {
        let path = self.path(name);
        match fs::write(&path, bytes) {
            Ok(()) => Ok(path),
            Err(source) => Err(Error::File { path, source }),
        }
    }

    /// The flat binary of a source that is to lie at `address`.
    fn assemble(&self, source: &str, address: &str) -> Result<Vec<u8>, Error> {
        let source = self.write("source.S", source.as_bytes())?;
        let (object, binary) = (self.path("object"), self.path("binary"));
        tool(
            "cc",
            Command::new("cc").args(["-m64", "-c", "-o"]).arg(&object).arg(source),
        )?;
        tool(
            "ld",
            Command::new("ld")
                .args([
                    "-m",
                    "elf_x86_64",
                    "-nostdlib",
                    "--oformat",
                    "binary",
                    "-Ttext",
                    address,
                    "-o",
                ])
                .arg(&binary)
                .arg(&object),
        )?;
        fs::read(&binary).map_err(|source| Error::File { path: binary, source })
    }

    /// What each of `cases` leaves behind there.
    pub fn run(&self, pool: &Pool, cases: &[Case]) -> Result<Vec<Outcome>, Error> {
        let input = EXECUTOR_SIZE + HEADER_SIZE + Pool::SIZE + CASE_SIZE * cases.len();
        let sectors = input.div_ceil(SECTOR);
        let results = 1 + sectors;
        let end = results + Outcome::SIZE / SECTOR * cases.len();
        let cylinders = end.div_ceil(CYLINDER).max(20);
        let mut disk = Vec::with_capacity(cylinders * CYLINDER * SECTOR);
        disk.extend(&self.boot);
        // The boot sector's last variable: how much to load.
        disk[506..510].copy_from_slice(&(sectors as u32).to_le_bytes());
        disk.extend(&self.executor);
        disk.extend((cases.len() as u64).to_le_bytes());
        disk.extend((results as u64).to_le_bytes());
        disk.resize(SECTOR + EXECUTOR_SIZE + HEADER_SIZE, 0);
        disk.extend(&pool.0);
        for case in cases {
            write_case(case, &mut disk);
        }
        disk.resize(cylinders * CYLINDER * SECTOR, 0);
        let path = self.write("disk", &disk)?;
        self.boot(&path, cylinders)?;
        let mut disk = fs::File::open(&path).map_err(|source| Error::File {
            path: path.clone(),
            source,
        })?;
        let mut bytes = Vec::new();
        disk.read_to_end(&mut bytes)
            .map_err(|source| Error::File { path, source })?;
        let outcomes = bytes[results * SECTOR..].chunks_exact(Outcome::SIZE);
        Ok(outcomes.take(cases.len()).map(Outcome::from_bytes).collect())
    }

    fn boot(&self, disk: &Path, cylinders: usize) -> Result<(), Error> {
        let log = self.path("log");
        let configuration = format!(
            "megs: 64
cpu: model=corei7_icelake_u, count=1, ips=400000000, reset_on_triple_fault=0
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
sound: waveoutdrv=dummy, waveindrv=dummy, midioutdrv=dummy
",
            disk.display(),
            log.display()
        );
        let configuration = self.write("configuration", configuration.as_bytes())?;
        // Bochs with a debugger would wait for somebody to say so.
        let commands = self.write("commands", b"c\nq\n")?;
        let failed = |said: String| Error::Tool { tool: "bochs", said };
        let mut bochs = Command::new("bochs")
            .arg("-q")
            .arg("-f")
            .arg(configuration)
            .arg("-rc")
            .arg(commands)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| failed(error.to_string()))?;
        let start = Instant::now();
        while bochs.try_wait().map_err(|error| failed(error.to_string()))?.is_none() {
            if start.elapsed() > PATIENCE {
                let _ = bochs.kill();
                let _ = bochs.wait();
                return Err(failed(format!("comes to no end in {} s", PATIENCE.as_secs())));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = fs::remove_file(self.path("disk.lock"));
        let log = fs::read(&log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        if log.contains("Shutdown port") {
            return Ok(());
        }
        let last = log.lines().rev().take(20).collect::<Vec<_>>().join("\n");
        Err(failed(last))
    }
}

impl Drop for Bochs {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// As `executor.S` reads it.
fn write_case(case: &Case, disk: &mut Vec<u8>) {
    let start = disk.len();
    disk.extend(case.code);
    disk.extend((case.rip % 4096).to_le_bytes());
    disk.extend(case.vectors.to_le_bytes());
    disk.extend(case.mxcsr.to_le_bytes());
    disk.extend(case.replaced.to_le_bytes());
    disk.extend(case.flags.to_le_bytes());
    disk.extend(case.shown.to_le_bytes());
    disk.extend(case.data.to_le_bytes());
    for word in case.k.iter().chain(&case.gpr) {
        disk.extend(word.to_le_bytes());
    }
    disk.extend(case.replacement);
    debug_assert_eq!(disk.len() - start, CASE_SIZE);
}

/// Runs a tool, which must be content.
fn tool(name: &'static str, command: &mut Command) -> Result<(), Error> {
    let failed = |said: String| Error::Tool { tool: name, said };
    let output = command.output().map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(String::from_utf8_lossy(&output.stderr).into_owned()))
}

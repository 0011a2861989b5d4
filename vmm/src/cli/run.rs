//! `reprise run`: one microVM, from the command line or a snapshot to its end.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::{Failure, Host, USAGE, options, serve, usage_of};
use crate::api::{ApiServer, ApiSocket};
use crate::config::{
    ConsoleConfig, CpusConfig, DelayConfig, DiskConfig, MemoryConfig, PayloadConfig, RngConfig, VmConfig,
};
use crate::lifecycle::{End, Restore, Vmm, VmmError, WhenGuestEnds};
use crate::machine::MachineOptions;

/// The kernel's command line unless another is given: its console is the serial port.
const CMDLINE: &str = "console=ttyS0";

/// Boots one microVM, or restores one, and ends with it.
#[derive(Debug, Args)]
pub(super) struct Run {
    /// The kernel: a vmlinux (ELF), a bzImage, a distribution's vmlinuz or a Multiboot kernel.
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// The initial RAM file system.
    #[arg(long, value_name = "FILE")]
    initramfs: Option<PathBuf>,
    /// The kernel's command line.
    #[arg(long, value_name = "TEXT", default_value = CMDLINE)]
    cmdline: String,
    /// The processors: N or boot=N, with model=host, v2, v3 or v4 for what the guest sees,
    /// and translate=on to have a processor in software translate hot code.
    #[arg(long, value_name = "CPUS", value_parser = options::cpus, default_value = "1")]
    cpus: CpusConfig,
    /// The memory: 512M or size=512M.
    #[arg(long, value_name = "SIZE", value_parser = options::memory, default_value = "512M")]
    memory: MemoryConfig,
    /// A disk, its image raw: PATH or path=PATH, with readonly=on, num_queues=N, queue_size=N, serial=TEXT, id=NAME or
    /// sparse=off if need be. Repeat it for several.
    #[arg(long, value_name = "DISK", value_parser = options::disk, num_args = 1..)]
    disk: Vec<DiskConfig>,
    /// The source of entropy: PATH or src=PATH [default: /dev/urandom].
    #[arg(long, value_name = "SRC", value_parser = options::rng)]
    rng: Option<RngConfig>,
    /// The serial port: tty, null, off, file=PATH or socket=PATH [default: tty, or what the snapshot says]. Ctrl-A x ends a
    /// tty's machine.
    #[arg(long, value_name = "WHERE", value_parser = options::serial)]
    serial: Option<ConsoleConfig>,
    /// Instead of booting, go on from the snapshot in this folder, which must stay as long as the machine.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["kernel", "initramfs", "cmdline", "cpus", "memory", "disk", "rng", "inject_delay"])]
    restore: Option<PathBuf>,
    /// Read all memory of the snapshot at once; the folder is not needed afterwards.
    #[arg(long, requires = "restore", conflicts_with = "kernel")]
    prefault: bool,
    /// Serve the REST API too: a path, path=FILE, or fd=N for an inherited listening socket.
    #[arg(long, value_name = "SOCKET")]
    api_socket: Option<ApiSocket>,
    /// Let a byte v that the guest writes to port 0xF4 end the program with status (v << 1) | 1.
    #[arg(long)]
    debug_exit: bool,
    /// Have a device answer late, for tests: device=NAME,us=MIN..MAX with times in microseconds, or us=never or us=lost;
    /// seed=N and after=N if need be. Repeat it for several; * is every device.
    #[arg(long, value_name = "DELAY", value_parser = options::delay)]
    inject_delay: Vec<DelayConfig>,
    #[command(flatten)]
    host: Host,
}

impl Run {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        if self.kernel.is_none() && self.restore.is_none() {
            return Err(no_kernel());
        }
        let vmm = serve::vmm(
            &self.host,
            MachineOptions {
                debug_exit: self.debug_exit,
                ..MachineOptions::default()
            },
            WhenGuestEnds::End,
        )?;
        let server = self
            .api_socket
            .as_ref()
            .map(|socket| ApiServer::start(socket, vmm.clone()))
            .transpose()?;
        let end = self.begin(&vmm).map(|()| vmm.wait());
        drop(server);
        vmm.close();
        match end {
            Ok(End::PowerOff | End::Asked) => Ok(ExitCode::SUCCESS),
            Ok(End::DebugExit(value)) => Ok(ExitCode::from((value << 1) | 1)),
            Ok(End::Failed(reason)) => Err(Failure::new(reason)),
            Err(error) => {
                let usage = matches!(error, VmmError::BadConfig { .. });
                let failure = Failure::from(error);
                Err(if usage {
                    Failure { code: USAGE, ..failure }
                } else {
                    failure
                })
            }
        }
    }

    /// Makes the machine and lets it run.
    fn begin(self, vmm: &Vmm) -> Result<(), VmmError> {
        if let Some(folder) = &self.restore {
            let how = Restore {
                prefault: self.prefault,
                resume: true,
                serial: self.serial,
            };
            return vmm.restore(folder, how);
        }
        vmm.create(VmConfig {
            cpus: self.cpus,
            memory: self.memory,
            payload: PayloadConfig {
                firmware: None,
                kernel: self.kernel,
                cmdline: Some(self.cmdline),
                initramfs: self.initramfs,
            },
            disks: self.disk,
            rng: self.rng.unwrap_or_default(),
            serial: self.serial.unwrap_or_else(ConsoleConfig::tty),
            delays: self.inject_delay,
            ..VmConfig::default()
        })?;
        vmm.boot()
    }
}

fn no_kernel() -> Failure {
    Failure::usage(format!(
        "there is no kernel to boot: --kernel FILE is missing\n\n\
         FILE is a vmlinux (ELF), a bzImage, a distribution's vmlinuz or a Multiboot kernel. This makes a guest of Debian's kernel:\n\n    \
         scripts/guest.sh\n    \
         reprise run --kernel target/guest/vmlinux --initramfs target/guest/initramfs.cpio.gz\n\n{}",
        usage_of("run")
    ))
}

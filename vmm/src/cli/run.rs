//! `reprise run`: one microVM, from the command line or a snapshot to its end.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;

use super::{Failure, Host, USAGE, options, serve, usage_of};
use crate::api::{ApiServer, ApiSocket};
use crate::config::{
    BalloonConfig, ConsoleConfig, ConsoleMode, CpusConfig, DelayConfig, DiskConfig, FsConfig, LandlockConfig,
    MemoryConfig, NetConfig, PayloadConfig, RateLimitGroupConfig, RestoredNetConfig, RngConfig, UserDeviceConfig,
    VmConfig, VsockConfig,
};
use crate::lifecycle::{End, Restore, Vmm, VmmError, WhenGuestEnds};
use crate::machine::MachineOptions;
use crate::profile::{Profile, ProfileOptions};
use crate::sandbox::Sandbox;
use crate::snapshot::{Snapshot, SnapshotError};

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
    /// and translate=off to have a processor in software interpret all code.
    #[arg(long, value_name = "CPUS", value_parser = options::cpus, default_value = "1")]
    cpus: CpusConfig,
    /// The memory: 512M or size=512M.
    #[arg(long, value_name = "SIZE", value_parser = options::memory, default_value = "512M")]
    memory: MemoryConfig,
    /// A disk: PATH or path=PATH, with readonly=on, num_queues=N, queue_size=N, serial=TEXT, id=NAME, sparse=off,
    /// image_type=qcow2 or backing_files=on if need be. Repeat it for several.
    #[arg(long, value_name = "DISK", value_parser = options::disk, num_args = 1..)]
    disk: Vec<DiskConfig>,
    /// A network card: TAP or tap=TAP, which is made if it is not there, with ip=ADDRESS, mask=MASK and host_mac=MAC for the
    /// host's end, mac=MAC, mtu=N, num_queues=N, queue_size=N, id=NAME, offload_csum=off, offload_tso=off or offload_ufo=off if
    /// need be; fd=N or fd=[N,M] is a tap that is open already. Repeat it for several.
    #[arg(long, value_name = "NET", value_parser = options::net, num_args = 1..)]
    net: Vec<NetConfig>,
    /// A rate that several disks share by rate_limit_group=NAME: id=NAME with bw_size=BYTES and bw_refill_time=MILLISECONDS,
    /// ops_size=N and ops_refill_time=MILLISECONDS, or both. A disk or network card takes the same for itself alone.
    #[arg(long, value_name = "GROUP", value_parser = options::rate_limit_group, num_args = 1..)]
    rate_limit_group: Vec<RateLimitGroupConfig>,
    /// The source of entropy: PATH or src=PATH [default: /dev/urandom].
    #[arg(long, value_name = "SRC", value_parser = options::rng)]
    rng: Option<RngConfig>,
    /// A share by virtio-fs, which another process serves at a socket: tag=NAME,socket=PATH. Repeat it for several.
    #[arg(long, value_name = "SHARE", value_parser = options::fs, num_args = 1..)]
    fs: Vec<FsConfig>,
    /// A PCI device in another process, which serves vfio-user at a socket: PATH or socket=PATH, with id=NAME if need be. Repeat
    /// it for several.
    #[arg(long, value_name = "SOCKET", value_parser = options::user_device, num_args = 1..)]
    user_device: Vec<UserDeviceConfig>,
    /// The serial port: tty, pty, null, off, file=PATH or socket=PATH [default: tty unless that is the console's, or what the
    /// snapshot says]. Ctrl-A x ends a tty's machine.
    #[arg(long, value_name = "WHERE", value_parser = options::console)]
    serial: Option<ConsoleConfig>,
    /// The virtio console, hvc0, in the same words [default: off].
    #[arg(long, value_name = "WHERE", value_parser = options::console)]
    console: Option<ConsoleConfig>,
    /// Sockets between guest and host: cid=N,socket=PATH.
    #[arg(long, value_name = "VSOCK", value_parser = options::vsock)]
    vsock: Option<VsockConfig>,
    /// A balloon: SIZE or size=SIZE, with deflate_on_oom=on or free_page_reporting=on if need be.
    #[arg(long, value_name = "BALLOON", value_parser = options::balloon)]
    balloon: Option<BalloonConfig>,
    /// Instead of booting, go on from the snapshot in this folder, which must stay as long as the machine.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["kernel", "initramfs", "cmdline", "cpus", "memory", "disk", "net", "rate_limit_group", "rng", "fs", "user_device", "console", "vsock", "balloon", "inject_delay"])]
    restore: Option<PathBuf>,
    /// Read all memory of the snapshot at once; the folder is not needed afterwards.
    #[arg(long, requires = "restore", conflicts_with = "kernel")]
    prefault: bool,
    /// A tap for a network card of the snapshot whose tap was given as file descriptors: id=NAME,fd=N or fd=[N,M]. Repeat it for
    /// several.
    #[arg(long, value_name = "TAP", value_parser = options::net_fds, num_args = 1.., requires = "restore", conflicts_with = "kernel")]
    net_fds: Vec<RestoredNetConfig>,
    /// Serve the REST API too: a path, path=FILE, or fd=N for an inherited listening socket.
    #[arg(long, value_name = "SOCKET")]
    api_socket: Option<ApiSocket>,
    /// Let a byte v that the guest writes to port 0xF4 end the program with status (v << 1) | 1.
    #[arg(long)]
    debug_exit: bool,
    /// Write what the guest executes, sampled by instruction counts, as folded stacks for flame graphs: FILE or path=FILE, with
    /// symbols=FILE (a vmlinux with symbols, a System.map, a copy of /proc/kallsyms) or every=INSTRUCTIONS if need be. On a
    /// processor in software only.
    #[arg(long, value_name = "FILE")]
    profile: Option<ProfileOptions>,
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
        let named = match &self.restore {
            None => Sandbox::rules_of(&self.config()),
            Some(folder) => {
                let read = LandlockConfig::new(folder, "r");
                let refused = |source: SnapshotError| VmmError::Restore { source: source.into() };
                let mut named = Sandbox::rules_of(Snapshot::open(folder).map_err(refused)?.config());
                named.push(read);
                named
            }
        };
        let rules = self.host.rules(named, self.api_socket.as_ref());
        // Before the process is confined.
        let profile = match &self.profile {
            None => None,
            Some(options) => {
                let profile = Profile::open(options, self.kernel.as_ref()).map_err(no_profile)?;
                Some(Arc::new(profile))
            }
        };
        let vmm = serve::vmm(
            &self.host,
            rules,
            MachineOptions {
                debug_exit: self.debug_exit,
                profile: profile.clone(),
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
        if let Some(profile) = profile {
            profile.write().map_err(no_profile)?;
        }
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
                net_fds: self.net_fds,
            };
            return vmm.restore(folder, how);
        }
        vmm.create(self.config())?;
        vmm.boot()
    }

    /// The VM that the options ask for.
    fn config(&self) -> VmConfig {
        VmConfig {
            cpus: self.cpus.clone(),
            memory: self.memory.clone(),
            payload: PayloadConfig {
                firmware: None,
                kernel: self.kernel.clone(),
                cmdline: Some(self.cmdline.clone()),
                initramfs: self.initramfs.clone(),
            },
            disks: self.disk.clone(),
            net: self.net.clone(),
            rate_limit_groups: self.rate_limit_group.clone(),
            rng: self.rng.clone().unwrap_or_default(),
            fs: self.fs.clone(),
            user_devices: self.user_device.clone(),
            serial: self.serial.clone().unwrap_or_else(|| match &self.console {
                Some(console) if console.mode == ConsoleMode::Tty => ConsoleConfig::null(),
                _ => ConsoleConfig::tty(),
            }),
            console: self.console.clone().unwrap_or_default(),
            vsock: self.vsock.clone(),
            balloon: self.balloon.clone(),
            delays: self.inject_delay.clone(),
            ..VmConfig::default()
        }
    }
}

fn no_profile(error: std::io::Error) -> Failure {
    let mut failure = Failure::from(error);
    failure.chain.insert(0, "there is no profile".to_owned());
    failure
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

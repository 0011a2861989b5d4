//! `reprise ctl`: calls the REST API of a running `reprise`.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{Failure, client, options, print_json};
use crate::api::ApiSocket;
use crate::config::{
    DiskConfig, FsConfig, NetConfig, RestoreConfig, UserDeviceConfig, VmRemoveDevice, VmResize, VmResizeDisk,
    VmSnapshotConfig, VsockConfig, parse_size,
};
use crate::lifecycle::{VmInfo, VmState};

/// Calls the REST API of a running `reprise`.
#[derive(Debug, Args)]
pub(super) struct Ctl {
    /// The socket that the API is served on: a path or path=FILE.
    #[arg(long, value_name = "SOCKET", value_parser = socket_path)]
    api_socket: PathBuf,
    #[command(subcommand)]
    call: Call,
}

#[derive(Debug, Subcommand)]
enum Call {
    /// Says that the VMM is alive, and what it is.
    Ping,
    /// Prints the VM's configuration and state.
    Info,
    /// Prints figures by device and name.
    Counters,
    /// Makes a VM of a configuration.
    Create {
        /// The JSON; - is the standard input.
        file: PathBuf,
    },
    /// Starts the VM.
    Boot,
    /// Stops the vCPUs where they are.
    Pause,
    /// Continues a paused VM.
    Resume,
    /// Switches the VM off, as pulling the plug does.
    Shutdown,
    /// Switches the VM off and on.
    Reboot,
    /// Forgets the VM.
    Delete,
    /// Presses the power button.
    PowerButton,
    /// Writes the VM into a folder. A VM that runs is paused for as long as that takes.
    Snapshot {
        /// The folder: a free path, an empty folder, or a snapshot to replace.
        dir: PathBuf,
    },
    /// Makes a VM of a snapshot, paused: `resume` continues it.
    Restore {
        /// The folder that `snapshot` wrote. It must stay as long as the VM, unless --prefault is given.
        dir: PathBuf,
        /// Read all memory at once, instead of page by page when the guest touches it.
        #[arg(long)]
        prefault: bool,
        /// Continue the VM at once.
        #[arg(long)]
        resume: bool,
    },
    /// Adds a disk, as `run --disk` says it.
    AddDisk {
        /// The disk: PATH or path=PATH,…
        #[arg(value_parser = |text: &str| options::disk(text).map(Box::new))]
        disk: Box<DiskConfig>,
    },
    /// Adds a network card, as `run --net` says it. Its tap is opened by the server: file descriptors cannot be given.
    AddNet {
        /// The network card: TAP or tap=TAP,…
        #[arg(value_parser = |text: &str| options::net(text).map(Box::new))]
        net: Box<NetConfig>,
    },
    /// Adds sockets between guest and host, as `run --vsock` says it.
    AddVsock {
        /// The sockets: cid=N,socket=PATH,…
        #[arg(value_parser = options::vsock)]
        vsock: VsockConfig,
    },
    /// Adds a share by virtio-fs, as `run --fs` says it.
    AddFs {
        /// The share: tag=NAME,socket=PATH,…
        #[arg(value_parser = options::fs)]
        fs: FsConfig,
    },
    /// Adds a PCI device in another process, as `run --user-device` says it.
    AddUserDevice {
        /// Its socket: PATH or socket=PATH,…
        #[arg(value_parser = options::user_device)]
        device: UserDeviceConfig,
    },
    /// Removes a device: at once, or as soon as the guest lets go of it.
    RemoveDevice {
        /// Its name, as `info` has it.
        id: String,
    },
    /// Makes a disk larger.
    ResizeDisk {
        /// Its name.
        id: String,
        /// Its capacity: bytes, or a number with K, M, G or T.
        #[arg(value_parser = parse_size)]
        size: u64,
    },
    /// Changes what the balloon takes from the guest.
    Resize {
        /// How much: bytes, or a number with K, M, G or T.
        #[arg(long, value_parser = parse_size)]
        balloon: u64,
    },
    /// Ends the VMM.
    ShutdownVmm,
}

impl Call {
    /// Method and name of the call.
    fn line(&self) -> (&'static str, &'static str) {
        match self {
            Self::Ping => ("GET", "vmm.ping"),
            Self::Info => ("GET", "vm.info"),
            Self::Counters => ("GET", "vm.counters"),
            Self::Create { .. } => ("PUT", "vm.create"),
            Self::Boot => ("PUT", "vm.boot"),
            Self::Pause => ("PUT", "vm.pause"),
            Self::Resume => ("PUT", "vm.resume"),
            Self::Shutdown => ("PUT", "vm.shutdown"),
            Self::Reboot => ("PUT", "vm.reboot"),
            Self::Delete => ("PUT", "vm.delete"),
            Self::PowerButton => ("PUT", "vm.power-button"),
            Self::Snapshot { .. } => ("PUT", "vm.snapshot"),
            Self::Restore { .. } => ("PUT", "vm.restore"),
            Self::AddDisk { .. } => ("PUT", "vm.add-disk"),
            Self::AddNet { .. } => ("PUT", "vm.add-net"),
            Self::AddVsock { .. } => ("PUT", "vm.add-vsock"),
            Self::AddFs { .. } => ("PUT", "vm.add-fs"),
            Self::AddUserDevice { .. } => ("PUT", "vm.add-user-device"),
            Self::RemoveDevice { .. } => ("PUT", "vm.remove-device"),
            Self::ResizeDisk { .. } => ("PUT", "vm.resize-disk"),
            Self::Resize { .. } => ("PUT", "vm.resize"),
            Self::ShutdownVmm => ("PUT", "vmm.shutdown"),
        }
    }

    fn body(&self) -> Result<Vec<u8>, Failure> {
        match self {
            Self::Create { file } => read(file),
            Self::Snapshot { dir } => json(&VmSnapshotConfig {
                destination_url: Some(url(dir)?),
            }),
            Self::Restore { dir, prefault, resume } => json(&RestoreConfig {
                source_url: url(dir)?,
                prefault: *prefault,
                resume: *resume,
                ..RestoreConfig::default()
            }),
            Self::AddDisk { disk } => json(disk),
            Self::AddNet { net } if net.fds.is_some() => Err(Failure::usage(
                "fd is given; expected a tap's name, for the server has no file descriptors of ours",
            )),
            Self::AddNet { net } => json(net),
            Self::AddVsock { vsock } => json(vsock),
            Self::AddFs { fs } => json(fs),
            Self::AddUserDevice { device } => json(device),
            Self::RemoveDevice { id } => json(&VmRemoveDevice { id: id.clone() }),
            Self::ResizeDisk { id, size } => json(&VmResizeDisk {
                id: id.clone(),
                desired_size: *size,
            }),
            Self::Resize { balloon } => json(&VmResize {
                desired_balloon: Some(*balloon),
                ..VmResize::default()
            }),
            _ => Ok(Vec::new()),
        }
    }
}

impl Ctl {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let body = self.call.body()?;
        let answer = match self.call {
            Call::Snapshot { .. } => self.paused(|| self.make(&self.call, &body)),
            _ => self.make(&self.call, &body),
        }?;
        if !answer.is_empty() {
            print_json(&serde_json::from_slice(&answer)?)?;
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Makes a call; what was answered.
    fn make(&self, call: &Call, body: &[u8]) -> Result<Vec<u8>, Failure> {
        let (method, name) = call.line();
        let answer = client::call(&self.api_socket, method, name, body).map_err(|error| {
            let socket = self.api_socket.display();
            Failure {
                code: 1,
                chain: vec![format!("{name} cannot be called on {socket}"), error.to_string()],
            }
        })?;
        if (200..300).contains(&answer.status) {
            return Ok(answer.body);
        }
        let chain = serde_json::from_slice(&answer.body)
            .ok()
            .filter(|chain: &Vec<String>| !chain.is_empty())
            .unwrap_or_else(|| vec![format!("{name} was answered with status {}", answer.status)]);
        Err(Failure { code: 1, chain })
    }

    /// Does `what` while the VM is paused. If it ran before it runs again afterwards, whatever came of it.
    fn paused(&self, what: impl FnOnce() -> Result<Vec<u8>, Failure>) -> Result<Vec<u8>, Failure> {
        let info: VmInfo = serde_json::from_slice(&self.make(&Call::Info, &[])?)?;
        if info.state != VmState::Running {
            return what();
        }
        self.make(&Call::Pause, &[])?;
        let done = what();
        let resumed = self.make(&Call::Resume, &[]);
        done.and_then(|answer| resumed.map(|_| answer))
    }
}

fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    let mut text = Vec::new();
    let read = if file.as_os_str() == "-" {
        std::io::stdin().read_to_end(&mut text)
    } else {
        std::fs::File::open(file).and_then(|mut file| file.read_to_end(&mut text))
    };
    read.map_err(|error| Failure::new(format!("{} cannot be read: {error}", file.display())))?;
    Ok(text)
}

fn json(value: &impl Serialize) -> Result<Vec<u8>, Failure> {
    Ok(serde_json::to_vec(value)?)
}

/// The server may be in another folder than we are, so it is told the whole path.
fn url(dir: &Path) -> Result<String, Failure> {
    let unspeakable = || {
        Failure::usage(format!(
            "{dir:?} cannot be named to the server; expected a path in UTF-8"
        ))
    };
    let whole = std::path::absolute(dir).map_err(|_| unspeakable())?;
    Ok(format!("file://{}", whole.to_str().ok_or_else(unspeakable)?))
}

fn socket_path(text: &str) -> Result<PathBuf, String> {
    match text.parse()? {
        ApiSocket::Path(path) => Ok(path),
        ApiSocket::Fd(_) => Err("a call needs a path to connect to".to_owned()),
    }
}

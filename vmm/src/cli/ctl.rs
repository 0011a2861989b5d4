//! `reprise ctl`: calls the REST API of a running `reprise`.

use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{Failure, client, print_json};
use crate::api::ApiSocket;

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
            Self::ShutdownVmm => ("PUT", "vmm.shutdown"),
        }
    }

    fn body(&self) -> Result<Vec<u8>, Failure> {
        let Self::Create { file } = self else {
            return Ok(Vec::new());
        };
        let mut text = Vec::new();
        let read = if file.as_os_str() == "-" {
            std::io::stdin().read_to_end(&mut text)
        } else {
            std::fs::File::open(file).and_then(|mut file| file.read_to_end(&mut text))
        };
        read.map_err(|error| Failure::new(format!("{} cannot be read: {error}", file.display())))?;
        Ok(text)
    }
}

impl Ctl {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let (method, call) = self.call.line();
        let answer = client::call(&self.api_socket, method, call, &self.call.body()?).map_err(|error| {
            let socket = self.api_socket.display();
            Failure {
                code: 1,
                chain: vec![format!("{call} cannot be called on {socket}"), error.to_string()],
            }
        })?;
        if !(200..300).contains(&answer.status) {
            let chain = serde_json::from_slice(&answer.body)
                .ok()
                .filter(|chain: &Vec<String>| !chain.is_empty())
                .unwrap_or_else(|| vec![format!("{call} was answered with status {}", answer.status)]);
            return Err(Failure { code: 1, chain });
        }
        if !answer.body.is_empty() {
            print_json(&serde_json::from_slice(&answer.body)?)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn socket_path(text: &str) -> Result<PathBuf, String> {
    match text.parse()? {
        ApiSocket::Path(path) => Ok(path),
        ApiSocket::Fd(_) => Err("a call needs a path to connect to".to_owned()),
    }
}

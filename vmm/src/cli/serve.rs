//! `reprise serve`: the REST API for a microVM that its clients make.

use std::process::ExitCode;
use std::thread;

use clap::Args;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::{Failure, Host, events, hypervisor};
use crate::api::{ApiServer, ApiSocket};
use crate::config::LandlockConfig;
use crate::lifecycle::{HypervisorGuests, Vmm, WhenGuestEnds};
use crate::machine::MachineOptions;

/// Serves the REST API for a microVM that its clients make.
#[derive(Debug, Args)]
pub(super) struct Serve {
    /// Where the API is served: a path, path=FILE, or fd=N for an inherited listening socket.
    #[arg(long, value_name = "SOCKET")]
    api_socket: ApiSocket,
    #[command(flatten)]
    host: Host,
}

impl Serve {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let rules = self.host.rules(Vec::new(), Some(&self.api_socket));
        let vmm = vmm(&self.host, rules, MachineOptions::default(), WhenGuestEnds::Stay)?;
        let server = ApiServer::start(&self.api_socket, vmm.clone())?;
        vmm.wait();
        // First the server, so that the answer to vmm.shutdown is out and no further call comes.
        drop(server);
        vmm.close();
        Ok(ExitCode::SUCCESS)
    }
}

/// The VMM that `run` and `serve` work with, confined, with `rules` for what the whole process may open. The first SIGINT or SIGTERM asks it to end, the second ends the process.
pub(super) fn vmm(
    host: &Host,
    rules: Option<Vec<LandlockConfig>>,
    options: MachineOptions,
    when_guest_ends: WhenGuestEnds,
) -> Result<Vmm, Failure> {
    // Before there is a thread: each inherits it.
    host.sandbox.enter(rules)?;
    let events = events(host.event_monitor.as_ref())?;
    let options = MachineOptions {
        events: events.clone(),
        ..options
    };
    let (hypervisor, why) = hypervisor::open(host.hypervisor)?;
    let guests = HypervisorGuests::new(hypervisor, options).because(why);
    let vmm = Vmm::new(guests, when_guest_ends, events)?;
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let asked = vmm.clone();
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for (count, signal) in signals.forever().enumerate() {
            tracing::info!(signal, "asked to end");
            if count > 0 {
                // Whoever asks twice does not want to wait for what hangs.
                std::process::exit(1);
            }
            asked.request_end();
        }
    })?;
    Ok(vmm)
}

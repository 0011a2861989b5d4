//! The command line of the binary `reprise`.
//!
//! Exit status: 0 the guest powered off, or the program was asked to end and did; 1 the VMM, a vCPU or a call failed; 2
//! wrong usage. With `run --debug-exit`, a byte v that the guest writes to port 0xF4 gives `(v << 1) | 1`.

mod client;
mod ctl;
mod hypervisor;
mod options;
mod run;
mod sandbox;
mod serve;

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};
use tracing::level_filters::LevelFilter;

use crate::events::{EventTarget, Events};
use crate::lifecycle::chain;

/// The status for wrong usage, which clap also gives.
const USAGE: u8 = 2;

/// A virtual machine monitor: microVMs over a REST API, on KVM or on a CPU in software.
#[derive(Debug, Parser)]
#[command(name = "reprise", version, arg_required_else_help = true)]
struct Cli {
    /// Log more: -v what happens, -vv how, -vvv everything.
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Boots one microVM, or restores one, and ends with it.
    Run(Box<run::Run>),
    /// Serves the REST API for a microVM that its clients make.
    Serve(serve::Serve),
    /// Calls the REST API of a running `reprise`.
    Ctl(ctl::Ctl),
    /// Prints the OpenAPI document of the REST API.
    Openapi,
}

/// What `run` and `serve` have in common.
#[derive(Debug, Args)]
struct Host {
    /// Where the CPU is: auto, kvm or soft.
    #[arg(long, value_enum, default_value_t = hypervisor::Choice::Auto, value_name = "KIND")]
    hypervisor: hypervisor::Choice,
    /// Where events go, one JSON object a line: path=FILE or fd=N.
    #[arg(long, value_name = "TARGET")]
    event_monitor: Option<EventTarget>,
    #[command(flatten)]
    sandbox: sandbox::Options,
}

/// Runs the program with the arguments of the process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    log(cli.verbose);
    let result = match cli.command {
        Command::Run(run) => run.run(),
        Command::Serve(serve) => serve.run(),
        Command::Ctl(ctl) => ctl.run(),
        Command::Openapi => openapi(),
    };
    match result {
        Ok(code) => code,
        Err(failure) => {
            failure.tell();
            ExitCode::from(failure.code)
        }
    }
}

/// Why the program ends without having done what it was told.
#[derive(Debug)]
struct Failure {
    /// The exit status.
    code: u8,
    /// From the outermost to the root.
    chain: Vec<String>,
}

impl Failure {
    fn new(text: impl Into<String>) -> Self {
        Self {
            code: 1,
            chain: vec![text.into()],
        }
    }

    fn usage(text: impl Into<String>) -> Self {
        Self {
            code: USAGE,
            chain: vec![text.into()],
        }
    }

    fn tell(&self) {
        let mut text = String::new();
        for (i, cause) in self.chain.iter().enumerate() {
            let start = if i == 0 { "error" } else { "  caused by" };
            text += &format!("{start}: {cause}\n");
        }
        // Nobody is left to tell if this fails.
        let _ = io::stderr().write_all(text.as_bytes());
    }
}

impl<E: Error + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self {
            code: 1,
            chain: chain(&error),
        }
    }
}

/// Starts the log, on the standard error.
fn log(verbose: u8) {
    let level = match verbose {
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        2 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_max_level(level)
        .with_timer(tracing_subscriber::fmt::time::uptime())
        // A log that nobody reads any more must not end the VMM, which complaining to a closed stream would.
        .log_internal_errors(false)
        .init();
}

fn events(target: Option<&EventTarget>) -> Result<Events, Failure> {
    let Some(target) = target else {
        return Ok(Events::default());
    };
    Events::open(target).map_err(|error| {
        let mut failure = Failure::from(error);
        failure
            .chain
            .insert(0, format!("the event stream {target} cannot be opened"));
        failure
    })
}

fn openapi() -> Result<ExitCode, Failure> {
    print_json(&crate::api::document())?;
    Ok(ExitCode::SUCCESS)
}

fn print_json(value: &serde_json::Value) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value)?;
    writeln!(out)
}

/// For the usage line in messages of our own.
fn usage_of(command: &str) -> String {
    let mut cli = Cli::command();
    cli.build();
    cli.find_subcommand_mut(command)
        .map(|command| command.render_usage().to_string())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}

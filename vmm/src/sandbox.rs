//! What the process and its threads may still ask of the operating system, should a guest take one over.
//!
//! # Purpose
//! Two nets of different mesh. *seccomp* lets each kind of thread make the system calls that it is there for, and ends the
//! process at any other. *Landlock* lets a thread open nothing but what it was told: the threads that serve a guest (vCPUs,
//! queues, consoles) work on files that others have opened, so they may open none at all.
//!
//! # Invariants
//! - A thread inherits what confines its maker, and can only be confined further.
//! - A system call that is not let through ends the process with a message that names thread and call ([`trap`]).
//! - Landlock for the whole process cannot be widened: files that are named later, over the API, have to lie beneath what
//!   was let through when it began. [`Sandbox::confines`] tells whether they do, for an error that says so.
//!
//! # Life
//! [`Sandbox::enter`] once, before the process has threads; [`confine`] at the beginning of each thread that serves a guest.
//! Without the former the latter does nothing, so that a program which embeds a machine confines itself in its own way.

mod calls;
mod landlock;
mod paths;
mod seccomp;
mod trap;

use std::fmt::Display;
use std::io;
use std::path::PathBuf;
use std::sync::OnceLock;

use reprise_devices::thread::ThreadKind;
use seccompiler::BpfProgram;

use crate::config::{ConfigError, LandlockConfig, VmConfig};

pub use landlock::LandlockError;

/// What becomes of a system call that a filter does not let through.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Seccomp {
    /// The process ends, and says why.
    #[default]
    On,
    /// It is made, and the system's log tells of it.
    Log,
    /// There are no filters.
    Off,
}

/// What confines the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    /// Which system calls its threads may make.
    pub seccomp: Seccomp,
    /// Whether the threads that serve a guest may open files.
    pub landlock: bool,
    /// What the whole process may open; `None` for anything.
    pub rules: Option<Vec<LandlockConfig>>,
}

/// The process cannot be confined.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A filter cannot be made or installed.
    #[error("the system call filters cannot be installed; --seccomp off goes without")]
    Seccomp {
        /// Why.
        #[from]
        source: seccompiler::Error,
    },
    /// Nobody would tell of a call that is not let through.
    #[error("SIGSYS cannot be handled")]
    Signal {
        /// Why.
        source: io::Error,
    },
    /// Landlock refuses.
    #[error("the process cannot be confined with Landlock; --landlock off goes without")]
    Landlock {
        /// Why.
        #[from]
        source: LandlockError,
    },
}

/// Which thread is confined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One that runs a vCPU.
    Vcpu,
    /// One of a device.
    Device(ThreadKind),
}

/// What is in force.
struct InForce {
    landlock: bool,
    /// What the whole process may open.
    rules: Option<Vec<LandlockConfig>>,
    vcpu: Vec<BpfProgram>,
    queue: Vec<BpfProgram>,
    console: Vec<BpfProgram>,
    keyboard: Vec<BpfProgram>,
    user_device: Vec<BpfProgram>,
}

static IN_FORCE: OnceLock<InForce> = OnceLock::new();

impl Sandbox {
    /// Confines the process, which has no threads yet, and all threads that it makes.
    ///
    /// # Errors
    /// [`SandboxError`]; the process may be confined in part then.
    pub fn enter(self) -> Result<(), SandboxError> {
        if let Some(rules) = &self.rules {
            landlock::restrict(rules)?;
        }
        let filters = |kind| seccomp::programs(kind, self.seccomp);
        let in_force = InForce {
            landlock: self.landlock,
            rules: self.rules.clone(),
            vcpu: filters(calls::Filter::Vcpu)?,
            queue: filters(calls::Filter::Queue)?,
            console: filters(calls::Filter::Console)?,
            keyboard: filters(calls::Filter::Keyboard)?,
            user_device: filters(calls::Filter::UserDevice)?,
        };
        if self.seccomp != Seccomp::Off {
            trap::explain()?;
        }
        seccomp::apply(&filters(calls::Filter::Process)?)?;
        // Only the first one counts; a second one could not take anything back.
        let _ = IN_FORCE.set(in_force);
        reprise_devices::thread::on_start(|kind| confine(Kind::Device(kind)));
        Ok(())
    }

    /// What the whole process is let to open for `config`, besides what it needs whatever it runs.
    #[must_use]
    pub fn rules_of(config: &VmConfig) -> Vec<LandlockConfig> {
        paths::named(config).iter().map(paths::Named::rule).collect()
    }

    /// Whether the process, as it is confined, can open what `config` names.
    ///
    /// # Errors
    /// [`ConfigError::Value`] naming the first path that it cannot, and what it was let through.
    pub fn confines(config: &VmConfig) -> Result<(), ConfigError> {
        let Some(rules) = IN_FORCE.get().and_then(|in_force| in_force.rules.as_ref()) else {
            return Ok(());
        };
        let beneath = |named: &paths::Named| paths::beneath(&named.path, rules);
        match paths::named(config).into_iter().find(|named| !beneath(named)) {
            None => Ok(()),
            Some(named) => Err(refusal(&named.field, named.path.display(), rules)),
        }
    }

    /// Whether the process, as it is confined, may use `path`, which `field` names.
    ///
    /// # Errors
    /// As [`confines`](Self::confines).
    pub fn lets_through(field: &str, path: &std::path::Path) -> Result<(), ConfigError> {
        match IN_FORCE.get().and_then(|in_force| in_force.rules.as_ref()) {
            Some(rules) if !paths::beneath(path, rules) => Err(refusal(field, path.display(), rules)),
            _ => Ok(()),
        }
    }
}

fn refusal(field: &str, path: impl Display, rules: &[LandlockConfig]) -> ConfigError {
    let places: Vec<PathBuf> = rules.iter().map(|rule| rule.path.clone()).collect();
    ConfigError::Value {
        field: field.to_owned(),
        value: path.to_string(),
        expected: format!("a path that Landlock lets through (--landlock-rules), beneath one of {places:?}"),
    }
}

/// Confines the calling thread, if the process is.
///
/// A thread that cannot be confined must not serve a guest: the process ends.
pub fn confine(kind: Kind) {
    let Some(in_force) = IN_FORCE.get() else { return };
    let filters = match kind {
        Kind::Vcpu => &in_force.vcpu,
        Kind::Device(ThreadKind::Queue) => &in_force.queue,
        Kind::Device(ThreadKind::Console) => &in_force.console,
        Kind::Device(ThreadKind::Keyboard) => &in_force.keyboard,
        Kind::Device(ThreadKind::UserDevice) => &in_force.user_device,
    };
    trap::name(kind);
    let confined = || -> Result<(), SandboxError> {
        if in_force.landlock {
            landlock::restrict_thread(kind)?;
        }
        Ok(seccomp::apply(filters)?)
    };
    if let Err(error) = confined() {
        tracing::error!(
            error = &error as &dyn std::error::Error,
            ?kind,
            "a thread cannot be confined; the process ends"
        );
        std::process::exit(1);
    }
}

//! How the command line says what confines the process.

use clap::{ArgAction, Args, ValueEnum};

use super::{Failure, Host, options};
use crate::api::ApiSocket;
use crate::config::LandlockConfig;
use crate::events::EventTarget;
use crate::sandbox::{Sandbox, Seccomp};

/// What confines the process.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// What becomes of a system call that a thread is not there for: the process ends (on), the system's log tells of it (log),
    /// or nothing (off).
    #[arg(long, value_enum, default_value_t = Filters::On, value_name = "WHAT")]
    seccomp: Filters,
    /// Whether the threads that serve the guest may open no file, and the whole process only what the options name if no API
    /// call can name more.
    #[arg(long, action = ArgAction::Set, value_parser = clap::builder::BoolishValueParser::new(), default_value = "on",
        default_missing_value = "on", num_args = 0..=1, value_name = "ON|OFF")]
    landlock: bool,
    /// What the whole process may open besides: path=PATH,access=r, w or rw. Repeat it for several. With an API this is all that
    /// calls may name.
    #[arg(long, value_name = "RULE", value_parser = options::landlock_rule, num_args = 1..)]
    landlock_rules: Vec<LandlockConfig>,
}

/// Filters of system calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Filters {
    #[value(alias = "true")]
    On,
    Log,
    #[value(alias = "false")]
    Off,
}

impl Options {
    /// Confines the process, which may open what `rules` say, or anything.
    pub(super) fn enter(&self, rules: Option<Vec<LandlockConfig>>) -> Result<(), Failure> {
        Ok(Sandbox {
            seccomp: match self.seccomp {
                Filters::On => Seccomp::On,
                Filters::Log => Seccomp::Log,
                Filters::Off => Seccomp::Off,
            },
            landlock: self.landlock,
            rules,
        }
        .enter()?)
    }
}

impl Host {
    /// What the whole process may open when its options name what `named` says: anything, where API calls name more and no
    /// rules were given for that.
    pub(super) fn rules(&self, named: Vec<LandlockConfig>, api: Option<&ApiSocket>) -> Option<Vec<LandlockConfig>> {
        let Options {
            landlock,
            landlock_rules,
            ..
        } = &self.sandbox;
        if !landlock || (api.is_some() && landlock_rules.is_empty()) {
            return None;
        }
        let mut rules = named;
        rules.extend(landlock_rules.iter().cloned());
        let made = [
            api.and_then(|socket| match socket {
                ApiSocket::Path(path) => Some(path),
                ApiSocket::Fd(_) => None,
            }),
            self.event_monitor.as_ref().and_then(|target| match target {
                EventTarget::Path(path) => Some(path),
                EventTarget::Fd(_) => None,
            }),
        ];
        for path in made.into_iter().flatten() {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            rules.push(LandlockConfig::new(folder.unwrap_or_else(|| ".".as_ref()), "rw"));
        }
        Some(rules)
    }
}

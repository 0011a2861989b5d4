//! What may be opened (Linux' `Documentation/userspace-api/landlock.rst`).
//!
//! A kernel that knows less of it confines less, and one without it not at all: the log says so.

use std::io;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, BitFlags, PathBeneath, PathFd, PathFdError, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, RulesetStatus,
};

use super::Kind;
use super::paths::{ALWAYS_READ, ALWAYS_WRITTEN};
use crate::config::LandlockConfig;

/// The newest that this program knows.
const NEWEST: ABI = ABI::V5;

/// Where a vCPU's thread reads how the host schedules it.
const SCHEDULED: &str = "/proc/thread-self/schedstat";

/// Landlock refuses.
#[derive(Debug, thiserror::Error)]
pub enum LandlockError {
    /// A rule names nothing that is there.
    #[error("the Landlock rule for {} names nothing that can be opened", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// Why.
        source: PathFdError,
    },
    /// A rule says something else than what may be done.
    #[error("the Landlock rule for {} lets {access:?} be done; expected r, w or rw", path.display())]
    Access {
        /// The path.
        path: PathBuf,
        /// What it says.
        access: String,
    },
    /// The system refuses.
    #[error("Landlock cannot be put in force")]
    Ruleset {
        /// Why.
        #[from]
        source: RulesetError,
    },
    /// The system refuses.
    #[error("Landlock cannot be put in force")]
    Io {
        /// Why.
        #[from]
        source: io::Error,
    },
}

/// Lets the process, which has no other threads, open nothing but what `rules` say and what it needs whatever it runs.
pub(super) fn restrict(rules: &[LandlockConfig]) -> Result<(), LandlockError> {
    let everything = AccessFs::from_all(NEWEST);
    let mut set = Ruleset::default().handle_access(everything)?.create()?;
    for (paths, access) in [
        (&ALWAYS_READ, AccessFs::from_read(NEWEST)),
        (&ALWAYS_WRITTEN, everything),
    ] {
        // Not every host has all of them.
        for path in paths.iter().filter_map(|path| PathFd::new(path).ok()) {
            set = set.add_rule(PathBeneath::new(path, access))?;
        }
    }
    for rule in rules {
        let access = access(rule)?;
        let path = PathFd::new(&rule.path).map_err(|source| LandlockError::Path {
            path: rule.path.clone(),
            source,
        });
        match path {
            Ok(path) => set = set.add_rule(PathBeneath::new(path, of(&rule.path, access)))?,
            // What is not there cannot be opened either, and who tries says so better.
            Err(error) => tracing::debug!(error = &error as &dyn std::error::Error, "no rule"),
        }
    }
    if set.restrict_self()?.ruleset == RulesetStatus::NotEnforced {
        tracing::warn!("this kernel has no Landlock: the process may open anything");
    }
    Ok(())
}

/// Lets the calling thread, which is to serve a guest, open nothing; a vCPU's, how the host schedules it.
pub(super) fn restrict_thread(kind: Kind) -> Result<(), LandlockError> {
    let mut set = Ruleset::default().handle_access(AccessFs::from_all(NEWEST))?.create()?;
    if kind == Kind::Vcpu
        && let Ok(path) = PathFd::new(SCHEDULED)
    {
        set = set.add_rule(PathBeneath::new(path, AccessFs::ReadFile))?;
    }
    set.restrict_self()?;
    Ok(())
}

fn access(rule: &LandlockConfig) -> Result<BitFlags<AccessFs>, LandlockError> {
    let write = AccessFs::from_all(NEWEST) & !AccessFs::from_read(NEWEST);
    match rule.access.as_str() {
        "r" => Ok(AccessFs::from_read(NEWEST)),
        "w" => Ok(write),
        "rw" => Ok(AccessFs::from_all(NEWEST)),
        other => Err(LandlockError::Access {
            path: rule.path.clone(),
            access: other.to_owned(),
        }),
    }
}

/// What of `access` makes sense for `path`: folders have more to be done with than files.
fn of(path: &Path, access: BitFlags<AccessFs>) -> BitFlags<AccessFs> {
    if path.is_dir() {
        access
    } else {
        access & AccessFs::from_file(NEWEST)
    }
}

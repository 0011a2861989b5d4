//! A machine in a folder: saved by one process, restored in another.
//!
//! # Purpose
//! The folder has the configuration (`config.json`), the state of vCPUs, clocks, interrupt controllers and devices
//! (`state.json`), and the memory (`memory`). What an instruction in flight has seen is part of its vCPU's state, so that it is
//! finished in the new process as if nothing had happened.
//!
//! # Invariants
//! - A folder has a whole snapshot or none: see [`folder`].
//! - Every byte of it is covered by a checksum, which guards against accidents, not against malice: a snapshot is as
//!   trusted as the program that wrote it.
//! - Nothing is given to a guest before all of it was checked.
//!
//! # Life
//! A machine is held, [`save`] writes the folder, the machine goes on. Later: [`Snapshot::open`] checks all but the memory,
//! [`Snapshot::memory`] checks and maps that, and the machine is built around it.

mod error;
mod folder;
mod memory;
mod pages;
mod state;

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use reprise_hypervisor::GuestMemory;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::config::VmConfig;
use folder::{CONFIG, Draft, Folder, MEMORY, STATE};

pub use error::SnapshotError;
pub use memory::Prefault;

/// Writes a snapshot at `destination`: a free path, an empty folder, or a snapshot to replace. Of a machine that is held:
/// nothing may change meanwhile.
///
/// # Errors
/// [`SnapshotError`]; what was at `destination` before is then still there.
pub fn save<T: Serialize>(
    destination: &Path,
    config: &VmConfig,
    memory: &GuestMemory,
    machine: &T,
) -> Result<(), SnapshotError> {
    let mut draft = Draft::begin(destination)?;
    let file = draft.create(MEMORY)?;
    let memory = memory::write(file, memory).map_err(|source| draft.unwritable(MEMORY, source))?;
    let unspeakable = |draft: &Draft, name| {
        let path = draft.path(name);
        move |source| SnapshotError::Content { path, source }
    };
    let config = serde_json::to_vec_pretty(config).map_err(unspeakable(&draft, CONFIG))?;
    let content = state::Content {
        config: state::Text::of(&config),
        memory,
        machine,
    };
    let state = state::render(&content).map_err(unspeakable(&draft, STATE))?;
    for (name, text) in [(CONFIG, config), (STATE, state)] {
        let written = draft.create(name)?.write_all(&text);
        written.map_err(|source| draft.unwritable(name, source))?;
    }
    draft.publish()
}

/// A snapshot that was found whole, its files open: it stays what it is, whatever becomes of the folder.
#[derive(Debug)]
pub struct Snapshot {
    config: VmConfig,
    /// Of `state.json`, for messages.
    path: PathBuf,
    machine: Box<RawValue>,
    memory: Memory,
}

#[derive(Debug)]
struct Memory {
    file: Arc<File>,
    path: PathBuf,
    record: memory::Record,
}

impl Snapshot {
    /// Opens the snapshot at `source` and checks everything but the memory.
    ///
    /// # Errors
    /// [`SnapshotError`] if there is none, or it is not what was written.
    pub fn open(source: &Path) -> Result<Self, SnapshotError> {
        let mut folder = Folder::open(source)?;
        let mut read = |name| -> Result<(PathBuf, Vec<u8>), SnapshotError> {
            let (mut text, path) = (Vec::new(), folder.path(name));
            match folder.file(name).read_to_end(&mut text) {
                Ok(_) => Ok((path, text)),
                Err(source) => Err(SnapshotError::Read { path, source }),
            }
        };
        let (path, text) = read(STATE)?;
        let content = state::parse(&path, &text)?;
        let (config_path, text) = read(CONFIG)?;
        content.config.check(&config_path, &text)?;
        let config = serde_json::from_slice(&text).map_err(|source| SnapshotError::Content {
            path: config_path,
            source,
        })?;
        Ok(Self {
            config,
            path,
            machine: content.machine,
            memory: Memory {
                path: folder.path(MEMORY),
                file: Arc::new(folder.file(MEMORY)),
                record: content.memory,
            },
        })
    }

    /// The configuration of the machine.
    pub fn config(&self) -> &VmConfig {
        &self.config
    }

    /// Changes the configuration of the machine that is restored. Only what the guest cannot see may differ.
    pub fn config_mut(&mut self) -> &mut VmConfig {
        &mut self.config
    }

    /// The state of the machine, as it was given to [`save`].
    ///
    /// # Errors
    /// [`SnapshotError::Content`] if it is no `T`.
    pub fn machine<T: DeserializeOwned>(&self) -> Result<T, SnapshotError> {
        serde_json::from_str(self.machine.get()).map_err(|source| SnapshotError::Content {
            path: self.path.clone(),
            source,
        })
    }

    /// The memory of the machine, once it was found whole.
    ///
    /// # Errors
    /// [`SnapshotError`] naming the part that is not what was written.
    pub fn memory(&self, prefault: Prefault) -> Result<GuestMemory, SnapshotError> {
        let Memory { file, path, record } = &self.memory;
        memory::map(file, path, record, prefault)
    }
}

#[cfg(test)]
mod tests;

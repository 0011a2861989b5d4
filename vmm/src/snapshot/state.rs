//! `state.json`: what format and version this is, what the other files must be, and the machine's state.
//!
//! # Invariants
//! - `format` and `version` stand at the top in every version, so that each can tell what another one wrote.
//! - The text is exactly what [`render`] makes of what it says, and what it says has a checksum: no byte of it can change
//!   unnoticed.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{SnapshotError, memory};

/// What this is.
const FORMAT: &str = "reprise-snapshot";

/// Counts changes of the format: of this file, of the memory's, of the machine's state.
pub(super) const VERSION: u64 = 3;

/// The machine's state, and what the other files must be.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Content<T> {
    pub(super) config: Text,
    pub(super) memory: memory::Record,
    pub(super) machine: T,
}

/// What is known of a file of text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Text {
    length: u64,
    crc32: u32,
}

impl Text {
    pub(super) fn of(text: &[u8]) -> Self {
        Self {
            length: text.len() as u64,
            crc32: crc32fast::hash(text),
        }
    }

    /// Whether `text`, which was at `path`, is what it was.
    ///
    /// # Errors
    /// [`SnapshotError::Length`] or [`SnapshotError::Damaged`].
    pub(super) fn check(self, path: &Path, text: &[u8]) -> Result<(), SnapshotError> {
        let found = Self::of(text);
        let path = path.to_owned();
        if found.length != self.length {
            return Err(SnapshotError::Length {
                path,
                found: found.length,
                expected: self.length,
            });
        }
        if found.crc32 != self.crc32 {
            let what = "it does not match its checksum in state.json".to_owned();
            return Err(SnapshotError::Damaged { path, what });
        }
        Ok(())
    }
}

/// What every version has.
#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    format: Option<String>,
    #[serde(default)]
    version: Option<u64>,
}

/// The file.
#[derive(Serialize, Deserialize)]
struct Envelope<'a> {
    format: &'a str,
    version: u64,
    /// CRC-32 of the text of `content`.
    crc32: u32,
    #[serde(borrow)]
    content: &'a RawValue,
}

/// The text of the file.
///
/// # Errors
/// If `content` is nothing that JSON can say.
pub(super) fn render<T: Serialize>(content: &Content<T>) -> serde_json::Result<Vec<u8>> {
    let content = serde_json::value::to_raw_value(content)?;
    envelop(&content)
}

fn envelop(content: &RawValue) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&Envelope {
        format: FORMAT,
        version: VERSION,
        crc32: crc32fast::hash(content.get().as_bytes()),
        content,
    })
}

/// Reads the text of the file at `path`.
///
/// # Errors
/// [`SnapshotError`] telling whether it is something else, another version's, or damaged.
pub(super) fn parse(path: &Path, text: &[u8]) -> Result<Content<Box<RawValue>>, SnapshotError> {
    let damaged = |what: String| SnapshotError::Damaged {
        path: path.to_owned(),
        what,
    };
    let unreadable = |error: serde_json::Error| damaged(error.to_string());
    let head: Head = serde_json::from_slice(text).map_err(unreadable)?;
    let (Some(FORMAT), Some(found)) = (head.format.as_deref(), head.version) else {
        return Err(SnapshotError::Format { path: path.to_owned() });
    };
    if found != VERSION {
        return Err(SnapshotError::Version {
            path: path.to_owned(),
            found,
            reads: VERSION,
        });
    }
    let envelope: Envelope<'_> = serde_json::from_slice(text).map_err(unreadable)?;
    if envelop(envelope.content).map_err(unreadable)? != text {
        return Err(damaged("it does not match its checksum".to_owned()));
    }
    serde_json::from_str(envelope.content.get()).map_err(|source| SnapshotError::Content {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests;

//! virtio-rng: entropy from a file of the host (virtio 1.2, "Entropy Device").

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::chain::{Chain, ChainError};
use super::device::{DeviceKind, Handled, QueueHandler, VirtioDevice};

/// Descriptors of its only queue.
const QUEUE_SIZE: u16 = 64;
/// The most bytes that one request gets. A driver asks again; nobody waits long for a large one.
const MOST: usize = 4096;

/// The file cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("the source of entropy {} cannot be opened", path.display())]
pub struct RngError {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

/// A source of entropy.
#[derive(Debug)]
pub struct Rng {
    source: Arc<File>,
    counters: Arc<Counters>,
}

#[derive(Debug, Default)]
struct Counters {
    bytes: AtomicU64,
    errors: AtomicU64,
}

impl Rng {
    /// Gives what can be read from the file at `path`, `/dev/urandom` for example.
    ///
    /// # Errors
    /// [`RngError`] if it cannot be opened.
    pub fn open(path: &Path) -> Result<Self, RngError> {
        let file = File::open(path).map_err(|source| RngError {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            source: Arc::new(file),
            counters: Arc::default(),
        })
    }
}

impl VirtioDevice for Rng {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Entropy
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn handler(&self, _index: u16) -> Box<dyn QueueHandler> {
        Box::new(Handler {
            source: Arc::clone(&self.source),
            counters: Arc::clone(&self.counters),
        })
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("bytes", self.counters.bytes.load(Ordering::Relaxed)),
            ("errors", self.counters.errors.load(Ordering::Relaxed)),
        ]
    }
}

struct Handler {
    source: Arc<File>,
    counters: Arc<Counters>,
}

impl QueueHandler for Handler {
    fn handle(&mut self, chain: &Chain<'_>) -> Result<Handled, ChainError> {
        let wanted = usize::try_from(chain.writable()).unwrap_or(MOST).min(MOST);
        if wanted == 0 {
            return Err(ChainError::Short);
        }
        let mut bytes = [0; MOST];
        let read = (&*self.source).read(&mut bytes[..wanted]).unwrap_or_else(|error| {
            if self.counters.errors.fetch_add(1, Ordering::Relaxed) == 0 {
                tracing::warn!(%error, "the source of entropy cannot be read");
            }
            0
        });
        chain.write(0, &bytes[..read])?;
        self.counters.bytes.fetch_add(read as u64, Ordering::Relaxed);
        Ok(Handled::Used(read as u32))
    }
}

#[cfg(test)]
mod tests;

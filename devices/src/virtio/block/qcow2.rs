//! Images in the format qcow2, by way of the crate `imago`.
//!
//! # Invariants
//! - No other file is opened than the image's own, unless the caller allows backing files: what an image refers to is as
//!   trustworthy as whoever wrote it.
//! - Every file of a chain is locked like a disk's: one writer, or any number of readers; backing files are only read.
//! - An image that was cut off is refused, for what is missing would read as zeros.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use imago::file::File as Storage;
use imago::format::gate::ImplicitOpenGate;
use imago::{FormatAccess, FormatDriverBuilder, StorageOpenOptions};

use super::{BlockError, lock_image};
use crate::sync::lock;

/// The most files of a chain.
const MOST_FILES: usize = 32;
/// The most bytes of tables that are looked at when an image is opened: those of 32 TiB in clusters of 64 KiB hold more.
const MOST_TABLES: u64 = 64 << 20;
/// The bits of an entry of a table that tell where a cluster is.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// In an entry of a second-level table: the cluster is compressed, and stands elsewhere.
const COMPRESSED: u64 = 1 << 62;

/// An open image.
#[derive(Debug)]
pub(super) struct Qcow2 {
    /// What gives clusters back needs it alone.
    image: RwLock<FormatAccess<Storage>>,
}

impl Qcow2 {
    /// The image in `file`, which is at `path` and locked. It may refer to others if `backing_files` says so.
    ///
    /// # Errors
    /// [`BlockError`] naming the file and what is wrong with it.
    pub(super) fn open(path: &Path, file: File, readonly: bool, backing_files: bool) -> Result<Self, BlockError> {
        let refused = |source| BlockError::Damaged {
            path: path.to_owned(),
            source,
        };
        whole(&file).map_err(refused)?;
        let gate = Gate(Arc::new(Mutex::new(Chain {
            image: path.to_owned(),
            backing_files,
            files: vec![identity(&file).map_err(refused)?],
            refused: None,
        })));
        let options = StorageOpenOptions::new().filename(path).write(!readonly);
        let storage = Storage::from_open_file(file, options).map_err(refused)?;
        let builder = imago::qcow2::Qcow2::<Storage>::builder(storage).write(!readonly);
        let opened = builder.open(gate.clone());
        // What the gate says is the plainer word.
        if let Some(error) = lock(&gate.0).refused.take() {
            return Err(error);
        }
        Ok(Self {
            image: RwLock::new(FormatAccess::new(opened.map_err(refused)?)),
        })
    }

    /// The size of the disk in the image, in bytes.
    pub(super) fn size(&self) -> u64 {
        self.with(FormatAccess::size)
    }

    pub(super) fn read(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        self.with(|image| image.read(bytes, at))
    }

    pub(super) fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.with(|image| image.write(bytes, at))
    }

    /// Brings everything to stable storage.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.with(|image| {
            image.flush()?;
            image.sync()
        })
    }

    /// Clears a part, which gives its clusters back if it may.
    pub(super) fn zero(&self, at: u64, length: u64, give_back: bool) -> io::Result<()> {
        if give_back {
            let mut image = self.image.write().unwrap_or_else(PoisonError::into_inner);
            image.discard_to_zero(at, length)
        } else {
            self.with(|image| image.write_zeroes(at, length))
        }
    }

    fn with<T>(&self, act: impl FnOnce(&FormatAccess<Storage>) -> T) -> T {
        // The crate's own locks guard what it holds; a panic in it ends one request's thread.
        act(&self.image.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The files of an image so far.
#[derive(Debug)]
struct Chain {
    image: PathBuf,
    backing_files: bool,
    /// Device and inode of each.
    files: Vec<(u64, u64)>,
    /// Why a file was refused.
    refused: Option<BlockError>,
}

/// Opens what an image refers to, or does not.
#[derive(Debug, Clone)]
struct Gate(Arc<Mutex<Chain>>);

impl ImplicitOpenGate<Storage> for Gate {
    fn open_format<F: FormatDriverBuilder<Storage>>(&mut self, builder: F) -> io::Result<FormatAccess<Storage>> {
        Ok(FormatAccess::new(builder.open(self.clone())?))
    }

    fn open_storage(&mut self, options: StorageOpenOptions) -> io::Result<Storage> {
        let mut chain = lock(&self.0);
        match chain.open(&options) {
            Ok(file) => Storage::from_open_file(file, options),
            Err(error) => {
                let told = io::Error::other(error.to_string());
                chain.refused.get_or_insert(error);
                Err(told)
            }
        }
    }
}

impl Chain {
    fn open(&mut self, options: &StorageOpenOptions) -> Result<File, BlockError> {
        let (image, readonly) = (self.image.clone(), !options.get_writable());
        let path = options.get_filename().unwrap_or_else(|| Path::new("")).to_owned();
        if !self.backing_files {
            return Err(BlockError::Refers { path: image, to: path });
        }
        let failed = |source| BlockError::Backing {
            path: image.clone(),
            backing: path.clone(),
            source,
        };
        let file = OpenOptions::new().read(true).write(!readonly).open(&path);
        let file = file.map_err(failed)?;
        let own = identity(&file).map_err(failed)?;
        if self.files.contains(&own) || self.files.len() >= MOST_FILES {
            return Err(BlockError::Loop {
                path: image.clone(),
                to: path.clone(),
            });
        }
        self.files.push(own);
        lock_image(&path, &file, readonly)?;
        Ok(file)
    }
}

fn identity(file: &File) -> io::Result<(u64, u64)> {
    let metadata = file.metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Whether the file holds all that its tables speak of (QEMU, docs/interop/qcow2.txt). Everything else is for `imago` to say.
fn whole(file: &File) -> io::Result<()> {
    let mut header = [0; 48];
    file.read_exact_at(&mut header, 0)
        .map_err(|_| io::Error::other("it has no header"))?;
    let word = |at: usize| u64::from_be_bytes(std::array::from_fn(|byte| header[at + byte]));
    let half = |at: usize| u32::from_be_bytes(std::array::from_fn(|byte| header[at + byte]));
    if half(0) != u32::from_be_bytes(*b"QFI\xfb") {
        return Err(io::Error::other("it does not begin like one"));
    }
    let cut_off = || io::Error::other("it was cut off: its tables speak of more than there is");
    let (cluster_bits, entries, table) = (half(20), u64::from(half(36)), word(40));
    if !(9..=21).contains(&cluster_bits) {
        return Err(io::Error::other("its clusters are of no size"));
    }
    let cluster = 1_u64 << cluster_bits;
    let length = file.metadata()?.len();
    let mut left = MOST_TABLES;
    for second in entries_of(file, table, entries, length, &mut left)?.ok_or_else(cut_off)? {
        let second = second & OFFSET;
        if second == 0 {
            continue;
        }
        let clusters = entries_of(file, second, cluster / 8, length, &mut left)?.ok_or_else(cut_off)?;
        let inside = |entry: &u64| {
            let at = entry & OFFSET;
            // The last cluster of a file need not be whole.
            entry & COMPRESSED != 0 || at == 0 || at < length
        };
        if !clusters.iter().all(inside) {
            return Err(cut_off());
        }
    }
    Ok(())
}

/// A table of `entries` at `at` in a file of `length` bytes; `None` if it is not all there, and nothing of it if more was looked
/// at than is `left`.
fn entries_of(file: &File, at: u64, entries: u64, length: u64, left: &mut u64) -> io::Result<Option<Vec<u64>>> {
    let bytes = entries * 8;
    if at.checked_add(bytes).is_none_or(|end| end > length) {
        return Ok(None);
    }
    if *left < bytes {
        return Ok(Some(Vec::new()));
    }
    *left -= bytes;
    // No more than is left.
    let mut table = vec![0; bytes as usize];
    file.read_exact_at(&mut table, at)?;
    let (entries, _) = table.as_chunks::<8>();
    Ok(Some(entries.iter().map(|entry| u64::from_be_bytes(*entry)).collect()))
}

#[cfg(test)]
mod tests;

//! virtio-blk: a disk in a file of the host (virtio 1.2, "Block Device").
//!
//! # Invariants
//! - The image is locked for as long as the disk is there: one writer, or any number of readers, among all who lock.
//! - No request reaches beyond the capacity, whatever it says. Data goes between image and guest memory directly; nothing else
//!   takes more memory than [`BUFFER`].
//! - A write is on stable storage when it is done, unless the driver has accepted to flush.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use virtio_bindings::virtio_blk as bits;

use super::chain::{Chain, ChainError};
use super::device::{ConfigChange, DeviceKind, Handled, QueueHandler, ResizeError, VirtioDevice};
use super::rate_limiter::{RateLimiter, limited};

mod qcow2;
mod request;

use qcow2::Qcow2;
use request::Handler;

/// Bytes of a sector, in which everything is counted.
pub const SECTOR: u64 = 512;
/// Bytes of a disk's serial number.
pub const SERIAL_LENGTH: usize = 20;
/// Bytes written at once where the host cannot forget a part of the image.
pub const BUFFER: usize = 128 << 10;

/// Bytes of the configuration structure, up to the members for write-zeroes.
const CONFIG_LENGTH: usize = 60;
/// The most segments of a discard or write-zeroes request.
const MOST_SEGMENTS: u32 = 32;
/// The most sectors of a segment of a discard request.
const MOST_DISCARDED: u32 = 1 << 22;
/// The most sectors of a segment of a write-zeroes request, which may have to be written.
const MOST_ZEROED: u32 = 1 << 16;
/// The size in which the host stores files, 4096 bytes, is this power of two of sectors.
const PHYSICAL_BLOCK_EXP: u8 = 3;

/// How an image holds a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageFormat {
    /// Byte by byte.
    Raw,
    /// QEMU's format.
    Qcow2,
}

/// A disk besides its image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockOptions {
    /// Whether the guest may only read.
    pub readonly: bool,
    /// Request queues, 1 or more.
    pub queues: u16,
    /// Descriptors of a queue, a power of two.
    pub queue_size: u16,
    /// The serial number that the guest reads, at most [`SERIAL_LENGTH`] bytes.
    pub serial: String,
    /// Whether blocks that the guest discards are given back to the host.
    pub sparse: bool,
    /// The image's format. Where nobody says it, it is raw, but then it must not begin like one of another format: a guest could
    /// write such a beginning, and have files of the host opened.
    pub format: Option<ImageFormat>,
    /// Whether the image may refer to other files.
    pub backing_files: bool,
}

impl Default for BlockOptions {
    fn default() -> Self {
        Self {
            readonly: false,
            queues: 1,
            queue_size: 128,
            serial: String::new(),
            sparse: true,
            format: None,
            backing_files: false,
        }
    }
}

/// An image that makes no disk.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// It cannot be opened.
    #[error("the disk image {} cannot be opened for {}", path.display(), if *readonly { "reading" } else { "reading and writing" })]
    Open {
        /// The image.
        path: PathBuf,
        /// Whether only for reading.
        readonly: bool,
        /// Why.
        source: io::Error,
    },
    /// It is a folder, a socket or the like.
    #[error("the disk image {} is neither a file nor a block device", path.display())]
    NoFile {
        /// What.
        path: PathBuf,
    },
    /// Somebody else uses it.
    #[error("the disk image {} is locked by somebody who {}", path.display(), if *readonly { "writes it" } else { "uses it" })]
    Locked {
        /// The image.
        path: PathBuf,
        /// Whether it was to be read only.
        readonly: bool,
    },
    /// It cannot be locked or measured.
    #[error("the disk image {} cannot be used", path.display())]
    Io {
        /// The image.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not whole sectors.
    #[error("the disk image {} has {size} bytes; expected a multiple of 512 above 0", path.display())]
    Size {
        /// The image.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// It is of another format.
    #[error("the disk image {} is a {format} image; expected a raw one", path.display())]
    Format {
        /// The image.
        path: PathBuf,
        /// What it is.
        format: &'static str,
    },
    /// It is not what it is said to be, or not all of it.
    #[error("the disk image {} is no sound qcow2 image", path.display())]
    Damaged {
        /// The image.
        path: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
    /// It refers to a file that it may not.
    #[error("the disk image {} refers to {}; expected one without backing files, unless they are allowed", path.display(), to.display())]
    Refers {
        /// The image.
        path: PathBuf,
        /// To which.
        to: PathBuf,
    },
    /// It refers to a file that is not to be had.
    #[error("the disk image {} refers to {}, which cannot be opened", path.display(), backing.display())]
    Backing {
        /// The image.
        path: PathBuf,
        /// To which.
        backing: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its backing files never end.
    #[error("the backing files of the disk image {} lead back to {}, or are too many", path.display(), to.display())]
    Loop {
        /// The image.
        path: PathBuf,
        /// To which.
        to: PathBuf,
    },
    /// The serial number is too long.
    #[error("the serial number {serial:?} has {} bytes; expected at most 20", serial.len())]
    Serial {
        /// The serial number.
        serial: String,
    },
}

/// A disk.
#[derive(Debug)]
pub struct Block {
    disk: Arc<Disk>,
    queues: u16,
    queue_size: u16,
    limiter: Option<Arc<RateLimiter>>,
    change: OnceLock<ConfigChange>,
}

/// What the queues of a disk share.
#[derive(Debug)]
struct Disk {
    image: Image,
    path: PathBuf,
    /// In sectors.
    capacity: AtomicU64,
    readonly: bool,
    sparse: bool,
    serial: [u8; SERIAL_LENGTH],
    counters: Counters,
}

/// Where the sectors are.
#[derive(Debug)]
enum Image {
    Raw(File),
    Qcow2(Qcow2),
}

#[derive(Debug, Default)]
struct Counters {
    read_bytes: AtomicU64,
    written_bytes: AtomicU64,
    read_ops: AtomicU64,
    write_ops: AtomicU64,
    flushes: AtomicU64,
    errors: AtomicU64,
}

impl Block {
    /// A disk of the image at `path`.
    ///
    /// # Errors
    /// [`BlockError`] naming the image and what is wrong with it.
    pub fn open(path: &Path, options: &BlockOptions) -> Result<Self, BlockError> {
        let mut serial = [0; SERIAL_LENGTH];
        serial
            .get_mut(..options.serial.len())
            .ok_or_else(|| BlockError::Serial {
                serial: options.serial.clone(),
            })?
            .copy_from_slice(options.serial.as_bytes());
        let readonly = options.readonly;
        let file = OpenOptions::new().read(true).write(!readonly).open(path);
        let mut file = file.map_err(|source| BlockError::Open {
            path: path.to_owned(),
            readonly,
            source,
        })?;
        let size = measure(path, &mut file)?;
        lock_image(path, &file, readonly)?;
        if options.format.is_none()
            && let Some(format) = other_format(&file)
        {
            return Err(BlockError::Format {
                path: path.to_owned(),
                format,
            });
        }
        let (image, size) = match options.format {
            None | Some(ImageFormat::Raw) => (Image::Raw(file), size),
            Some(ImageFormat::Qcow2) => {
                let image = Qcow2::open(path, file, readonly, options.backing_files)?;
                let size = image.size();
                (Image::Qcow2(image), size)
            }
        };
        if size == 0 || !size.is_multiple_of(SECTOR) {
            return Err(BlockError::Size {
                path: path.to_owned(),
                size,
            });
        }
        Ok(Self {
            disk: Arc::new(Disk {
                image,
                path: path.to_owned(),
                capacity: AtomicU64::new(size / SECTOR),
                readonly,
                sparse: options.sparse,
                serial,
                counters: Counters::default(),
            }),
            queues: options.queues,
            queue_size: options.queue_size,
            limiter: None,
            change: OnceLock::new(),
        })
    }

    /// The disk under `limiter`, which others may share.
    #[must_use]
    pub fn with_limiter(mut self, limiter: Arc<RateLimiter>) -> Self {
        self.limiter = Some(limiter);
        self
    }
}

/// The size of the image in bytes.
fn measure(path: &Path, file: &mut File) -> Result<u64, BlockError> {
    let failed = |source| BlockError::Io {
        path: path.to_owned(),
        source,
    };
    let kind = file.metadata().map_err(failed)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(BlockError::NoFile { path: path.to_owned() });
    }
    // A block device's metadata does not have it.
    file.seek(SeekFrom::End(0)).map_err(failed)
}

fn lock_image(path: &Path, file: &File, readonly: bool) -> Result<(), BlockError> {
    let locked = if readonly {
        file.try_lock_shared()
    } else {
        file.try_lock()
    };
    locked.map_err(|error| match error {
        TryLockError::WouldBlock => BlockError::Locked {
            path: path.to_owned(),
            readonly,
        },
        TryLockError::Error(source) => BlockError::Io {
            path: path.to_owned(),
            source,
        },
    })
}

/// The format that an image which is not said to be raw shows by its first bytes.
fn other_format(file: &File) -> Option<&'static str> {
    let mut magic = [0; 8];
    file.read_exact_at(&mut magic, 0).ok()?;
    match &magic {
        b"vhdxfile" => Some("VHDX"),
        b"conectix" => Some("VHD"),
        [b'Q', b'F', b'I', 0xfb, ..] => Some("qcow2"),
        [b'K', b'D', b'M', b'V', ..] => Some("VMDK"),
        _ => None,
    }
}

impl VirtioDevice for Block {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Block
    }

    fn features(&self) -> u64 {
        let mut features = 1 << bits::VIRTIO_BLK_F_SEG_MAX
            | 1 << bits::VIRTIO_BLK_F_BLK_SIZE
            | 1 << bits::VIRTIO_BLK_F_TOPOLOGY
            | 1 << bits::VIRTIO_BLK_F_FLUSH;
        if self.queues > 1 {
            features |= 1 << bits::VIRTIO_BLK_F_MQ;
        }
        if self.disk.readonly {
            return features | 1 << bits::VIRTIO_BLK_F_RO;
        }
        features |= 1 << bits::VIRTIO_BLK_F_WRITE_ZEROES;
        if self.disk.sparse {
            features |= 1 << bits::VIRTIO_BLK_F_DISCARD;
        }
        features
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![self.queue_size; self.queues.into()]
    }

    fn config(&self) -> Vec<u8> {
        let mut config = vec![0; CONFIG_LENGTH];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.disk.capacity.load(Ordering::SeqCst).to_le_bytes());
        // Header and status take a descriptor each.
        put(12, &u32::from(self.queue_size.saturating_sub(2).max(1)).to_le_bytes());
        put(20, &(SECTOR as u32).to_le_bytes());
        put(24, &[PHYSICAL_BLOCK_EXP]);
        put(34, &self.queues.to_le_bytes());
        put(36, &MOST_DISCARDED.to_le_bytes());
        put(40, &MOST_SEGMENTS.to_le_bytes());
        put(44, &(1_u32 << PHYSICAL_BLOCK_EXP).to_le_bytes());
        put(48, &MOST_ZEROED.to_le_bytes());
        put(52, &MOST_SEGMENTS.to_le_bytes());
        put(56, &[u8::from(self.disk.sparse)]);
        config
    }

    fn connect(&self, change: ConfigChange) {
        // There is one transport.
        let _ = self.change.set(change);
    }

    /// The image grows. It does not shrink: what the guest has there would be lost.
    fn resize(&self, bytes: u64) -> Result<(), ResizeError> {
        let disk = &self.disk;
        let failed = |source| ResizeError::Io { bytes, source };
        let Image::Raw(file) = &disk.image else {
            return Err(ResizeError::Fixed);
        };
        if disk.readonly || !file.metadata().map_err(failed)?.is_file() {
            return Err(ResizeError::Fixed);
        }
        let own = disk.capacity.load(Ordering::SeqCst) * SECTOR;
        if bytes < own || !bytes.is_multiple_of(SECTOR) {
            let expected = format!("a multiple of {SECTOR}, at least the {own} that it has");
            return Err(ResizeError::Size { bytes, expected });
        }
        file.set_len(bytes).map_err(failed)?;
        disk.capacity.store(bytes / SECTOR, Ordering::SeqCst);
        if let Some(change) = self.change.get() {
            change.announce();
        }
        Ok(())
    }

    fn save(&self) -> Vec<u8> {
        // What it remembers is in the image: all of it, for whoever copies that now.
        if !self.disk.readonly
            && let Err(error) = self.disk.sync()
        {
            tracing::warn!(disk = %self.disk.path.display(), %error, "a disk image cannot be brought to stable storage");
        }
        Vec::new()
    }

    fn handler(&self, _index: u16) -> Box<dyn QueueHandler> {
        limited(Box::new(Handler::new(Arc::clone(&self.disk))), self.limiter.clone())
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let counters = &self.disk.counters;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        vec![
            ("read_bytes", load(&counters.read_bytes)),
            ("written_bytes", load(&counters.written_bytes)),
            ("read_ops", load(&counters.read_ops)),
            ("write_ops", load(&counters.write_ops)),
            ("flushes", load(&counters.flushes)),
            ("errors", load(&counters.errors)),
        ]
    }
}

impl Disk {
    fn sync(&self) -> io::Result<()> {
        match &self.image {
            Image::Raw(file) => file.sync_data(),
            Image::Qcow2(image) => image.sync(),
        }
    }
}

impl QueueHandler for Handler {
    fn begin(&mut self, features: u64) {
        self.set_features(features);
    }

    fn handle(&mut self, chain: &Chain<'_>) -> Result<Handled, ChainError> {
        self.request(chain).map(Handled::Used)
    }
}

#[cfg(test)]
mod tests;

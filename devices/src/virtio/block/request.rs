//! One request of a disk: its header, what is done, and the status at its end.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use virtio_bindings::virtio_blk as bits;

use super::{BUFFER, Disk, Image, MOST_DISCARDED, MOST_SEGMENTS, MOST_ZEROED, SECTOR};
use crate::sys::Gather;
use crate::virtio::chain::{Chain, ChainError};

/// Bytes of a request's header: type, reserved, sector.
const HEADER: usize = 16;
/// Bytes of a segment of a discard or write-zeroes request: sector, number of sectors, flags.
const SEGMENT: u64 = 16;
/// In a segment's flags: the sectors may be given back to the host.
const UNMAP: u32 = 1 << 0;

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Status {
    Ok = bits::VIRTIO_BLK_S_OK as u8,
    IoError = bits::VIRTIO_BLK_S_IOERR as u8,
    Unsupported = bits::VIRTIO_BLK_S_UNSUPP as u8,
}

/// Serves one queue of a disk.
pub(super) struct Handler {
    disk: Arc<Disk>,
    /// The driver flushes when it wants to; otherwise every write is made stable.
    flushes: bool,
}

/// Why a request was not carried out.
enum Refused {
    /// The chain is at fault.
    Chain(ChainError),
    /// The request is.
    Status(Status),
    /// The host is.
    Host(io::Error),
}

impl From<ChainError> for Refused {
    fn from(error: ChainError) -> Self {
        Self::Chain(error)
    }
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self::Host(error)
    }
}

const INVALID: Refused = Refused::Status(Status::IoError);
const UNSUPPORTED: Refused = Refused::Status(Status::Unsupported);

impl Handler {
    pub(super) fn new(disk: Arc<Disk>) -> Self {
        Self { disk, flushes: true }
    }

    pub(super) fn set_features(&mut self, features: u64) {
        self.flushes = features & 1 << bits::VIRTIO_BLK_F_FLUSH != 0;
    }

    /// Carries out a request; the number of bytes written to it, from the first on.
    pub(super) fn request(&self, chain: &Chain<'_>) -> Result<u32, ChainError> {
        let mut header = [0; HEADER];
        chain.read(0, &mut header)?;
        // The last byte that can be written is the status; there is no request without.
        let room = chain.writable().checked_sub(1).ok_or(ChainError::Short)?;
        let (kind, sector) = header.split_at(8);
        let kind = u32::from_le_bytes([kind[0], kind[1], kind[2], kind[3]]);
        let sector = sector
            .iter()
            .rev()
            .fold(0, |sector, byte| sector << 8 | u64::from(*byte));
        let (status, written) = match self.carry_out(chain, kind, sector, room) {
            Ok(written) => (Status::Ok, written),
            Err(Refused::Chain(error)) => return self.spoilt(chain, room, error),
            Err(Refused::Status(status)) => (status, 0),
            Err(Refused::Host(error)) => {
                if self.disk.counters.errors.fetch_add(1, Ordering::Relaxed) == 0 {
                    tracing::warn!(disk = %self.disk.path.display(), sector, %error, "a disk image fails");
                }
                (Status::IoError, 0)
            }
        };
        chain.write(room, &[status as u8])?;
        // What counts is written without a gap.
        Ok(if written == room { written as u32 + 1 } else { 0 })
    }

    /// A request with buffers that are no memory: it fails, if that can be told.
    fn spoilt(&self, chain: &Chain<'_>, room: u64, error: ChainError) -> Result<u32, ChainError> {
        // Should this fail too, the error is the same.
        let _ = chain.write(room, &[Status::IoError as u8]);
        Err(error)
    }

    fn carry_out(&self, chain: &Chain<'_>, kind: u32, sector: u64, room: u64) -> Result<u64, Refused> {
        let payload = chain.readable() - HEADER as u64;
        let counters = &self.disk.counters;
        match kind {
            bits::VIRTIO_BLK_T_IN => {
                let start = self.range(sector, room)?;
                count(&counters.read_ops, 1);
                count(&counters.read_bytes, room);
                self.read(chain, start, room)?;
                Ok(room)
            }
            bits::VIRTIO_BLK_T_OUT => {
                self.writable()?;
                let start = self.range(sector, payload)?;
                count(&counters.write_ops, 1);
                count(&counters.written_bytes, payload);
                self.write(chain, start, payload)?;
                self.settle()?;
                Ok(0)
            }
            bits::VIRTIO_BLK_T_FLUSH => {
                count(&counters.flushes, 1);
                self.disk.sync()?;
                Ok(0)
            }
            bits::VIRTIO_BLK_T_GET_ID => {
                let serial = &self.disk.serial;
                let length = usize::try_from(room).unwrap_or(usize::MAX).min(serial.len());
                chain.write(0, &serial[..length])?;
                Ok(length as u64)
            }
            bits::VIRTIO_BLK_T_DISCARD if self.disk.sparse => {
                self.segments(chain, payload, MOST_DISCARDED, |handler, start, length, flags| {
                    if flags != 0 {
                        return Err(UNSUPPORTED);
                    }
                    // A host that cannot is free to keep them.
                    handler.punch(start, length).map(|_| ())
                })
            }
            bits::VIRTIO_BLK_T_WRITE_ZEROES => {
                self.segments(chain, payload, MOST_ZEROED, |handler, start, length, flags| {
                    if flags & !UNMAP != 0 {
                        return Err(UNSUPPORTED);
                    }
                    handler.zero(start, length, flags & UNMAP != 0)
                })?;
                self.settle()?;
                Ok(0)
            }
            _ => Err(UNSUPPORTED),
        }
    }

    /// The place in the image of `length` bytes from `sector` on.
    fn range(&self, sector: u64, length: u64) -> Result<u64, Refused> {
        let sectors = length / SECTOR;
        let fits = sector
            .checked_add(sectors)
            .is_some_and(|end| end <= self.disk.capacity.load(Ordering::SeqCst));
        if !fits || !length.is_multiple_of(SECTOR) {
            return Err(INVALID);
        }
        // Less than the image's size.
        Ok(sector * SECTOR)
    }

    fn writable(&self) -> Result<(), Refused> {
        if self.disk.readonly { Err(INVALID) } else { Ok(()) }
    }

    fn settle(&self) -> io::Result<()> {
        if self.flushes { Ok(()) } else { self.disk.sync() }
    }

    fn read(&self, chain: &Chain<'_>, start: u64, length: u64) -> Result<(), Refused> {
        // A chain has less than 4 GiB.
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let file = match &self.disk.image {
            Image::Raw(file) => file,
            Image::Qcow2(image) => {
                return in_parts(length as u64, |part, at| {
                    image.read(part, start + at)?;
                    Ok(chain.write(at, part)?)
                });
            }
        };
        let (mut scatter, _) = chain.scatter(0, length, usize::MAX)?;
        let read = scatter.read_exact_at(file.as_fd(), start);
        // Also what was read before it failed.
        chain.filled(0, length);
        Ok(read?)
    }

    fn write(&self, chain: &Chain<'_>, start: u64, length: u64) -> Result<(), Refused> {
        let file = match &self.disk.image {
            Image::Raw(file) => file,
            Image::Qcow2(image) => {
                return in_parts(length, |part, at| {
                    chain.read(HEADER as u64 + at, part)?;
                    Ok(image.write(part, start + at)?)
                });
            }
        };
        let mut gather = Gather::default();
        chain.gather(
            &mut gather,
            HEADER as u64,
            usize::try_from(length).unwrap_or(usize::MAX),
        )?;
        Ok(gather.write_all_at(file.as_fd(), start)?)
    }

    /// Lets `each` work on the segments of a discard or write-zeroes request: place and length in bytes, and flags. All are
    /// checked before anything happens.
    fn segments(
        &self,
        chain: &Chain<'_>,
        payload: u64,
        most: u32,
        each: impl Fn(&Self, u64, u64, u32) -> Result<(), Refused>,
    ) -> Result<u64, Refused> {
        self.writable()?;
        let count = payload / SEGMENT;
        if !payload.is_multiple_of(SEGMENT) || !(1..=MOST_SEGMENTS.into()).contains(&count) {
            return Err(INVALID);
        }
        let mut ranges = Vec::with_capacity(MOST_SEGMENTS as usize);
        for index in 0..count {
            let mut bytes = [0; SEGMENT as usize];
            chain.read(HEADER as u64 + index * SEGMENT, &mut bytes)?;
            let [a, b, c, d, e, f, g, h, n0, n1, n2, n3, f0, f1, f2, f3] = bytes;
            let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
            if sectors > most {
                return Err(INVALID);
            }
            let length = u64::from(sectors) * SECTOR;
            let start = self.range(u64::from_le_bytes([a, b, c, d, e, f, g, h]), length)?;
            ranges.push((start, length, u32::from_le_bytes([f0, f1, f2, f3])));
        }
        for (start, length, flags) in ranges {
            if length > 0 {
                each(self, start, length, flags)?;
            }
        }
        Ok(0)
    }

    /// Gives a part of the image back to the host; false if the host cannot take it. It then reads as zeros.
    fn punch(&self, start: u64, length: u64) -> Result<bool, Refused> {
        let file = match &self.disk.image {
            Image::Raw(file) => file,
            Image::Qcow2(image) => return Ok(image.zero(start, length, true).map(|()| true)?),
        };
        allocate(
            file,
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            start,
            length,
        )
    }

    fn zero(&self, start: u64, length: u64, unmap: bool) -> Result<(), Refused> {
        if unmap && self.disk.sparse && self.punch(start, length)? {
            return Ok(());
        }
        let file = match &self.disk.image {
            Image::Raw(file) => file,
            Image::Qcow2(image) => return Ok(image.zero(start, length, false)?),
        };
        if allocate(
            file,
            FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
            start,
            length,
        )? {
            return Ok(());
        }
        // What a host that cannot forget has to do.
        in_parts(length, |zeros, at| Ok(file.write_all_at(zeros, start + at)?))
    }
}

/// False if the host does not know how.
fn allocate(file: &File, how: FallocateFlags, start: u64, length: u64) -> Result<bool, Refused> {
    match fallocate(file, how, start, length) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV) => Ok(false),
        Err(error) => Err(Refused::Host(error.into())),
    }
}

/// Lets `each` work on a buffer of zeros for one part of `length` bytes after the other, with the part's place.
fn in_parts(length: u64, mut each: impl FnMut(&mut [u8], u64) -> Result<(), Refused>) -> Result<(), Refused> {
    let mut buffer = vec![0; usize::try_from(length).unwrap_or(BUFFER).min(BUFFER)];
    let mut at = 0;
    while at < length {
        let part = buffer.len().min(usize::try_from(length - at).unwrap_or(BUFFER));
        each(&mut buffer[..part], at)?;
        at += part as u64;
    }
    Ok(())
}

fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

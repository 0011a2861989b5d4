//! Guest memory in a file: its bytes in the order of their addresses, and holes where they are zero.
//!
//! # Invariants
//! - A page of zeros is never written, and a page that was never used is never looked at.
//! - Each megabyte that is not all zeros has a checksum; the others have none and are zero in the file. So every byte of the
//!   file is covered, whether or not a copy of it has kept the holes.
//! - The file is checked before a byte of it is given to a guest. From then on it belongs to the mapping, which is private:
//!   the guest writes into copies, and the file stays as it is.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use crc32fast::Hasher;
use reprise_hypervisor::GuestMemory;
use serde::{Deserialize, Serialize};
use vm_memory::mmap::{FromRangesError, MmapRegion};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

use super::SnapshotError;
use super::pages::{self, PAGE, Pages};

/// How much has a checksum of its own, in bytes.
const CHUNK: usize = 1 << 20;

/// How much is held at once, in bytes: little enough that it is still in the processor's cache when its checksum is made.
const UNIT: usize = 128 << 10;

static ZEROS: [u8; UNIT] = [0; UNIT];

/// More threads than these only wait for the same disk.
const THREADS: usize = 8;

/// What is known of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Its length in bytes: the guest's memory.
    pub(super) length: u64,
    /// Where each part lies in the guest's address space, in the order of the file: start and length.
    pub(super) ranges: Vec<(u64, u64)>,
    /// Offset in the file and CRC-32 of each chunk that is not all zeros, in rising order.
    chunks: Vec<(u64, u32)>,
}

impl Record {
    /// Whether the ranges are of whole pages, in rising order, and as long as the file.
    fn makes_sense(&self) -> bool {
        let (mut end, mut total) = (0, 0_u64);
        let rising = self.ranges.iter().all(|(start, length)| {
            let Some(next) = start.checked_add(*length) else {
                return false;
            };
            let whole = *length > 0 && [start, length].iter().all(|value| value.is_multiple_of(PAGE as u64));
            let rising = whole && *start >= end;
            // No overflow: the ranges are disjoint so far, and all of them lie below 2^64.
            (end, total) = (next, total.wrapping_add(*length));
            rising
        });
        rising && total == self.length
    }
}

/// A part of the file that has a checksum of its own: [`CHUNK`] bytes, less at the end of a range.
struct Piece {
    /// In the file.
    offset: u64,
    address: GuestAddress,
    length: usize,
}

/// Cuts `ranges` (start, length), which follow each other in the file.
fn pieces(ranges: &[(u64, u64)]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut offset = 0;
    for (start, length) in ranges {
        let mut done = 0;
        while done < *length {
            let piece = (length - done).min(CHUNK as u64);
            pieces.push(Piece {
                offset: offset + done,
                address: GuestAddress(start + done),
                length: piece as usize,
            });
            done += piece;
        }
        offset += length;
    }
    pieces
}

/// Writes `memory` into `file`, which is empty.
///
/// # Errors
/// What the system says.
pub(super) fn write(file: &File, memory: &GuestMemory) -> io::Result<Record> {
    let regions = memory.iter().map(|region| (region.start_addr().0, region.len()));
    let ranges: Vec<(u64, u64)> = regions.collect();
    let length = ranges.iter().map(|(_, length)| length).sum();
    file.set_len(length)?;
    if ranges.iter().any(|(_, length)| !length.is_multiple_of(PAGE as u64)) {
        return Err(io::Error::other("the memory is not of whole pages"));
    }
    let pages = Pages::of(memory);
    let written = each(&pieces(&ranges), |piece, buffer| {
        let used = pages.used(piece.address, piece.length / PAGE);
        if !used.contains(&true) {
            return Ok(None);
        }
        let (mut checksum, mut any) = (Hasher::new(), false);
        for (used, unit) in used.chunks(UNIT / PAGE).zip(0..) {
            let start = unit * UNIT as u64;
            let buffer = &mut buffer[..used.len() * PAGE];
            if !used.contains(&true) {
                checksum.update(&ZEROS[..buffer.len()]);
                continue;
            }
            buffer.fill(0);
            for run in pages::runs(used) {
                let address = GuestAddress(piece.address.0 + start + (run.start * PAGE) as u64);
                memory
                    .read_slice(&mut buffer[run.start * PAGE..run.end * PAGE], address)
                    .map_err(io::Error::other)?;
            }
            checksum.update(buffer);
            for bytes in filled(buffer) {
                any = true;
                let offset = piece.offset + start + bytes.start as u64;
                file.write_all_at(&buffer[bytes], offset)?;
            }
        }
        Ok(any.then(|| (piece.offset, checksum.finalize())))
    })?;
    let mut chunks: Vec<(u64, u32)> = written.into_iter().flatten().collect();
    chunks.sort_unstable();
    Ok(Record { length, ranges, chunks })
}

/// How a guest gets its memory back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prefault {
    /// Page by page, when it touches one: the file must stay as long as the guest.
    No,
    /// All at once; the file is not needed afterwards.
    Yes,
}

/// Checks `file`, which was at `path`, against `record`, and gives what is in it to a guest's memory.
///
/// # Errors
/// [`SnapshotError`] naming the first part that is not what it was.
pub(super) fn map(
    file: &Arc<File>,
    path: &Path,
    record: &Record,
    prefault: Prefault,
) -> Result<GuestMemory, SnapshotError> {
    let unreadable = |source: io::Error| SnapshotError::Read {
        path: path.to_owned(),
        source,
    };
    if !record.makes_sense() {
        let what = "what state.json says of it makes no memory".to_owned();
        return Err(SnapshotError::Damaged {
            path: path.to_owned(),
            what,
        });
    }
    let found = file.metadata().map_err(unreadable)?.len();
    if found != record.length {
        return Err(SnapshotError::Length {
            path: path.to_owned(),
            found,
            expected: record.length,
        });
    }
    let memory = match prefault {
        Prefault::No => lazily(file, &record.ranges),
        Prefault::Yes => {
            let ranges = record.ranges.iter();
            let ranges: Vec<_> = ranges
                .map(|(start, length)| (GuestAddress(*start), *length as usize))
                .collect();
            GuestMemory::from_ranges(&ranges)
        }
    };
    let memory = memory.map_err(|error| unreadable(io::Error::other(error)))?;
    let data = pages::data(file, 0..record.length);
    let wrong = each(&pieces(&record.ranges), |piece, buffer| {
        let listed = record
            .chunks
            .binary_search_by_key(&piece.offset, |(offset, _)| *offset)
            .ok()
            .map(|at| record.chunks[at].1);
        let end = piece.offset + piece.length as u64;
        let (mut checksum, mut zero, mut at) = (Hasher::new(), true, piece.offset);
        for part in pages::within(&data, piece.offset..end) {
            skip(&mut checksum, part.start - at);
            at = part.start;
            while at < part.end {
                let length = (part.end - at).min(UNIT as u64) as usize;
                let buffer = &mut buffer[..length];
                file.read_exact_at(buffer, at)?;
                zero = zero && is_zero(buffer);
                checksum.update(buffer);
                if prefault == Prefault::Yes {
                    for bytes in filled(buffer) {
                        let address = piece.address.0 + (at - piece.offset) + bytes.start as u64;
                        memory
                            .write_slice(&buffer[bytes], GuestAddress(address))
                            .map_err(io::Error::other)?;
                    }
                }
                at += length as u64;
            }
        }
        let right = match listed {
            Some(listed) => {
                skip(&mut checksum, end - at);
                checksum.finalize() == listed
            }
            None => zero,
        };
        Ok((!right).then_some(piece.offset))
    })
    .map_err(unreadable)?;
    match wrong.into_iter().flatten().min() {
        None => Ok(memory),
        Some(offset) => Err(SnapshotError::Damaged {
            path: path.to_owned(),
            what: format!("the megabyte at {offset:#x} does not match its checksum"),
        }),
    }
}

/// Private mappings of the file.
fn lazily(file: &Arc<File>, ranges: &[(u64, u64)]) -> Result<GuestMemory, FromRangesError> {
    let mut regions = Vec::new();
    let mut offset = 0;
    for (start, length) in ranges {
        let mapping = MmapRegion::build(
            Some(FileOffset::from_arc(Arc::clone(file), offset)),
            *length as usize,
            libc::PROT_READ | libc::PROT_WRITE,
            // Without NORESERVE the host would set aside as much again for copies that may never be made.
            libc::MAP_PRIVATE | libc::MAP_NORESERVE,
        )?;
        let region = GuestRegionMmap::new(mapping, GuestAddress(*start)).ok_or(FromRangesError::InvalidGuestRegion)?;
        regions.push(region);
        offset += length;
    }
    Ok(GuestMemory::from_regions(regions)?)
}

/// Where `bytes`, from the beginning of a page on, are not zero, in whole pages.
fn filled(bytes: &[u8]) -> Vec<Range<usize>> {
    let filled: Vec<bool> = bytes.chunks(PAGE).map(|page| !is_zero(page)).collect();
    let runs = pages::runs(&filled).into_iter();
    runs.map(|run| run.start * PAGE..(run.end * PAGE).min(bytes.len()))
        .collect()
}

/// Whether `bytes`, at most [`UNIT`] of them, are all zero. One call of memcmp, optimised or not.
fn is_zero(bytes: &[u8]) -> bool {
    *bytes == ZEROS[..bytes.len()]
}

/// Goes over `length` bytes of zeros.
fn skip(checksum: &mut Hasher, mut length: u64) {
    while length > 0 {
        let now = length.min(UNIT as u64);
        checksum.update(&ZEROS[..now as usize]);
        length -= now;
    }
}

/// Does `work` for each piece, on several threads, each with a buffer of [`UNIT`] bytes, in no particular order. The
/// first error ends it.
fn each<T: Send>(pieces: &[Piece], work: impl Fn(&Piece, &mut [u8]) -> io::Result<T> + Sync) -> io::Result<Vec<T>> {
    let threads = thread::available_parallelism().map_or(1, usize::from).min(THREADS);
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let worker = || {
        let mut results = Vec::new();
        let mut buffer = vec![0; UNIT];
        while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            if failed.load(Ordering::Relaxed) {
                break;
            }
            match work(piece, &mut buffer) {
                Ok(result) => results.push(result),
                Err(error) => {
                    failed.store(true, Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
        Ok(results)
    };
    thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(worker)).collect();
        let mut all = worker();
        for other in others {
            let results = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            match (&mut all, results) {
                (Ok(all), Ok(results)) => all.extend(results),
                (Err(_), _) => {}
                (all, Err(error)) => *all = Err(error),
            }
        }
        all
    })
}

#[cfg(test)]
mod tests;

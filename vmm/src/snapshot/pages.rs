//! Which pages of a mapping anybody ever wrote, found out without touching the others.
//!
//! # Purpose
//! Most of a guest's memory is usually untouched, and looking at such a page makes the host provide it. The kernel tells
//! which pages it has provided (`/proc/self/pagemap`); the others are zero, or, where the mapping is of a file, what the
//! file has there.
//!
//! # Invariants
//! - In doubt a page counts as used: that costs time and never data.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use reprise_hypervisor::GuestMemory;
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

/// Bytes in a page.
pub(super) const PAGE: usize = 4096;

/// The size of a page's entry in the pagemap, in bytes (Documentation/admin-guide/mm/pagemap.rst).
const ENTRY: usize = 8;
/// The page is in memory.
const PRESENT: u64 = 1 << 63;
/// The page is swapped out, or on its way.
const SWAPPED: u64 = 1 << 62;

/// Tells which pages of a guest's memory are used.
pub(super) struct Pages<'a> {
    memory: &'a GuestMemory,
    /// None where the host does not tell.
    pagemap: Option<File>,
    /// For each region the parts of it that a file brings, as offsets in the region.
    brought: Vec<Vec<Range<u64>>>,
}

impl<'a> Pages<'a> {
    /// Looks at the mappings of `memory`.
    pub(super) fn of(memory: &'a GuestMemory) -> Self {
        let brought = memory.iter().map(|region| {
            let Some(backing) = region.file_offset() else {
                return Vec::new();
            };
            let (start, length) = (backing.start(), region.len());
            let data = data(backing.file(), start..start + length);
            data.into_iter()
                .map(|range| range.start - start..range.end - start)
                .collect()
        });
        Self {
            memory,
            pagemap: File::open("/proc/self/pagemap").ok(),
            brought: brought.collect(),
        }
    }

    /// Whether each of `count` pages from the page at `address` on, all in one region, is used.
    pub(super) fn used(&self, address: GuestAddress, count: usize) -> Vec<bool> {
        let mut used = self.provided(address, count).unwrap_or_else(|_| vec![true; count]);
        let regions = self.memory.iter().zip(&self.brought);
        for (region, brought) in regions {
            let Some(start) = region.to_region_addr(address).map(|offset| offset.0) else {
                continue;
            };
            for (page, used) in used.iter_mut().enumerate() {
                let offset = start + (page * PAGE) as u64;
                *used = *used || overlaps(brought, offset..offset + PAGE as u64);
            }
        }
        used
    }

    /// Whether the host has provided each page.
    fn provided(&self, address: GuestAddress, count: usize) -> io::Result<Vec<bool>> {
        let pagemap = self.pagemap.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        let host = self.memory.get_host_address(address).map_err(io::Error::other)? as usize;
        let mut entries = vec![0; count * ENTRY];
        pagemap.read_exact_at(&mut entries, (host / PAGE * ENTRY) as u64)?;
        let (entries, _) = entries.as_chunks::<ENTRY>();
        Ok(entries
            .iter()
            .map(|entry| u64::from_ne_bytes(*entry) & (PRESENT | SWAPPED) != 0)
            .collect())
    }
}

/// The parts of `range` of `file` that are no holes, in rising order.
pub(super) fn data(file: &File, range: Range<u64>) -> Vec<Range<u64>> {
    let mut found = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) => start.min(range.end),
            // Nothing but a hole up to the end.
            Err(Errno::NXIO) => break,
            // The file system does not tell.
            Err(_) => at,
        };
        if start >= range.end {
            break;
        }
        let end = match rustix::fs::seek(file, SeekFrom::Hole(start)) {
            Ok(end) if end > start => end.min(range.end),
            _ => range.end,
        };
        found.push(start..end);
        at = end;
    }
    found
}

/// Whether any of `ranges`, which are in rising order, has a part of `range`.
fn overlaps(ranges: &[Range<u64>], range: Range<u64>) -> bool {
    let next = ranges.partition_point(|other| other.end <= range.start);
    ranges.get(next).is_some_and(|other| other.start < range.end)
}

/// The parts of `ranges`, which are in rising order, that lie in `range`.
pub(super) fn within(ranges: &[Range<u64>], range: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
    let first = ranges.partition_point(|other| other.end <= range.start);
    let end = range.end;
    ranges[first..]
        .iter()
        .take_while(move |other| other.start < end)
        .map(move |other| other.start.max(range.start)..other.end.min(end))
}

/// The runs of `true` in `flags`.
pub(super) fn runs(flags: &[bool]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for (at, _) in flags.iter().enumerate().filter(|(_, flag)| **flag) {
        match runs.last_mut() {
            Some(last) if last.end == at => last.end = at + 1,
            _ => runs.push(at..at + 1),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    #[test]
    fn runs_are_found_wherever_they_lie() {
        assert!(runs(&[]).is_empty() && runs(&[false, false]).is_empty());
        assert_eq!(runs(&[true, true, false, true]), [0..2, 3..4]);
        assert_eq!(runs(&[false, true, true, false, false, true]), [1..3, 5..6]);
    }

    #[test]
    fn parts_within_a_range_are_cut_to_it() {
        let ranges = [0..10, 20..30, 40..50];
        let parts = |range| within(&ranges, range).collect::<Vec<_>>();
        assert_eq!(parts(5..25), [5..10, 20..25]);
        assert!(parts(10..20).is_empty());
        assert_eq!(parts(29..100), [29..30, 40..50]);
        assert!(overlaps(&ranges, 29..31) && !overlaps(&ranges, 30..40) && !overlaps(&ranges, 50..60));
    }

    #[test]
    fn what_was_written_is_used_and_asking_touches_nothing() {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 64 * PAGE)]).unwrap();
        memory.write_obj(1_u8, GuestAddress(5 * PAGE as u64)).unwrap();
        for _ in 0..2 {
            let used = Pages::of(&memory).used(GuestAddress(0), 64);
            assert!(used[5]);
            // Transparent huge pages need 512 of them, so that none of the others came along.
            assert_eq!(used.iter().filter(|used| **used).count(), 1);
        }
    }
}

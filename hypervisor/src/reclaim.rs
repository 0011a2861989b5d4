//! Guest memory that goes back to the host, for a balloon.
//!
//! # Invariants
//! - What was given back reads as zero, whatever the memory is a mapping of; the mapping stays where it is, so that whoever
//!   holds an address of the host's goes on with it.
//! - A guest cannot have the process run out of mappings: where each page given back would need one, there are only so many,
//!   and the others are cleared instead.
#![allow(unsafe_code)] // The calls that change a mapping under an address are no business of a safe wrapper elsewhere.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress};

use crate::GuestMemory;

/// Bytes of a page.
const PAGE: u64 = 4096;
/// How many mappings may be made. Each splits one in three at the worst, and a process has about 65,530
/// (vm.max_map_count).
const MOST_MAPPINGS: usize = 16 << 10;

/// Gives parts of a guest's memory back to the host.
#[derive(Debug)]
pub struct Reclaim {
    memory: GuestMemory,
    mappings: AtomicUsize,
}

impl Reclaim {
    /// For `memory`.
    #[must_use]
    pub fn new(memory: GuestMemory) -> Self {
        Self {
            memory,
            mappings: AtomicUsize::new(0),
        }
    }

    /// Gives `length` bytes from `address` on back, whole pages, which are zero when this returns. Who keeps instructions
    /// decoded from them is to be told: [`Vm::memory_written`](crate::Vm::memory_written).
    ///
    /// # Errors
    /// If that is not all guest memory, or not of whole pages: then nothing has happened. Or the host's error.
    pub fn give_back(&self, address: u64, length: u64) -> io::Result<()> {
        let whole = address.is_multiple_of(PAGE) && length.is_multiple_of(PAGE);
        let bytes = usize::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?;
        if !whole || !self.memory.check_range(GuestAddress(address), bytes) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut at = address;
        let end = address + length;
        while at < end {
            let region = self.memory.find_region(GuestAddress(at));
            let region = region.ok_or(io::ErrorKind::InvalidInput)?;
            let start = at - region.start_addr().0;
            let part = (region.len() - start).min(end - at);
            self.give_back_in(region, start, part)?;
            at += part;
        }
        Ok(())
    }

    fn give_back_in(&self, region: &GuestRegionMmap, start: u64, length: u64) -> io::Result<()> {
        let (private, of_file) = (region.flags() & libc::MAP_PRIVATE != 0, region.file_offset().is_some());
        if private && of_file && self.mappings.fetch_add(1, Ordering::Relaxed) >= MOST_MAPPINGS {
            return self.clear(region, start, length);
        }
        let host = region
            .get_host_address(MemoryRegionAddress(start))
            .map_err(io::Error::other)?
            .cast::<libc::c_void>();
        let bytes = usize::try_from(length).map_err(io::Error::other)?;
        let done = if private && of_file {
            // SAFETY: the range lies in a live mapping of guest memory, which `self.memory` keeps, with the protection and the
            // extent that it gets again. Guest memory is only reached by accesses that expect it to change at any time.
            let mapped = unsafe {
                libc::mmap(
                    host,
                    bytes,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                    -1,
                    0,
                )
            };
            mapped != libc::MAP_FAILED
        } else {
            // What is shared stays in its file until a hole is punched.
            let advice = if private {
                libc::MADV_DONTNEED
            } else {
                libc::MADV_REMOVE
            };
            // SAFETY: as above; either advice leaves the mapping and makes its pages read as zero.
            unsafe { libc::madvise(host, bytes, advice) == 0 }
        };
        if done { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn clear(&self, region: &GuestRegionMmap, start: u64, length: u64) -> io::Result<()> {
        let zeros = [0; PAGE as usize];
        for at in (start..start + length).step_by(zeros.len()) {
            region
                .write_slice(&zeros, MemoryRegionAddress(at))
                .map_err(io::Error::other)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use vm_memory::mmap::MmapRegion;
    use vm_memory::{FileOffset, GuestRegionMmap};

    use super::*;

    const SIZE: usize = 64 << 12;

    fn file() -> File {
        let file = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(file);
        std::os::unix::fs::FileExt::write_all_at(&file, &[0x5a; SIZE], 0).unwrap();
        file
    }

    fn mapped(file: File, flags: i32) -> GuestMemory {
        let offset = FileOffset::new(file, 0);
        let mapping = MmapRegion::build(Some(offset), SIZE, libc::PROT_READ | libc::PROT_WRITE, flags).unwrap();
        let region = GuestRegionMmap::new(mapping, GuestAddress(0x1000)).unwrap();
        GuestMemory::from_regions(vec![region]).unwrap()
    }

    /// Guest memory from 0x1000 on of each kind, full of 0x5a.
    fn memories() -> Vec<(&'static str, GuestMemory)> {
        let anonymous = GuestMemory::from_ranges(&[(GuestAddress(0x1000), SIZE)]).unwrap();
        anonymous.write_slice(&[0x5a; SIZE], GuestAddress(0x1000)).unwrap();
        vec![
            ("anonymous", anonymous),
            ("a private mapping of a file", mapped(file(), libc::MAP_PRIVATE)),
            ("a shared mapping of a file", mapped(file(), libc::MAP_SHARED)),
        ]
    }

    /// Whether the pages at 0x1000, 0x2000, … are zero.
    fn zero(memory: &GuestMemory, count: usize) -> Vec<bool> {
        let pages = (1..=count as u64).map(|page| {
            let mut bytes = [1; PAGE as usize];
            memory.read_slice(&mut bytes, GuestAddress(page * PAGE)).unwrap();
            assert!(bytes == [0; PAGE as usize] || bytes == [0x5a; PAGE as usize]);
            bytes[0] == 0
        });
        pages.collect()
    }

    #[test]
    fn what_was_given_back_is_zero_and_can_be_written_and_its_neighbours_stay() {
        for (kind, memory) in memories() {
            let reclaim = Reclaim::new(memory.clone());
            reclaim.give_back(0x2000, 0x2000).unwrap();
            assert_eq!(zero(&memory, 4), [false, true, true, false], "{kind}");
            memory.write_slice(&[0x5a; 0x1000], GuestAddress(0x3000)).unwrap();
            assert_eq!(zero(&memory, 4), [false, true, false, false], "{kind}");
            reclaim.give_back(0x3000, 0x1000).unwrap();
            assert_eq!(zero(&memory, 4), [false, true, true, false], "{kind}");
        }
    }

    #[test]
    fn the_host_has_the_pages_again() {
        for (kind, memory) in memories() {
            let reclaim = Reclaim::new(memory.clone());
            let host = memory.get_host_address(GuestAddress(0x1000)).unwrap() as usize;
            let pagemap = File::open("/proc/self/pagemap").unwrap();
            let present = || {
                let mut entry = [0; 8];
                std::os::unix::fs::FileExt::read_exact_at(&pagemap, &mut entry, (host / 4096 * 8) as u64).unwrap();
                u64::from_ne_bytes(entry) >> 63 == 1
            };
            memory.write_slice(&[1], GuestAddress(0x1000)).unwrap();
            assert!(present(), "{kind}");
            reclaim.give_back(0x1000, SIZE as u64).unwrap();
            assert!(!present(), "{kind}");
        }
    }

    #[test]
    fn only_whole_pages_of_guest_memory_are_taken() {
        for (kind, memory) in memories() {
            let reclaim = Reclaim::new(memory.clone());
            let end = 0x1000 + SIZE as u64;
            for (address, length) in [
                (0x1001, 0x1000),
                (0x1000, 0x800),
                (0, 0x2000),
                (end - 0x1000, 0x2000),
                (end, 0x1000),
                (u64::MAX - 0xfff, 0x2000),
                (0x1000, u64::MAX - 0xfff),
            ] {
                assert!(
                    reclaim.give_back(address, length).is_err(),
                    "{kind} {address:#x} {length:#x}"
                );
            }
            assert_eq!(zero(&memory, 64), [false; 64], "{kind}");
            reclaim.give_back(0x1000, 0).unwrap();
        }
    }

    #[test]
    fn a_guest_cannot_use_up_the_mappings_of_the_process() {
        let memory = mapped(file(), libc::MAP_PRIVATE);
        let reclaim = Reclaim::new(memory.clone());
        reclaim.mappings.store(MOST_MAPPINGS, Ordering::Relaxed);
        let lines = || {
            std::fs::read_to_string("/proc/self/maps")
                .unwrap()
                .matches("memfd:guest")
                .count()
        };
        let before = lines();
        for page in (2..60).step_by(2) {
            reclaim.give_back(page * PAGE, PAGE).unwrap();
        }
        assert!(lines() <= before + 2, "other tests may have some");
        let zero = zero(&memory, 60);
        assert!(
            zero.iter()
                .zip(1..)
                .all(|(zero, page)| *zero == (page % 2 == 0 && page < 60))
        );
    }
}

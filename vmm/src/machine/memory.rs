//! Guest memory, and whether the host can give it.

use std::fs::File;
use std::io;

use reprise_hypervisor::GuestMemory;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::boot::layout;

/// The least memory that a machine can have: below lie tables that every guest gets.
pub const MIN: u64 = 2 << 20;

/// Guest memory that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Too little for any guest.
    #[error("the memory is {size} bytes; expected at least {MIN}")]
    TooSmall {
        /// What was asked for, in bytes.
        size: u64,
    },
    /// More than the host has.
    #[error("the memory is {size} bytes; this host has {host} bytes of memory and swap")]
    BeyondHost {
        /// What was asked for, in bytes.
        size: u64,
        /// What the host has in all, in bytes.
        host: u64,
    },
    /// Not whole pages.
    #[error("the memory is {size} bytes; expected a multiple of 4096")]
    Unaligned {
        /// What was asked for, in bytes.
        size: u64,
    },
    /// The host refuses.
    #[error("the host cannot map {size} bytes of memory")]
    Map {
        /// What was asked for, in bytes.
        size: u64,
        /// What it says.
        source: vm_memory::mmap::FromRangesError,
    },
    /// The host has no file for memory that other processes map.
    #[error("the host has no file for {size} bytes of shared memory")]
    File {
        /// What was asked for, in bytes.
        size: u64,
        /// What it says.
        source: io::Error,
    },
    /// A snapshot's memory cannot be given to a file.
    #[error("memory cannot be copied to where other processes can map it")]
    Copy {
        /// Why.
        #[from]
        source: vm_memory::GuestMemoryError,
    },
}

/// Whether other processes map the guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// It is this process's own.
    Private,
    /// It is a file in memory, of which devices in other processes are given the descriptor.
    Shared,
}

impl Sharing {
    /// That of memory which is shared if `shared`.
    pub fn of(shared: bool) -> Self {
        if shared { Self::Shared } else { Self::Private }
    }
}

/// Bytes that are copied at once.
const CHUNK: usize = 1 << 20;

/// Maps `size` bytes of zeros around the devices' addresses. The host provides pages as they are touched.
///
/// # Errors
/// [`MemoryError`] if the size makes no sense or the host does not have it.
pub fn map(size: u64, sharing: Sharing) -> Result<GuestMemory, MemoryError> {
    check(size)?;
    let ranges = layout::ram(size).into_iter();
    map_ranges(
        size,
        ranges.map(|range| (range.start, range.end - range.start)),
        sharing,
    )
}

/// The same memory, where other processes can map it, and by itself.
///
/// # Errors
/// [`MemoryError`] if the host does not have it twice.
pub fn share(memory: &GuestMemory) -> Result<GuestMemory, MemoryError> {
    let size = memory.iter().map(GuestMemoryRegion::len).sum();
    let ranges = memory.iter().map(|region| (region.start_addr().0, region.len()));
    let shared = map_ranges(size, ranges, Sharing::Shared)?;
    let mut buffer = vec![0; CHUNK];
    for region in memory.iter() {
        let (start, length) = (region.start_addr().0, region.len());
        for offset in (0..length).step_by(CHUNK) {
            let chunk = &mut buffer[..usize::try_from(length - offset).map_or(CHUNK, |left| left.min(CHUNK))];
            memory.read_slice(chunk, GuestAddress(start + offset))?;
            // What was never touched costs nothing here either.
            if chunk.iter().any(|byte| *byte != 0) {
                shared.write_slice(chunk, GuestAddress(start + offset))?;
            }
        }
    }
    Ok(shared)
}

/// Maps ranges (start, length), `size` bytes in all.
fn map_ranges(
    size: u64,
    ranges: impl Iterator<Item = (u64, u64)>,
    sharing: Sharing,
) -> Result<GuestMemory, MemoryError> {
    let file = |sharing| match sharing {
        Sharing::Private => Ok(None),
        Sharing::Shared => {
            let file = memfd_create("guest-memory", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
            ftruncate(&file, size)?;
            // Whoever is given it could take away what is mapped here.
            fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
            io::Result::Ok(Some(File::from(file)))
        }
    };
    let no_file = |source| MemoryError::File { size, source };
    let file = file(sharing).map_err(no_file)?;
    let mut placed = Vec::new();
    let mut offset = 0;
    for (start, length) in ranges {
        let file = file.as_ref().map(File::try_clone).transpose().map_err(no_file)?;
        let file = file.map(|file| FileOffset::new(file, offset));
        offset += length;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        placed.push((GuestAddress(start), length, file));
    }
    GuestMemory::from_ranges_with_files(placed).map_err(|source| MemoryError::Map { size, source })
}

/// Whether a machine can have `size` bytes of memory on this host.
///
/// # Errors
/// [`MemoryError`] if not.
pub fn check(size: u64) -> Result<(), MemoryError> {
    if size < MIN {
        return Err(MemoryError::TooSmall { size });
    }
    if !size.is_multiple_of(4096) {
        return Err(MemoryError::Unaligned { size });
    }
    if let Some(host) = host_memory().filter(|host| size > *host) {
        return Err(MemoryError::BeyondHost { size, host });
    }
    Ok(())
}

/// Memory and swap of the host, in bytes, free or not; `None` if it does not tell.
fn host_memory() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let bytes = |name: &str| -> Option<u64> {
        let line = info.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim()
            .strip_suffix("kB")?
            .trim_end()
            .parse::<u64>()
            .ok()?
            .checked_mul(1024)
    };
    Some(bytes("MemTotal:")?.saturating_add(bytes("SwapTotal:").unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_makes_no_sense_is_refused() {
        let map = |size| map(size, Sharing::Private);
        assert!(matches!(map(0), Err(MemoryError::TooSmall { size: 0 })));
        assert!(matches!(map(MIN + 1), Err(MemoryError::Unaligned { .. })));
        assert!(matches!(map(1 << 60), Err(MemoryError::BeyondHost { .. })));
        assert!(matches!(map(!4095), Err(MemoryError::BeyondHost { .. })));
    }

    #[test]
    fn memory_costs_nothing_until_it_is_touched() {
        let memory = map(256 << 20, Sharing::Private).unwrap();
        assert_eq!(memory.num_regions(), 1);
    }

    #[test]
    fn shared_memory_is_one_file_that_others_see() {
        use std::os::unix::fs::FileExt;

        let memory = map(8 << 20, Sharing::Shared).unwrap();
        memory.write_slice(b"shared", GuestAddress(0x12_3456)).unwrap();
        let region = memory.iter().next().unwrap();
        let file = region.file_offset().unwrap();
        let mut bytes = [0; 6];
        file.file().read_exact_at(&mut bytes, file.start() + 0x12_3456).unwrap();
        assert_eq!(&bytes, b"shared");
        assert!(file.file().set_len(0).is_err(), "nobody takes it away");
    }

    #[test]
    fn memory_that_is_shared_later_is_the_same_and_by_itself() {
        let memory = map(8 << 20, Sharing::Private).unwrap();
        let places = [0, 0x1_0000 - 3, (8 << 20) - 6].map(GuestAddress);
        for place in places {
            memory.write_slice(b"before", place).unwrap();
        }
        let shared = share(&memory).unwrap();
        for place in places {
            assert_eq!(&shared.read_obj::<[u8; 6]>(place).unwrap(), b"before");
            memory.write_slice(b"behind", place).unwrap();
            assert_eq!(&shared.read_obj::<[u8; 6]>(place).unwrap(), b"before");
        }
        assert!(shared.iter().all(|region| region.file_offset().is_some()));
    }
}

//! Guest memory, and whether the host can give it.

use reprise_hypervisor::GuestMemory;
use vm_memory::GuestAddress;

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
}

/// Maps `size` bytes of zeros around the devices' addresses. The host provides pages as they are touched.
///
/// # Errors
/// [`MemoryError`] if the size makes no sense or the host does not have it.
pub fn map(size: u64) -> Result<GuestMemory, MemoryError> {
    check(size)?;
    let length = |length: u64| usize::try_from(length).unwrap_or(usize::MAX);
    let ranges = layout::ram(size)
        .into_iter()
        .map(|range| (GuestAddress(range.start), length(range.end - range.start)));
    GuestMemory::from_ranges(&ranges.collect::<Vec<_>>()).map_err(|source| MemoryError::Map { size, source })
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
        assert!(matches!(map(0), Err(MemoryError::TooSmall { size: 0 })));
        assert!(matches!(map(MIN + 1), Err(MemoryError::Unaligned { .. })));
        assert!(matches!(map(1 << 60), Err(MemoryError::BeyondHost { .. })));
        assert!(matches!(map(!4095), Err(MemoryError::BeyondHost { .. })));
    }

    #[test]
    fn memory_costs_nothing_until_it_is_touched() {
        let memory = map(256 << 20).unwrap();
        assert_eq!(memory.num_regions(), 1);
    }

    use vm_memory::GuestMemoryBackend;
}

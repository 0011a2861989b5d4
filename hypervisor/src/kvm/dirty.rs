//! Which pages of guest memory were written: by vCPUs, which KVM logs, and by devices, which say so.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use kvm_ioctls::VmFd;
use reprise_emulator::Ram;
use reprise_emulator::ram::PAGE_SIZE;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use super::error::{KvmError, Named};
use super::sys;

/// The log; `None` while nothing is logged.
#[derive(Debug, Default)]
pub struct Dirty(Mutex<Option<BTreeSet<u64>>>);

impl Dirty {
    /// Begins (true), with nothing written, or ends.
    ///
    /// # Errors
    /// What KVM says.
    pub fn log(&self, fd: &VmFd, ram: &Ram, on: bool) -> Result<(), KvmError> {
        let mut written = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        map(fd, ram, on)?;
        *written = on.then(BTreeSet::new);
        if on {
            // What was logged before is none of this log.
            pages(fd, ram)?;
        }
        Ok(())
    }

    /// A device has written.
    pub fn written(&self, address: u64, length: u64) {
        let mut written = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(written), Some(last)) = (&mut *written, length.checked_sub(1)) {
            let last = address.saturating_add(last);
            written.extend(address / PAGE_SIZE..=last / PAGE_SIZE);
        }
    }

    /// What was written since this was asked last, page by page, as ranges of addresses in order.
    ///
    /// # Errors
    /// What KVM says; nothing is forgotten then.
    pub fn take(&self, fd: &VmFd, ram: &Ram) -> Result<Vec<Range<u64>>, KvmError> {
        let mut written = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(written) = &mut *written else {
            return Ok(Vec::new());
        };
        written.extend(pages(fd, ram)?);
        Ok(ranges(std::mem::take(written)))
    }
}

/// Gives KVM the regions of `ram`, which keeps them mapped, with or without a log of their own.
///
/// # Errors
/// [`KvmError::MemorySlot`].
pub fn map(fd: &VmFd, ram: &Ram, log: bool) -> Result<(), KvmError> {
    for (slot, region) in (0..).zip(ram.memory().iter()) {
        sys::set_memory_slot(fd, slot, region, log).map_err(|source| KvmError::MemorySlot {
            slot,
            address: region.start_addr().raw_value(),
            length: region.len(),
            source,
        })?;
    }
    Ok(())
}

/// The pages that vCPUs have written since this was asked last.
fn pages(fd: &VmFd, ram: &Ram) -> Result<Vec<u64>, KvmError> {
    let mut pages = Vec::new();
    for (slot, region) in (0..).zip(ram.memory().iter()) {
        let length = usize::try_from(region.len()).unwrap_or(usize::MAX);
        let log = fd.get_dirty_log(slot, length).of_vm("KVM_GET_DIRTY_LOG")?;
        let first = region.start_addr().raw_value() / PAGE_SIZE;
        for (word, bits) in (0..).zip(log) {
            let bits = (0..64).filter(|bit| bits >> bit & 1 != 0);
            pages.extend(bits.map(|bit| first + 64 * word + bit));
        }
    }
    Ok(pages)
}

fn ranges(pages: BTreeSet<u64>) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for page in pages {
        let (start, end) = (page * PAGE_SIZE, (page + 1) * PAGE_SIZE);
        match ranges.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => ranges.push(start..end),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_one_range() {
        assert_eq!(
            ranges(BTreeSet::from([1, 2, 3, 7])),
            vec![0x1000..0x4000, 0x7000..0x8000]
        );
    }
}

//! Memory that host code is executed from: one memfd, mapped twice, once to be written and once to be executed.
//!
//! # Invariants
//! * No page is ever both writable and executable at one address.
//! * Code is appended, and distances in it are patched, only while none of it runs: a buffer belongs to one CPU.
//!
//! # Life
//! Filled from the start; when it is full everything behind the thunks is dropped at once ([`Buffer::truncate`]).
#![allow(unsafe_code, reason = "code is written through a raw mapping")]

use std::fs::File;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::{FileOffset, MmapRegion};

use super::TranslationError;

const PROT_READ: i32 = 1;
const PROT_WRITE: i32 = 2;
const PROT_EXEC: i32 = 4;
const MAP_SHARED: i32 = 1;

/// Code of one CPU.
pub(super) struct Buffer {
    writable: MmapRegion<()>,
    executable: MmapRegion<()>,
    used: usize,
}

impl Buffer {
    /// An empty buffer of `size` bytes, rounded up to pages; they are allocated as they are used.
    ///
    /// # Errors
    /// [`TranslationError::Memory`] if the host does not let memory be executed.
    pub(super) fn new(size: usize) -> Result<Buffer, TranslationError> {
        let size = size.next_multiple_of(4096);
        let memory = |source| TranslationError::Memory { source };
        let file = memfd_create("reprise-code", MemfdFlags::CLOEXEC).map_err(|error| memory(error.into()))?;
        // Open once for both, as there may be many CPUs.
        let file = Arc::new(File::from(file));
        file.set_len(size as u64).map_err(memory)?;
        let map = |protection| {
            let file = FileOffset::from_arc(Arc::clone(&file), 0);
            MmapRegion::build(Some(file), size, protection, MAP_SHARED).map_err(|error| {
                let vm_memory::mmap::MmapRegionError::Mmap(source) = error else {
                    return memory(std::io::Error::other(error));
                };
                memory(source)
            })
        };
        Ok(Buffer {
            writable: map(PROT_READ | PROT_WRITE)?,
            executable: map(PROT_READ | PROT_EXEC)?,
            used: 0,
        })
    }

    /// Bytes in use, which is where the next code will be.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// Bytes that can still be appended.
    pub(super) fn free(&self) -> usize {
        self.writable.size() - self.used
    }

    /// Adds code at [`used`](Self::used).
    ///
    /// # Panics
    /// If there is no room.
    pub(super) fn append(&mut self, code: &[u8]) {
        self.write(self.used, code);
        self.used += code.len();
    }

    /// Replaces the four bytes at `at`.
    ///
    /// # Panics
    /// If they are not within the code.
    pub(super) fn patch(&mut self, at: usize, value: i32) {
        assert!(at + 4 <= self.used);
        self.write(at, &value.to_le_bytes());
    }

    fn write(&mut self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.writable.size());
        // SAFETY: the bytes lie within the mapping, which belongs to the buffer; nobody reads it meanwhile.
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), self.writable.as_ptr().add(at), bytes.len()) };
    }

    /// The four bytes before the host's address `behind`.
    ///
    /// # Panics
    /// If they are not within the buffer.
    pub(super) fn word_at(&self, address: u64) -> u32 {
        let at = address.wrapping_sub(self.address(0)) as usize;
        assert!(at <= self.used - 4);
        // SAFETY: the four bytes lie within the mapping.
        unsafe { self.writable.as_ptr().add(at).cast::<u32>().read_unaligned() }
    }

    /// The host's address of the code at `at`.
    pub(super) fn address(&self, at: usize) -> u64 {
        self.executable.as_ptr().expose_provenance() as u64 + at as u64
    }

    /// Drops all code from `to` on.
    pub(super) fn truncate(&mut self, to: usize) {
        self.used = to.min(self.used);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_here_is_executable_there_and_nowhere_both() {
        let mut buffer = Buffer::new(100).unwrap();
        buffer.append(&[1, 2, 3, 4, 5]);
        buffer.patch(1, 0x0908_0706);
        assert_eq!(buffer.word_at(buffer.address(1)), 0x0908_0706);
        assert_eq!((buffer.used(), buffer.free()), (5, 4091));
        assert_ne!(buffer.writable.as_ptr(), buffer.executable.as_ptr());
        assert_eq!(buffer.writable.prot() & PROT_EXEC, 0);
        assert_eq!(buffer.executable.prot() & PROT_WRITE, 0);
        buffer.truncate(2);
        assert_eq!(buffer.used(), 2);
    }
}

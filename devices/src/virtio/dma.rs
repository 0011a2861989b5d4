//! Guest memory as a device reaches it.
//!
//! # Invariants
//! - Every byte that a device writes has been told to the [`MemoryWatcher`] when the write returns, so that no processor goes on
//!   with instructions decoded from what was there before.
//! - An access outside guest memory is an error, and never one of the host's.

use std::fmt;
use std::sync::Arc;

use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    VolatileSlice,
};

/// Who is told what devices write.
pub trait MemoryWatcher: Send + Sync {
    /// `length` bytes of guest memory from `address` on were written.
    fn written(&self, address: u64, length: u64);
}

impl<F: Fn(u64, u64) + Send + Sync> MemoryWatcher for F {
    fn written(&self, address: u64, length: u64) {
        self(address, length);
    }
}

/// An access that is not, or not all, in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{length} bytes at {address:#x} are not in guest memory")]
pub struct DmaError {
    /// The first byte.
    pub address: u64,
    /// How many.
    pub length: u64,
}

/// A handle to guest memory; copies lead to the same.
#[derive(Clone)]
pub struct Dma {
    memory: GuestMemoryMmap,
    watcher: Arc<dyn MemoryWatcher>,
}

impl Dma {
    /// Access to `memory`, of which `watcher` is told.
    #[must_use]
    pub fn new(memory: GuestMemoryMmap, watcher: Arc<dyn MemoryWatcher>) -> Self {
        Self { memory, watcher }
    }

    /// Fills `bytes` from `address` on.
    ///
    /// # Errors
    /// [`DmaError`] if that is not guest memory.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), DmaError> {
        self.memory
            .read_slice(bytes, GuestAddress(address))
            .map_err(|_| DmaError {
                address,
                length: bytes.len() as u64,
            })
    }

    /// Writes `bytes` from `address` on.
    ///
    /// # Errors
    /// [`DmaError`] if that is not guest memory; what lies before its end may have been written.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), DmaError> {
        let written = self.memory.write_slice(bytes, GuestAddress(address));
        self.written(address, bytes.len() as u64);
        written.map_err(|_| DmaError {
            address,
            length: bytes.len() as u64,
        })
    }

    /// The memory of `length` bytes from `address` on, in as many parts as it lies in. Whoever writes there tells so afterwards.
    pub(super) fn slices(
        &self,
        address: u64,
        length: usize,
    ) -> impl Iterator<Item = Result<VolatileSlice<'_>, DmaError>> {
        let slices = GuestMemoryBackend::get_slices(&self.memory, GuestAddress(address), length);
        slices.map(move |slice| {
            slice.map_err(|_| DmaError {
                address,
                length: length as u64,
            })
        })
    }

    /// Memory for what writes by itself, and tells so afterwards with [`written`](Self::written).
    pub(crate) fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// Whether all of it is in files that other processes can map, and see what is written here.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.memory.iter().all(|region| shared_file(region).is_some())
    }

    /// Somebody may have written anywhere: another process that maps the memory.
    pub fn written_anywhere(&self) {
        for region in self.memory.iter() {
            self.written(region.start_addr().0, region.len());
        }
    }

    pub(crate) fn written(&self, address: u64, length: u64) {
        self.watcher.written(address, length);
    }
}

/// Of mmap's flags, those that tell whether others see what is written: MAP_SHARED or not.
const MAP_TYPE: i32 = 0xf;
const MAP_SHARED: i32 = 0x1;

/// The file of a part of memory, and where in it, if others that map it see the same.
pub(crate) fn shared_file(region: &GuestRegionMmap) -> Option<&FileOffset> {
    // What is mapped privately is not what its file has.
    region.file_offset().filter(|_| region.flags() & MAP_TYPE == MAP_SHARED)
}

impl fmt::Debug for Dma {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dma")
    }
}

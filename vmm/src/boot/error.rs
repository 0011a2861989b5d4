//! Why a machine cannot boot what it was given. Each names the thing and what was expected of it.

use std::io;
use std::path::{Path, PathBuf};

use super::elf::ElfError;
use super::multiboot::MultibootError;

/// Which of the files it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The kernel.
    Kernel,
    /// The initial RAM file system.
    Initramfs,
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::Initramfs => "initramfs",
        })
    }
}

/// A machine cannot boot what it was given.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The file cannot be opened or read.
    #[error("{part} {path} cannot be read")]
    Read {
        /// Which file.
        part: Part,
        /// Where.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A directory, a device, a pipe.
    #[error("{part} {path} is {found}; expected a regular file")]
    NotAFile {
        /// Which file.
        part: Part,
        /// Where.
        path: PathBuf,
        /// What it is instead.
        found: &'static str,
    },
    /// Nothing in it.
    #[error("{part} {path} is empty")]
    Empty {
        /// Which file.
        part: Part,
        /// Where.
        path: PathBuf,
    },
    /// Some other kind of file.
    #[error("kernel {path} is neither an ELF image (vmlinux), nor a Linux bzImage (vmlinuz), nor a Multiboot kernel")]
    UnknownFormat {
        /// Where.
        path: PathBuf,
    },
    /// An ELF image that cannot be loaded.
    #[error("kernel {path} cannot be loaded as an ELF image")]
    Elf {
        /// Where.
        path: PathBuf,
        /// What is wrong with it.
        source: ElfError,
    },
    /// A Multiboot kernel that cannot be loaded.
    #[error("kernel {path} cannot be loaded as a Multiboot kernel")]
    Multiboot {
        /// Where.
        path: PathBuf,
        /// What is wrong with it.
        source: MultibootError,
    },
    /// A bzImage that ends before its header says.
    #[error("kernel {path} is a truncated bzImage: it has {size} bytes, its header announces {expected}")]
    TruncatedBzImage {
        /// Where.
        path: PathBuf,
        /// Bytes in the file.
        size: u64,
        /// Bytes that must be there.
        expected: u64,
    },
    /// A bzImage of the last millennium, or a zImage.
    #[error(
        "kernel {path} is a Linux image of boot protocol {}.{:02} that cannot be loaded high; expected a bzImage of \
         protocol 2.06 or newer",
        version >> 8, version & 0xff
    )]
    OldBzImage {
        /// Where.
        path: PathBuf,
        /// The protocol, major in the high byte.
        version: u16,
    },
    /// A bzImage that does not fit.
    #[error("kernel {path} needs memory up to {end:#x}; RAM below 4 GiB ends at {ram_end:#x}")]
    BzImageTooLarge {
        /// Where.
        path: PathBuf,
        /// One past the last byte that it needs to unpack itself.
        end: u64,
        /// One past the last byte of RAM there.
        ram_end: u64,
    },
    /// An initramfs that does not fit.
    #[error(
        "initramfs {path} has {size} bytes; {available} are free between the kernel's end at {kernel_end:#x} and {ram_end:#x}"
    )]
    InitramfsTooLarge {
        /// Where.
        path: PathBuf,
        /// Its bytes.
        size: u64,
        /// The bytes free for it.
        available: u64,
        /// One past the last byte of the kernel.
        kernel_end: u64,
        /// One past the last byte where an initramfs may lie.
        ram_end: u64,
    },
    /// A command line that the kernel would cut.
    #[error("the command line has {length} bytes; this kernel takes at most {max}")]
    CommandLineTooLong {
        /// Its bytes.
        length: usize,
        /// How many the kernel takes.
        max: usize,
    },
    /// A zero byte ends a command line.
    #[error("the command line has a zero byte at offset {offset}; expected text without one")]
    CommandLineNul {
        /// Where it is.
        offset: usize,
    },
    /// Guest memory that should be there is not.
    #[error("guest memory at {address:#x} cannot be written")]
    Memory {
        /// Where.
        address: u64,
        /// What is wrong there.
        source: vm_memory::GuestMemoryError,
    },
}

impl BootError {
    pub(super) fn read(part: Part, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Read {
            part,
            path: path.to_owned(),
            source,
        }
    }

    pub(super) fn memory(address: u64) -> impl FnOnce(vm_memory::GuestMemoryError) -> Self {
        move |source| Self::Memory { address, source }
    }
}

//! Multiboot 1 kernels, which tests and small systems are (Multiboot Specification version 0.6.96).
//!
//! # Purpose
//! A Multiboot kernel has a header in its first 8 KiB. It is loaded as the 32-bit ELF image that it is, or, if the header
//! says so, from the addresses in the header itself. It is told of its machine in an information structure, and
//! entered in flat 32-bit protected mode. Where the specification leaves a choice we do as QEMU and GRUB do: the command
//! line begins with the kernel's path, and the module lies right behind the kernel.

use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;

use reprise_hypervisor::GuestMemory;
use vm_memory::{Bytes, GuestAddress, ReadVolatile};

use super::elf::{self, Class, ElfError, Segment};
use super::{BootError, Placed, layout};

/// In EAX at the entry: this is a Multiboot loader.
pub const LOADER_MAGIC: u64 = 0x2bad_b002;
/// The first word of the header.
const HEADER_MAGIC: u32 = 0x1bad_b002;
/// The header lies within so many bytes from the start of the file.
const SEARCHED: usize = 8192;
/// Magic, flags, checksum; then five addresses.
const HEADER_SIZE: usize = 12;
const HEADER_SIZE_WITH_ADDRESSES: usize = 32;
/// Bits of the header's flags. Bits 0 and 1 (modules on pages, memory information) are always fulfilled; a wish for a
/// video mode (bit 2) is not, and QEMU boots such kernels all the same.
const MUST_UNDERSTAND: u32 = 0xffff;
const UNDERSTOOD: u32 = 0b111;
const WANTS_VIDEO: u32 = 1 << 2;
const HAS_ADDRESSES: u32 = 1 << 16;
/// Bits of the information structure's flags: which of its fields are valid.
const INFO_MEMORY: u32 = 1 << 0;
const INFO_COMMAND_LINE: u32 = 1 << 2;
const INFO_MODULES: u32 = 1 << 3;
const INFO_MEMORY_MAP: u32 = 1 << 6;
const INFO_LOADER_NAME: u32 = 1 << 9;
const LOADER_NAME: &[u8] = b"Reprise\0";

/// A Multiboot kernel that cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum MultibootError {
    /// It insists on something that no version of the specification to date defines.
    #[error("its header at byte {offset} requires features {flags:#x} that are not known; known are {UNDERSTOOD:#x}")]
    Requires {
        /// Where the header is in the file.
        offset: u64,
        /// The bits of `flags` that are not known.
        flags: u32,
    },
    /// An image that needs 64-bit mode, which Multiboot does not offer.
    #[error("it is a 64-bit ELF image without load addresses in its Multiboot header; expected a 32-bit one")]
    Class64,
    /// Neither addresses nor an ELF image.
    #[error("it is no ELF image, and its Multiboot header has no load addresses (bit 16 of flags)")]
    NoAddresses,
    /// Addresses of the header that contradict each other.
    #[error("its {field} is {found:#x}; expected {expected}")]
    Address {
        /// The header's field.
        field: &'static str,
        /// What it says.
        found: u32,
        /// What it should say.
        expected: String,
    },
    /// The ELF image, or what the addresses ask for, cannot be loaded.
    #[error(transparent)]
    Image(#[from] ElfError),
}

/// A Multiboot header that has been found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Where it is in the file.
    offset: u64,
    flags: u32,
    addresses: Option<Addresses>,
    class: Option<Class>,
}

/// What the header says of a kernel that is no ELF image, or does not want to be taken as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Addresses {
    header: u32,
    load: u32,
    load_end: u32,
    bss_end: u32,
    entry: u32,
}

/// What is known of a kernel once it lies in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loaded {
    /// The physical address of the first instruction.
    pub entry: u64,
    /// One past the last byte of the kernel.
    pub end: u64,
}

impl Header {
    /// Looks for a header in the first 8 KiB of `image`.
    pub fn find(image: &mut (impl Read + Seek)) -> io::Result<Option<Self>> {
        image.seek(SeekFrom::Start(0))?;
        let mut start = Vec::with_capacity(SEARCHED);
        image.take(SEARCHED as u64).read_to_end(&mut start)?;
        Ok((0..start.len())
            .step_by(4)
            .find_map(|offset| Self::parse(&start, offset)))
    }

    fn parse(start: &[u8], offset: usize) -> Option<Self> {
        let word = |index: usize| {
            let bytes = start.get(offset + 4 * index..)?.first_chunk()?;
            Some(u32::from_le_bytes(*bytes))
        };
        start.get(offset..offset + HEADER_SIZE)?;
        let (magic, flags, checksum) = (word(0)?, word(1)?, word(2)?);
        if magic != HEADER_MAGIC || magic.wrapping_add(flags).wrapping_add(checksum) != 0 {
            return None;
        }
        let addresses = if flags & HAS_ADDRESSES != 0 {
            start.get(offset..offset + HEADER_SIZE_WITH_ADDRESSES)?;
            Some(Addresses {
                header: word(3)?,
                load: word(4)?,
                load_end: word(5)?,
                bss_end: word(6)?,
                entry: word(7)?,
            })
        } else {
            None
        };
        Some(Self {
            offset: offset as u64,
            flags,
            addresses,
            class: Class::of(start),
        })
    }

    /// Whether the kernel is a 64-bit ELF image, which may be meant for another protocol.
    pub fn is_in_64_bit_image(&self) -> bool {
        self.class == Some(Class::Bits64)
    }

    /// Copies the kernel to where it wants to be.
    pub fn load(
        &self,
        memory: &GuestMemory,
        image: &mut (impl Read + Seek + ReadVolatile),
    ) -> Result<Loaded, MultibootError> {
        let unknown = self.flags & MUST_UNDERSTAND & !UNDERSTOOD;
        if unknown != 0 {
            return Err(MultibootError::Requires {
                offset: self.offset,
                flags: unknown,
            });
        }
        if self.flags & WANTS_VIDEO != 0 {
            tracing::warn!("the Multiboot kernel asks for a video mode; there is none");
        }
        match (self.addresses, self.class) {
            (Some(addresses), _) => self.load_by_addresses(&addresses, memory, image),
            (None, Some(Class::Bits32)) => {
                let loaded = elf::load(memory, image, Class::Bits32)?;
                Ok(Loaded {
                    entry: loaded.entry,
                    end: loaded.end,
                })
            }
            (None, Some(Class::Bits64)) => Err(MultibootError::Class64),
            (None, None) => Err(MultibootError::NoAddresses),
        }
    }

    fn load_by_addresses(
        &self,
        addresses: &Addresses,
        memory: &GuestMemory,
        image: &mut (impl Read + Seek + ReadVolatile),
    ) -> Result<Loaded, MultibootError> {
        let file_size = image.seek(SeekFrom::End(0)).map_err(ElfError::from)?;
        let segment = self.segment(addresses, file_size)?;
        segment.check(memory, file_size)?;
        let entry = u64::from(addresses.entry);
        if !segment.range.contains(&entry) {
            return Err(ElfError::Entry { entry }.into());
        }
        segment.copy(memory, image)?;
        Ok(Loaded {
            entry,
            end: segment.range.end,
        })
    }

    /// The one segment that the addresses describe, of a file of `file_size` bytes.
    fn segment(&self, addresses: &Addresses, file_size: u64) -> Result<Segment, MultibootError> {
        let wrong = |field, found, expected: String| Err(MultibootError::Address { field, found, expected });
        let load = u64::from(addresses.load);
        let Some(before) = addresses.header.checked_sub(addresses.load) else {
            let expected = format!("at least load_addr, {load:#x}");
            return wrong("header_addr", addresses.header, expected);
        };
        let Some(offset) = self.offset.checked_sub(before.into()) else {
            let expected = format!(
                "at most {:#x} more than load_addr: so much is before the header",
                self.offset
            );
            return wrong("header_addr", addresses.header, expected);
        };
        // Zero is the whole file.
        let load_end = match addresses.load_end {
            0 => load + (file_size - offset),
            end if u64::from(end) < load => {
                return wrong("load_end_addr", end, format!("0, or at least load_addr, {load:#x}"));
            }
            end => end.into(),
        };
        // Zero is no more than was loaded.
        let end = match addresses.bss_end {
            0 => load_end,
            end if u64::from(end) < load_end => {
                return wrong(
                    "bss_end_addr",
                    end,
                    format!("0, or at least the loaded part's end, {load_end:#x}"),
                );
            }
            end => end.into(),
        };
        Ok(Segment {
            offset,
            file_size: load_end - load,
            range: load..end,
            virtual_address: load,
        })
    }
}

/// The command line as a Multiboot kernel expects it: after the kernel's own path.
pub fn command_line(kernel: &[u8], line: &str) -> Vec<u8> {
    let mut bytes = kernel.to_vec();
    if !line.is_empty() {
        bytes.push(b' ');
        bytes.extend(line.bytes());
    }
    bytes
}

/// Writes the information structure and what it points at; the command line is there already. `module` is the path of
/// what was placed as the module.
pub fn write(
    memory: &GuestMemory,
    memory_size: u64,
    low_ram_end: u64,
    placed: &Placed,
    module: &[u8],
) -> Result<(), BootError> {
    let put = |bytes: &[u8], address: u64| {
        memory
            .write_slice(bytes, GuestAddress(address))
            .map_err(BootError::memory(address))
    };
    let mut map = Vec::new();
    for (range, kind) in layout::memory_map(memory_size) {
        // The entry's size does not count itself.
        map.extend(20_u32.to_le_bytes());
        map.extend(range.start.to_le_bytes());
        map.extend((range.end - range.start).to_le_bytes());
        map.extend(kind.number().to_le_bytes());
    }
    put(&map, layout::MEMORY_MAP)?;
    put(LOADER_NAME, layout::LOADER_NAME)?;
    if let Some(Range { start, end }) = placed.initramfs {
        put(
            &words(&[low(start), low(end), low(layout::MODULE_NAME), 0]),
            layout::MODULES,
        )?;
        put(module, layout::MODULE_NAME)?;
        put(&[0], layout::MODULE_NAME + module.len() as u64)?;
    }
    let mut info = [0; 29];
    info[0] = INFO_MEMORY | INFO_COMMAND_LINE | INFO_MODULES | INFO_MEMORY_MAP | INFO_LOADER_NAME;
    // In KiB, from 0 and from 1 MiB.
    info[1] = low(layout::LOW_END >> 10);
    info[2] = low(low_ram_end.saturating_sub(layout::HIGH_START) >> 10);
    info[4] = low(layout::COMMAND_LINE);
    info[5] = u32::from(placed.initramfs.is_some());
    info[6] = low(layout::MODULES);
    info[11] = u32::try_from(map.len()).expect("a handful of entries");
    info[12] = low(layout::MEMORY_MAP);
    info[16] = low(layout::LOADER_NAME);
    put(&words(&info), layout::MULTIBOOT_INFO)
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn low(value: u64) -> u32 {
    u32::try_from(value).expect("it lies below 4 GiB")
}

#[cfg(test)]
mod tests;

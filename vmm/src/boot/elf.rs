//! ELF images: a vmlinux and its PVH entry point, and the 32-bit image of a Multiboot kernel.
//!
//! # Purpose
//! The image is checked as a whole (System V ABI, Object Files) before a byte of it is copied, so that an error can say
//! what was expected, and then read straight from the file into guest memory.

mod class;

use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;

use linux_loader::elf::{Elf64_Nhdr, PT_LOAD, PT_NOTE};
use reprise_hypervisor::GuestMemory;
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryBackend, ReadVolatile};

use super::layout;
pub use class::Class;
use class::{FileHeader, ProgramHeader};

/// The four bytes at the start of every ELF image.
pub const MAGIC: [u8; 4] = *b"\x7fELF";

/// The note whose descriptor is the physical address of the PVH entry point (Xen, xen/include/public/elfnote.h).
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;
/// Notes are a few hundred bytes; more is not worth reading.
const MAX_NOTES: u64 = 1 << 20;

/// An ELF image that cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ElfError {
    /// The file ends too early.
    #[error("it is truncated: {what} ends at byte {end}, the file at byte {size}")]
    Truncated {
        /// What should have been there.
        what: &'static str,
        /// One past its last byte.
        end: u64,
        /// Bytes in the file.
        size: u64,
    },
    /// Another class, byte order or machine.
    #[error("its {what} is {found}; expected {expected}")]
    Unsuitable {
        /// The header's field.
        what: &'static str,
        /// What it says.
        found: u64,
        /// What it should say.
        expected: &'static str,
    },
    /// Nothing to load.
    #[error("it has no loadable segment")]
    NoSegments,
    /// A segment that is larger in the file than in memory, or wraps around the address space.
    #[error("its segment at {start:#x} has {file_size:#x} bytes in the file and {memory_size:#x} in memory")]
    MalformedSegment {
        /// Its physical address.
        start: u64,
        /// Its bytes in the file.
        file_size: u64,
        /// Its bytes in memory.
        memory_size: u64,
    },
    /// A segment where there is no RAM, or where the VMM keeps its own tables.
    #[error("it needs memory at {start:#x}..{end:#x}; a kernel may use {ram}")]
    DoesNotFit {
        /// The segment's physical address.
        start: u64,
        /// One past its last byte.
        end: u64,
        /// The ranges there are.
        ram: String,
    },
    /// An entry point outside the image.
    #[error("its entry point {entry:#x} is in none of its segments")]
    Entry {
        /// The entry point.
        entry: u64,
    },
    /// The file cannot be read.
    #[error("it cannot be read")]
    Read {
        /// What the system says.
        source: io::Error,
    },
    /// Guest memory cannot be written.
    #[error("guest memory at {address:#x} cannot be written")]
    Memory {
        /// Where.
        address: u64,
        /// What is wrong there.
        source: vm_memory::GuestMemoryError,
    },
}

impl From<io::Error> for ElfError {
    fn from(source: io::Error) -> Self {
        Self::Read { source }
    }
}

/// What is known of an image once it lies in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loaded {
    /// Where the image itself wants to be entered: for Linux, in 64-bit mode. For a 32-bit image, a physical address.
    pub entry: u64,
    /// Where PVH enters it, in 32-bit protected mode; `None` without the note.
    pub pvh_entry: Option<u64>,
    /// One past the last byte that the image occupies in RAM below 4 GiB.
    pub end: u64,
}

/// Whether the image has a PVH entry point; `false` also for what is no image at all.
pub fn has_pvh_entry(image: &mut (impl Read + Seek)) -> bool {
    Headers::read(image, Class::Bits64)
        .and_then(|headers| headers.pvh_entry(image))
        .is_ok_and(|entry| entry.is_some())
}

/// Copies the image, which must be of `class`, to the physical addresses it asks for.
///
/// # Errors
/// [`ElfError`]; guest memory may then hold a part of the image.
pub fn load(
    memory: &GuestMemory,
    image: &mut (impl Read + Seek + ReadVolatile),
    class: Class,
) -> Result<Loaded, ElfError> {
    let headers = Headers::read(image, class)?;
    let mut end = 0;
    for segment in &headers.segments {
        segment.check(memory, headers.file_size)?;
        if segment.range.end <= layout::MMIO_START {
            end = end.max(segment.range.end);
        }
    }
    let pvh_entry = headers.pvh_entry(image)?;
    let entry = pvh_entry.unwrap_or_else(|| headers.entry());
    if !headers.segments.iter().any(|segment| segment.range.contains(&entry)) {
        return Err(ElfError::Entry { entry });
    }
    for segment in &headers.segments {
        segment.copy(memory, image)?;
    }
    Ok(Loaded {
        entry: headers.entry(),
        pvh_entry,
        end,
    })
}

struct Headers {
    class: Class,
    file_size: u64,
    header: FileHeader,
    segments: Vec<Segment>,
    notes: Vec<Range<u64>>,
}

/// What is copied in one piece.
pub struct Segment {
    /// Where its bytes are in the file.
    pub offset: u64,
    /// How many they are.
    pub file_size: u64,
    /// Where they go, and the zeros after them.
    pub range: Range<u64>,
    /// The address by which the image calls the first.
    pub virtual_address: u64,
}

impl Headers {
    fn read(image: &mut (impl Read + Seek), class: Class) -> Result<Self, ElfError> {
        let file_size = image.seek(SeekFrom::End(0))?;
        let header = class.file_header(image, file_size)?;
        let mut headers = Self {
            class,
            file_size,
            header,
            segments: Vec::new(),
            notes: Vec::new(),
        };
        for index in 0..u64::from(header.count) {
            let offset = header
                .program_headers
                .saturating_add(index * class.program_header_size());
            headers.take(&class.program_header(image, offset, file_size)?)?;
        }
        if headers.segments.is_empty() {
            return Err(ElfError::NoSegments);
        }
        Ok(headers)
    }

    /// Notes one program header.
    fn take(&mut self, header: &ProgramHeader) -> Result<(), ElfError> {
        match header.kind {
            PT_LOAD if header.memory_size > 0 => {
                let malformed = ElfError::MalformedSegment {
                    start: header.physical_address,
                    file_size: header.file_size,
                    memory_size: header.memory_size,
                };
                let Some(end) = header
                    .physical_address
                    .checked_add(header.memory_size)
                    .filter(|_| header.file_size <= header.memory_size)
                else {
                    return Err(malformed);
                };
                self.segments.push(Segment {
                    offset: header.offset,
                    file_size: header.file_size,
                    range: header.physical_address..end,
                    virtual_address: header.virtual_address,
                });
            }
            PT_NOTE => self
                .notes
                .push(header.offset..header.offset.saturating_add(header.file_size.min(MAX_NOTES))),
            _ => (),
        }
        Ok(())
    }

    /// The entry point as a physical address. A 64-bit Linux gives it so, though it is linked at a virtual address;
    /// 32-bit kernels give the virtual address that they are linked at.
    fn entry(&self) -> u64 {
        let entry = self.header.entry;
        if self.class == Class::Bits64 {
            return entry;
        }
        let within = |segment: &Segment| {
            let offset = entry.checked_sub(segment.virtual_address)?;
            let physical = segment.range.start + offset.min(segment.file_size);
            (offset < segment.file_size).then_some(physical)
        };
        self.segments.iter().find_map(within).unwrap_or(entry)
    }

    fn pvh_entry(&self, image: &mut (impl Read + Seek)) -> Result<Option<u64>, ElfError> {
        for range in &self.notes {
            if range.end > self.file_size {
                let (end, size) = (range.end, self.file_size);
                return Err(ElfError::Truncated {
                    what: "a note segment",
                    end,
                    size,
                });
            }
            let mut at = range.start;
            while at.saturating_add(size_of::<Elf64_Nhdr>() as u64) <= range.end {
                let note: Elf64_Nhdr = object(image, at, self.file_size, "a note")?;
                let name = at + size_of::<Elf64_Nhdr>() as u64;
                let descriptor = name + u64::from(note.n_namesz).next_multiple_of(4);
                if note.n_type == XEN_ELFNOTE_PHYS32_ENTRY && note.n_namesz == 4 && note.n_descsz >= 4 {
                    let owner: [u8; 4] = object(image, name, self.file_size, "a note")?;
                    if &owner == b"Xen\0" {
                        let entry: u32 = object(image, descriptor, self.file_size, "the PVH note")?;
                        return Ok(Some(entry.into()));
                    }
                }
                at = descriptor + u64::from(note.n_descsz).next_multiple_of(4);
            }
        }
        Ok(None)
    }
}

impl Segment {
    /// Whether the file of `file_size` bytes has what it promises, and memory the room for it.
    pub fn check(&self, memory: &GuestMemory, file_size: u64) -> Result<(), ElfError> {
        let end = self.offset.saturating_add(self.file_size);
        if end > file_size {
            return Err(ElfError::Truncated {
                what: "a segment",
                end,
                size: file_size,
            });
        }
        let Range { start, end } = self.range;
        let length = usize::try_from(end - start).unwrap_or(usize::MAX);
        if start < layout::HIGH_START || !memory.check_range(GuestAddress(start), length) {
            return Err(ElfError::DoesNotFit {
                start,
                end,
                ram: high_ram(memory),
            });
        }
        Ok(())
    }

    /// Copies it; it has been checked.
    pub fn copy(&self, memory: &GuestMemory, image: &mut (impl Read + Seek + ReadVolatile)) -> Result<(), ElfError> {
        image.seek(SeekFrom::Start(self.offset))?;
        let address = self.range.start;
        let length = usize::try_from(self.file_size).expect("checked to lie within the file and guest memory");
        // Guest memory is all zeros before the load, so what the file does not fill needs nothing.
        memory
            .read_exact_volatile_from(GuestAddress(address), image, length)
            .map_err(|source| ElfError::Memory { address, source })
    }
}

/// The ranges where a kernel may lie, for people.
fn high_ram(memory: &GuestMemory) -> String {
    use vm_memory::{Address, GuestMemoryRegion};
    let ranges = memory.iter().map(|region| {
        let start = region.start_addr().raw_value();
        format!(
            "{:#x}..{:#x}",
            start.max(layout::HIGH_START),
            start.saturating_add(region.len())
        )
    });
    ranges.collect::<Vec<_>>().join(" and ")
}

/// Reads a plain structure at `offset` of a file of `size` bytes.
fn object<T: ByteValued + Default>(
    image: &mut (impl Read + Seek),
    offset: u64,
    size: u64,
    what: &'static str,
) -> Result<T, ElfError> {
    let end = offset.saturating_add(size_of::<T>() as u64);
    if end > size {
        return Err(ElfError::Truncated { what, end, size });
    }
    image.seek(SeekFrom::Start(offset))?;
    let mut object = T::default();
    image.read_exact(object.as_mut_slice())?;
    Ok(object)
}

#[cfg(test)]
mod tests;

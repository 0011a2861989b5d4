//! Puts a kernel into guest memory, and says how to enter it.
//!
//! # Purpose
//! | file | what is done |
//! |---|---|
//! | vmlinux with a PVH note | loaded where it asks for, entered through PVH |
//! | vmlinux without | entered at its 64-bit entry point by the Linux boot protocol |
//! | vmlinuz | its payload is unpacked here and is then such a vmlinux, if it has the PVH note |
//! | vmlinuz otherwise | loaded as it is, entered by the Linux boot protocol; it unpacks itself |
//! | anything with a Multiboot 1 header | loaded as that or its 32-bit ELF headers say, the initramfs is its module |
//!
//! # Invariants
//! - Files are checked before they are copied, so every error names the file and what was expected of it.
//! - Nothing but [`layout`] decides where things lie.
//!
//! # Life
//! Guest memory is fresh, that is zero. [`load`] fills it and gives back an [`Entry`]; [`Entry::cpu`] is the state to set
//! on vCPU 0.

mod bzimage;
mod elf;
mod entry;
mod error;
pub mod layout;
mod multiboot;
mod pvh;
#[cfg(test)]
pub(crate) mod test_images;
mod unpack;
mod zero_page;

use std::fs::File;
use std::io::{Cursor, Read, Seek};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use linux_loader::bootparam::setup_header;
use reprise_hypervisor::GuestMemory;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, ReadVolatile};

use bzimage::{BzImage, Found};
use elf::Class;
pub use elf::ElfError;
pub use entry::Entry;
pub use error::{BootError, Part};
pub use multiboot::MultibootError;
pub use unpack::{Format, UnpackError};

/// Pages in which the initramfs is placed.
const PAGE: u64 = 4096;

/// What a machine boots.
#[derive(Debug, Clone, Copy)]
pub struct Payload<'a> {
    /// A vmlinux, bzImage, vmlinuz or Multiboot kernel.
    pub kernel: &'a Path,
    /// A cpio archive, compressed as the kernel understands it; for a Multiboot kernel, its module.
    pub initramfs: Option<&'a Path>,
    /// The kernel's command line.
    pub command_line: &'a str,
    /// The guest-physical address of the ACPI RSDP.
    pub rsdp: u64,
}

/// What has been placed besides the kernel.
struct Placed {
    initramfs: Option<Range<u64>>,
    rsdp: u64,
}

/// Loads `payload` into `memory`, all of which is zero.
///
/// # Errors
/// [`BootError`] naming the file; guest memory may then hold a part of it.
pub fn load(memory: &GuestMemory, payload: &Payload<'_>) -> Result<Entry, BootError> {
    let path = payload.kernel;
    let mut file = open(Part::Kernel, path)?;
    let read = || BootError::read(Part::Kernel, path);
    let mut magic = [0; 4];
    file.read_exact(&mut magic).or_else(not_an_end).map_err(read())?;
    let multiboot = multiboot::Header::find(&mut file).map_err(read())?;
    if magic == elf::MAGIC {
        return match multiboot {
            // A kernel for several loaders, or a vmlinux that has the header's bytes by chance.
            Some(header) if header.is_in_64_bit_image() && elf::has_pvh_entry(&mut file) => {
                load_vmlinux(memory, payload, &mut file)
            }
            Some(header) => load_multiboot(memory, payload, &header, &mut file),
            None => load_vmlinux(memory, payload, &mut file),
        };
    }
    let image = match BzImage::find(&mut file).map_err(read())? {
        Found::BzImage(image) => image,
        Found::NotABzImage => match multiboot {
            Some(header) => return load_multiboot(memory, payload, &header, &mut file),
            None => return Err(BootError::UnknownFormat { path: path.to_owned() }),
        },
        Found::TooOld(version) => {
            return Err(BootError::OldBzImage {
                path: path.to_owned(),
                version,
            });
        }
        Found::Truncated(expected) => {
            let size = file.metadata().map_err(read())?.len();
            return Err(BootError::TruncatedBzImage {
                path: path.to_owned(),
                size,
                expected,
            });
        }
    };
    match unpack::unpack(&image.payload(&mut file).map_err(read())?, unpack::MAX_UNPACKED) {
        Ok(vmlinux) => {
            let mut vmlinux = Cursor::new(vmlinux);
            if elf::has_pvh_entry(&mut vmlinux) {
                return load_vmlinux(memory, payload, &mut vmlinux);
            }
            tracing::info!(kernel = %path.display(), "no PVH entry point inside: the kernel unpacks itself");
        }
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::info!(kernel = %path.display(), error, "the kernel unpacks itself");
        }
    }
    load_bzimage(memory, payload, &image, &mut file)
}

fn load_vmlinux(
    memory: &GuestMemory,
    payload: &Payload<'_>,
    image: &mut (impl Read + Seek + ReadVolatile),
) -> Result<Entry, BootError> {
    write_command_line(memory, payload.command_line.as_bytes(), pvh::COMMAND_LINE_MAX)?;
    let loaded = elf::load(memory, image, Class::Bits64).map_err(|source| BootError::Elf {
        path: payload.kernel.to_owned(),
        source,
    })?;
    let placed = place(memory, payload, loaded.end, low_ram_end(memory), Where::Highest)?;
    match loaded.pvh_entry {
        Some(rip) => {
            pvh::write(memory, size(memory), &placed)?;
            zero_page::write_gdt_32(memory)?;
            Ok(Entry::Pvh { rip })
        }
        None => enter_64(memory, None, &placed, loaded.entry),
    }
}

fn load_bzimage(
    memory: &GuestMemory,
    payload: &Payload<'_>,
    image: &BzImage,
    file: &mut File,
) -> Result<Entry, BootError> {
    write_command_line(
        memory,
        payload.command_line.as_bytes(),
        image.command_line_max().min(MAX_COMMAND_LINE),
    )?;
    let ram_end = low_ram_end(memory);
    if image.end() > ram_end {
        return Err(BootError::BzImageTooLarge {
            path: payload.kernel.to_owned(),
            end: image.end(),
            ram_end,
        });
    }
    let loaded = image
        .load(memory, file)
        .map_err(BootError::memory(layout::HIGH_START))?;
    let top = ram_end.min(image.initramfs_max().saturating_add(1));
    let placed = place(memory, payload, loaded.end, top, Where::Highest)?;
    if let Some(rip) = loaded.entry_64 {
        return enter_64(memory, Some(image.header()), &placed, rip);
    }
    zero_page::write(memory, size(memory), Some(image.header()), &placed)?;
    zero_page::write_gdt_32(memory)?;
    Ok(Entry::Linux32 { rip: loaded.entry_32 })
}

fn load_multiboot(
    memory: &GuestMemory,
    payload: &Payload<'_>,
    header: &multiboot::Header,
    file: &mut File,
) -> Result<Entry, BootError> {
    let line = multiboot::command_line(payload.kernel.as_os_str().as_bytes(), payload.command_line);
    write_command_line(memory, &line, MAX_COMMAND_LINE)?;
    let loaded = header.load(memory, file).map_err(|source| BootError::Multiboot {
        path: payload.kernel.to_owned(),
        source,
    })?;
    let ram_end = low_ram_end(memory);
    let placed = place(memory, payload, loaded.end, ram_end, Where::Lowest)?;
    let module = payload.initramfs.map_or(&[][..], |path| path.as_os_str().as_bytes());
    multiboot::write(memory, size(memory), ram_end, &placed, module)?;
    zero_page::write_gdt_32(memory)?;
    Ok(Entry::Multiboot { rip: loaded.entry })
}

fn enter_64(memory: &GuestMemory, header: Option<setup_header>, placed: &Placed, rip: u64) -> Result<Entry, BootError> {
    zero_page::write(memory, size(memory), header, placed)?;
    zero_page::write_long_mode_tables(memory)?;
    Ok(Entry::Linux64 { rip })
}

/// The room for a command line, whatever a kernel would take.
const MAX_COMMAND_LINE: usize = (layout::LOW_END - layout::COMMAND_LINE) as usize - 1;

fn write_command_line(memory: &GuestMemory, line: &[u8], max: usize) -> Result<(), BootError> {
    if let Some(offset) = line.iter().position(|byte| *byte == 0) {
        return Err(BootError::CommandLineNul { offset });
    }
    if line.len() > max {
        return Err(BootError::CommandLineTooLong {
            length: line.len(),
            max,
        });
    }
    let mut bytes = line.to_vec();
    bytes.push(0);
    memory
        .write_slice(&bytes, GuestAddress(layout::COMMAND_LINE))
        .map_err(BootError::memory(layout::COMMAND_LINE))
}

/// Where between the kernel's end and the top an initramfs goes.
#[derive(Clone, Copy)]
enum Where {
    /// Out of the way of a kernel that unpacks itself or allocates from the bottom.
    Highest,
    /// Right behind a kernel that allocates what follows its modules.
    Lowest,
}

/// Loads the initramfs above the kernel and below `top`, on a page.
fn place(
    memory: &GuestMemory,
    payload: &Payload<'_>,
    kernel_end: u64,
    top: u64,
    wanted: Where,
) -> Result<Placed, BootError> {
    let rsdp = payload.rsdp;
    let Some(path) = payload.initramfs else {
        return Ok(Placed { initramfs: None, rsdp });
    };
    let mut file = open(Part::Initramfs, path)?;
    let size = file.metadata().map_err(BootError::read(Part::Initramfs, path))?.len();
    let kernel_end = kernel_end.next_multiple_of(PAGE);
    let available = top.saturating_sub(kernel_end);
    let start = top
        .checked_sub(size)
        .map(|start| start & !(PAGE - 1))
        .filter(|start| *start >= kernel_end)
        .map(|start| match wanted {
            Where::Highest => start,
            Where::Lowest => kernel_end,
        });
    let Some(start) = start else {
        let path = path.to_owned();
        return Err(BootError::InitramfsTooLarge {
            path,
            size,
            available,
            kernel_end,
            ram_end: top,
        });
    };
    let length = usize::try_from(size).expect("it fits into guest memory");
    memory
        .read_exact_volatile_from(GuestAddress(start), &mut file, length)
        .map_err(BootError::memory(start))?;
    Ok(Placed {
        initramfs: Some(start..start + size),
        rsdp,
    })
}

/// Opens a regular file that has something in it.
fn open(part: Part, path: &Path) -> Result<File, BootError> {
    // Looked at before it is opened: opening a pipe waits for a writer.
    let metadata = std::fs::metadata(path).map_err(BootError::read(part, path))?;
    let found = if metadata.is_dir() {
        "a directory"
    } else {
        "a device, pipe or socket"
    };
    if !metadata.is_file() {
        return Err(BootError::NotAFile {
            part,
            path: path.to_owned(),
            found,
        });
    }
    if metadata.len() == 0 {
        return Err(BootError::Empty {
            part,
            path: path.to_owned(),
        });
    }
    File::open(path).map_err(BootError::read(part, path))
}

/// A file of less than four bytes is no error yet: it has no magic number.
fn not_an_end(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::UnexpectedEof {
        Ok(())
    } else {
        Err(error)
    }
}

/// All RAM, in bytes.
fn size(memory: &GuestMemory) -> u64 {
    memory.iter().map(GuestMemoryRegion::len).sum()
}

/// One past the last byte of RAM below 4 GiB.
fn low_ram_end(memory: &GuestMemory) -> u64 {
    memory
        .iter()
        .map(|region| region.start_addr().raw_value() + region.len())
        .filter(|end| *end <= layout::MMIO_START)
        .max()
        .unwrap_or(0)
}

#[cfg(test)]
mod tests;

//! vmlinuz: a Linux bzImage (Linux, Documentation/arch/x86/boot.rst).
//!
//! # Purpose
//! The file is a real-mode stub with the setup header, then the protected-mode part that unpacks the kernel. Either the
//! payload inside is unpacked on the host and the rest is not needed, or the protected-mode part is loaded as it is.

use std::io::{self, Read, Seek, SeekFrom};

use linux_loader::bootparam::setup_header;
use reprise_hypervisor::GuestMemory;
use vm_memory::{ByteValued, Bytes, GuestAddress, ReadVolatile};

use super::layout;

/// Where the setup header begins in the file and in `boot_params`.
const HEADER: u64 = 0x1f1;
/// Where its magic number is.
const MAGIC_OFFSET: usize = 0x202 - HEADER as usize;
/// "HdrS".
const MAGIC: u32 = 0x5372_6448;
/// The header ends this many bytes after [`MAGIC_OFFSET`], plus the byte at 0x201.
const HEADER_LENGTH_BYTE: usize = 0x201 - HEADER as usize;
const SECTOR: u64 = 512;
/// The first protocol with `cmdline_size`, and the oldest that is loaded.
const OLDEST: u16 = 0x0206;
/// `loadflags`: the protected-mode part lies at 1 MiB.
const LOADED_HIGH: u8 = 1 << 0;
/// The first protocol with `payload_offset` and `payload_length`.
const HAS_PAYLOAD: u16 = 0x0208;
/// The first protocol with `pref_address` and `init_size`.
const HAS_INIT_SIZE: u16 = 0x020a;
/// The first protocol with `xloadflags`.
const HAS_XLOADFLAGS: u16 = 0x020c;
/// `xloadflags`: there is a 64-bit entry point at 0x200.
const XLF_KERNEL_64: u16 = 1 << 0;
/// Where the protected-mode part is loaded.
const LOAD_ADDRESS: u64 = layout::HIGH_START;
/// Offset of the 64-bit entry point in the protected-mode part.
const ENTRY_64: u64 = 0x200;

/// What a file turned out to be.
pub enum Found {
    /// Some other kind of file.
    NotABzImage,
    /// A Linux image of this protocol, too old to be loaded.
    TooOld(u16),
    /// It ends early; it should have this many bytes.
    Truncated(u64),
    /// A bzImage.
    BzImage(BzImage),
}

/// A bzImage that has been looked at.
pub struct BzImage {
    header: setup_header,
    /// Where the protected-mode part begins in the file.
    start: u64,
    /// The protected-mode part's bytes.
    length: u64,
}

/// How to enter a bzImage that lies in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loaded {
    /// Its 64-bit entry point, if it has one.
    pub entry_64: Option<u64>,
    /// Its 32-bit entry point.
    pub entry_32: u64,
    /// One past the last byte that it needs until it has unpacked itself.
    pub end: u64,
}

impl BzImage {
    /// Looks at the file.
    ///
    /// # Errors
    /// The system's, if it cannot be read.
    pub fn find(image: &mut (impl Read + Seek)) -> io::Result<Found> {
        let size = image.seek(SeekFrom::End(0))?;
        let mut header = setup_header::default();
        let known = usize::try_from(size.saturating_sub(HEADER))
            .unwrap_or(usize::MAX)
            .min(size_of::<setup_header>());
        image.seek(SeekFrom::Start(HEADER))?;
        let bytes = header.as_mut_slice();
        image.read_exact(&mut bytes[..known])?;
        let magic = bytes[MAGIC_OFFSET..]
            .first_chunk::<4>()
            .map(|magic| u32::from_le_bytes(*magic));
        if magic != Some(MAGIC) {
            return Ok(Found::NotABzImage);
        }
        // What lies behind the end of an older, shorter header is code.
        let end = MAGIC_OFFSET + usize::from(bytes[HEADER_LENGTH_BYTE]);
        if let Some(beyond) = bytes.get_mut(end..) {
            beyond.fill(0);
        }
        let version = header.version;
        if version < OLDEST || header.loadflags & LOADED_HIGH == 0 {
            return Ok(Found::TooOld(version));
        }
        let sectors = if header.setup_sects == 0 {
            4
        } else {
            u64::from(header.setup_sects)
        };
        let start = (sectors + 1) * SECTOR;
        let payload_end = u64::from(header.payload_offset) + u64::from(header.payload_length);
        // `syssize` counts the protected-mode part in units of 16 bytes, but not what was signed and appended later.
        let expected = start + payload_end.max(16 * u64::from(header.syssize));
        if size < expected {
            return Ok(Found::Truncated(expected));
        }
        Ok(Found::BzImage(Self {
            header,
            start,
            length: size - start,
        }))
    }

    /// The setup header, for `boot_params`.
    pub fn header(&self) -> setup_header {
        self.header
    }

    /// The longest command line it takes, without the zero byte.
    pub fn command_line_max(&self) -> usize {
        usize::try_from(self.header.cmdline_size).unwrap_or(usize::MAX)
    }

    /// The last address where a byte of the initramfs may lie.
    pub fn initramfs_max(&self) -> u64 {
        self.header.initrd_addr_max.into()
    }

    /// One past the last byte that it needs in memory: where it lies, and where it unpacks itself to.
    pub fn end(&self) -> u64 {
        let loaded = LOAD_ADDRESS + self.length;
        if self.header.version < HAS_INIT_SIZE {
            return loaded;
        }
        let preferred = self.header.pref_address;
        loaded.max(preferred.saturating_add(self.header.init_size.into()))
    }

    /// The compressed kernel inside; empty if the header does not say where it is.
    ///
    /// # Errors
    /// The system's, if it cannot be read.
    pub fn payload(&self, image: &mut (impl Read + Seek)) -> io::Result<Vec<u8>> {
        if self.header.version < HAS_PAYLOAD {
            return Ok(Vec::new());
        }
        // `find` has checked that it lies within the file.
        let mut payload = vec![0; self.header.payload_length as usize];
        image.seek(SeekFrom::Start(self.start + u64::from(self.header.payload_offset)))?;
        image.read_exact(&mut payload)?;
        Ok(payload)
    }

    /// Copies the protected-mode part to guest memory, which has room up to [`end`](Self::end).
    ///
    /// # Errors
    /// If guest memory cannot be written or the file cannot be read.
    pub fn load(
        &self,
        memory: &GuestMemory,
        image: &mut (impl Read + Seek + ReadVolatile),
    ) -> Result<Loaded, vm_memory::GuestMemoryError> {
        image
            .seek(SeekFrom::Start(self.start))
            .map_err(vm_memory::GuestMemoryError::IOError)?;
        let length = usize::try_from(self.length).unwrap_or(usize::MAX);
        memory.read_exact_volatile_from(GuestAddress(LOAD_ADDRESS), image, length)?;
        let long = self.header.version >= HAS_XLOADFLAGS && self.header.xloadflags & XLF_KERNEL_64 != 0;
        Ok(Loaded {
            entry_64: long.then_some(LOAD_ADDRESS + ENTRY_64),
            entry_32: LOAD_ADDRESS,
            end: self.end(),
        })
    }
}

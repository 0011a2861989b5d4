//! The two classes of ELF image, and the fields that both have (System V ABI, Object Files).

use std::io::{Read, Seek};

use linux_loader::elf::{EI_CLASS, EI_DATA, ELFDATA2LSB, Elf64_Ehdr, Elf64_Phdr};

use super::{ElfError, MAGIC, object};

/// The file header of a 32-bit image, and one of its program headers, as little-endian words.
type Header32 = [u32; 13];
type ProgramHeader32 = [u32; 8];

/// A class of image, which is also a machine: nothing else runs here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// 32-bit, for the Intel 80386.
    Bits32,
    /// 64-bit, for x86-64.
    Bits64,
}

/// What the file header says.
#[derive(Debug, Clone, Copy)]
pub struct FileHeader {
    /// The entry point.
    pub entry: u64,
    /// Where the program header table is in the file.
    pub program_headers: u64,
    /// How many there are.
    pub count: u16,
}

/// What a program header says.
#[derive(Debug, Clone, Copy)]
pub struct ProgramHeader {
    /// `PT_LOAD`, `PT_NOTE`, …
    pub kind: u32,
    /// Where its bytes are in the file.
    pub offset: u64,
    /// The address by which the image calls it.
    pub virtual_address: u64,
    /// The address where it belongs.
    pub physical_address: u64,
    /// Its bytes in the file.
    pub file_size: u64,
    /// Its bytes in memory.
    pub memory_size: u64,
}

impl Class {
    /// The class of what begins with `start`; `None` if it is no image of either.
    pub fn of(start: &[u8]) -> Option<Self> {
        let class = start.get(EI_CLASS).filter(|_| start.starts_with(&MAGIC))?;
        [Self::Bits32, Self::Bits64]
            .into_iter()
            .find(|known| known.number() == *class)
    }

    fn number(self) -> u8 {
        match self {
            Self::Bits32 => 1,
            Self::Bits64 => 2,
        }
    }

    /// The bytes of one program header.
    pub fn program_header_size(self) -> u64 {
        match self {
            Self::Bits32 => size_of::<ProgramHeader32>() as u64,
            Self::Bits64 => size_of::<Elf64_Phdr>() as u64,
        }
    }

    /// Reads and checks the header of a file of `size` bytes, which must be of this class.
    pub fn file_header(self, image: &mut (impl Read + Seek), size: u64) -> Result<FileHeader, ElfError> {
        let what = "the ELF header";
        let (ident, machine, entry_size, header) = match self {
            Self::Bits32 => {
                let header: Header32 = object(image, 0, size, what)?;
                let mut ident = [0; 16];
                for (bytes, word) in ident.chunks_exact_mut(4).zip(header) {
                    bytes.copy_from_slice(&word.to_le_bytes());
                }
                let found = FileHeader {
                    entry: header[6].into(),
                    program_headers: header[7].into(),
                    count: header[11] as u16,
                };
                (ident, (header[4] >> 16) as u16, (header[10] >> 16) as u16, found)
            }
            Self::Bits64 => {
                let header: Elf64_Ehdr = object(image, 0, size, what)?;
                let found = FileHeader {
                    entry: header.e_entry,
                    program_headers: header.e_phoff,
                    count: header.e_phnum,
                };
                (header.e_ident, header.e_machine, header.e_phentsize, found)
            }
        };
        let unsuitable = |what, found: u64, expected| Err(ElfError::Unsuitable { what, found, expected });
        if ident[..4] != MAGIC {
            let magic = u32::from_be_bytes([ident[0], ident[1], ident[2], ident[3]]);
            return unsuitable("magic number", magic.into(), "0x7f 'E' 'L' 'F'");
        }
        let (class, known_machine, known_size) = match self {
            Self::Bits32 => ("1, 32-bit", (3, "3, Intel 80386"), "32"),
            Self::Bits64 => ("2, 64-bit", (62, "62, x86-64"), "56"),
        };
        if ident[EI_CLASS] != self.number() {
            return unsuitable("class", ident[EI_CLASS].into(), class);
        }
        if u32::from(ident[EI_DATA]) != u32::from(ELFDATA2LSB) {
            return unsuitable("data encoding", ident[EI_DATA].into(), "1, little-endian");
        }
        if machine != known_machine.0 {
            return unsuitable("machine", machine.into(), known_machine.1);
        }
        if u64::from(entry_size) != self.program_header_size() {
            return unsuitable("program header size", entry_size.into(), known_size);
        }
        Ok(header)
    }

    /// Reads the program header at `offset` of a file of `size` bytes.
    pub fn program_header(
        self,
        image: &mut (impl Read + Seek),
        offset: u64,
        size: u64,
    ) -> Result<ProgramHeader, ElfError> {
        let what = "the program header table";
        Ok(match self {
            Self::Bits32 => {
                let header: ProgramHeader32 = object(image, offset, size, what)?;
                let [
                    kind,
                    offset,
                    virtual_address,
                    physical_address,
                    file_size,
                    memory_size,
                    ..,
                ] = header;
                ProgramHeader {
                    kind,
                    offset: offset.into(),
                    virtual_address: virtual_address.into(),
                    physical_address: physical_address.into(),
                    file_size: file_size.into(),
                    memory_size: memory_size.into(),
                }
            }
            Self::Bits64 => {
                let header: Elf64_Phdr = object(image, offset, size, what)?;
                ProgramHeader {
                    kind: header.p_type,
                    offset: header.p_offset,
                    virtual_address: header.p_vaddr,
                    physical_address: header.p_paddr,
                    file_size: header.p_filesz,
                    memory_size: header.p_memsz,
                }
            }
        })
    }
}

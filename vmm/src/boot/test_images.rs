//! Kernels for tests, made byte by byte.

use linux_loader::elf::{Elf64_Ehdr, Elf64_Phdr, PT_LOAD, PT_NOTE};
use reprise_hypervisor::GuestMemory;
use vm_memory::{ByteValued, GuestAddress};

/// One range of memory from 0.
pub fn memory(size: usize) -> GuestMemory {
    GuestMemory::from_ranges(&[(GuestAddress(0), size)]).unwrap()
}

/// A loadable segment.
pub struct Segment {
    pub address: u64,
    pub content: Vec<u8>,
    pub memory_size: u64,
}

impl Default for Segment {
    fn default() -> Self {
        Self {
            address: 0x20_0000,
            content: b"code and more".to_vec(),
            memory_size: 0x2000,
        }
    }
}

/// An ELF image of one segment at 2 MiB.
pub struct Elf {
    pub entry: u64,
    pub segments: Vec<Segment>,
    /// What the PVH note says, if there is one. It comes last in the file.
    pub pvh: Option<u32>,
}

impl Default for Elf {
    fn default() -> Self {
        Self {
            entry: 0x20_0000,
            segments: vec![Segment::default()],
            pvh: None,
        }
    }
}

impl Elf {
    pub fn bytes(&self) -> Vec<u8> {
        let count = self.segments.len() + usize::from(self.pvh.is_some());
        let mut header = Elf64_Ehdr {
            e_type: 2,
            e_machine: 62,
            e_version: 1,
            e_entry: self.entry,
            e_phoff: 64,
            e_ehsize: 64,
            e_phentsize: 56,
            e_phnum: u16::try_from(count).unwrap(),
            ..Default::default()
        };
        header.e_ident[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        let mut headers: Vec<u8> = header.as_slice().to_vec();
        let mut content: Vec<u8> = Vec::new();
        let start = 64 + 56 * count as u64;
        for segment in &self.segments {
            let header = Elf64_Phdr {
                p_type: PT_LOAD,
                p_offset: start + content.len() as u64,
                p_paddr: segment.address,
                p_filesz: segment.content.len() as u64,
                p_memsz: segment.memory_size,
                ..Default::default()
            };
            headers.extend(header.as_slice());
            content.extend(&segment.content);
        }
        if let Some(entry) = self.pvh {
            let mut notes: Vec<u8> = Vec::new();
            for (kind, value) in [(6_u32, 7_u32), (18, entry)] {
                notes.extend([4, 4, kind].into_iter().flat_map(u32::to_le_bytes));
                notes.extend(b"Xen\0");
                notes.extend(value.to_le_bytes());
            }
            let header = Elf64_Phdr {
                p_type: PT_NOTE,
                p_offset: start + content.len() as u64,
                p_filesz: notes.len() as u64,
                p_memsz: notes.len() as u64,
                ..Default::default()
            };
            headers.extend(header.as_slice());
            content.extend(&notes);
        }
        headers.extend(content);
        headers
    }
}

/// A bzImage of protocol 2.15.
pub struct BzImage {
    /// What stands where the compressed kernel belongs.
    pub payload: Vec<u8>,
    pub has_64_bit_entry: bool,
    pub init_size: u32,
    pub initramfs_max: u32,
}

impl Default for BzImage {
    fn default() -> Self {
        Self {
            payload: b"neither here nor there".to_vec(),
            has_64_bit_entry: true,
            init_size: 0x1000,
            initramfs_max: 0x7fff_ffff,
        }
    }
}

impl BzImage {
    pub fn bytes(&self) -> Vec<u8> {
        const SETUP: usize = 2 * 512;
        const PAYLOAD: usize = 0x240;
        let mut image = vec![0; SETUP + PAYLOAD];
        image.extend(&self.payload);
        image.resize(image.len().next_multiple_of(16), 0);
        let units = u32::try_from((image.len() - SETUP) / 16).unwrap();
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x1f1, &[1]);
        put(0x1f4, &units.to_le_bytes());
        put(0x1fe, &0xaa55_u16.to_le_bytes());
        // The jump over the header: its length is the header's end, after which code may follow.
        put(0x200, &[0xeb, 0x66]);
        put(0x202, b"HdrS");
        put(0x206, &0x020f_u16.to_le_bytes());
        put(0x211, &[1]);
        put(0x214, &0x10_0000_u32.to_le_bytes());
        put(0x22c, &self.initramfs_max.to_le_bytes());
        put(0x236, &u16::from(self.has_64_bit_entry).to_le_bytes());
        put(0x238, &2047_u32.to_le_bytes());
        put(0x248, &u32::try_from(PAYLOAD).unwrap().to_le_bytes());
        put(0x24c, &u32::try_from(self.payload.len()).unwrap().to_le_bytes());
        put(0x258, &0x20_0000_u64.to_le_bytes());
        put(0x260, &self.init_size.to_le_bytes());
        put(SETUP, b"32-bit entry");
        put(SETUP + 0x200, b"64-bit entry");
        image
    }
}

/// A Multiboot kernel: header, then what is loaded.
pub struct Multiboot {
    pub flags: u32,
    pub magic: u32,
    /// `header_addr`, `load_addr`, `load_end_addr`, `bss_end_addr`, `entry_addr`.
    pub addresses: Option<[u32; 5]>,
    pub content: Vec<u8>,
}

impl Default for Multiboot {
    fn default() -> Self {
        Self {
            flags: 0b11,
            magic: 0x1bad_b002,
            addresses: None,
            content: b"multiboot code".to_vec(),
        }
    }
}

impl Multiboot {
    /// Without a container, as an image by addresses is.
    pub fn bytes(&self) -> Vec<u8> {
        let flags = self.flags | u32::from(self.addresses.is_some()) << 16;
        let checksum = 0_u32.wrapping_sub(self.magic.wrapping_add(flags));
        let words = [self.magic, flags, checksum]
            .into_iter()
            .chain(self.addresses.into_iter().flatten());
        words.flat_map(u32::to_le_bytes).chain(self.content.clone()).collect()
    }

    /// In an ELF image of one segment at 2 MiB, which begins with the header.
    pub fn in_elf_64(&self, pvh: Option<u32>) -> Vec<u8> {
        Elf {
            segments: vec![Segment {
                content: self.bytes(),
                ..Segment::default()
            }],
            pvh,
            ..Elf::default()
        }
        .bytes()
    }

    /// The same, of 32 bits, linked at 0xC020_0000 and entered 12 bytes from there, right behind the header.
    pub fn in_elf_32(&self) -> Vec<u8> {
        let content = self.bytes();
        let mut image: Vec<u8> = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        image.extend([2_u16, 3].iter().flat_map(|half| half.to_le_bytes()));
        image.extend(
            [1_u32, 0xc020_000c, 52, 0, 0]
                .iter()
                .flat_map(|word| word.to_le_bytes()),
        );
        image.extend([52_u16, 32, 1, 0, 0, 0].iter().flat_map(|half| half.to_le_bytes()));
        let size = u32::try_from(content.len()).unwrap();
        let header = [PT_LOAD, 84, 0xc020_0000, 0x20_0000, size, 0x2000, 7, 4];
        image.extend(header.iter().flat_map(|word| word.to_le_bytes()));
        image.extend(content);
        image
    }
}

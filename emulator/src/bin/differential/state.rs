//! What a case starts from and what it leaves behind: plain data that parent and child share.

/// Linear address of the two pages of code, which nobody can write.
pub const CODE: u64 = 0x1000_0000;
/// Linear address of two data pages, and of a third one that is read-only.
pub const DATA: u64 = 0x2000_0000;
/// Linear address of the stack's page.
pub const STACK: u64 = 0x3000_0000;
/// Size of a page.
pub const PAGE: usize = 4096;
/// Number of code pages.
pub const CODE_PAGES: usize = 2;
/// The pages that a case can change.
pub const WRITABLE: [u64; 3] = [DATA, DATA + PAGE as u64, STACK];
/// The page that it can only read.
pub const READ_ONLY: u64 = DATA + 2 * PAGE as u64;
/// What surrounds the instruction: INT3.
pub const FILLER: u8 = 0xcc;

/// CS of 64-bit code.
pub const CS64: u16 = 0x33;
/// CS of 32-bit code.
pub const CS32: u16 = 0x23;
/// Data and stack segments.
pub const FLAT: u16 = 0x2b;

/// The entries of the LDT, all of privilege level 3: base, limit in units, and the flags of Linux's `struct user_desc`.
pub const LDT: [LdtEntry; 8] = [
    LdtEntry {
        base: DATA as u32,
        limit: 0xf_ffff,
        flags: 0x51,
    },
    LdtEntry {
        base: DATA as u32,
        limit: 0x1fff,
        flags: 0x41,
    },
    // Read-only; expanding down; 16-bit data; 16-bit code; execute-only code; absent.
    LdtEntry {
        base: DATA as u32,
        limit: 0xfff,
        flags: 0x49,
    },
    LdtEntry {
        base: DATA as u32 - 0x8_0000,
        limit: 0x8_00ff,
        flags: 0x43,
    },
    LdtEntry {
        base: DATA as u32,
        limit: 0xffff,
        flags: 0x40,
    },
    LdtEntry {
        base: CODE as u32,
        limit: 0xffff,
        flags: 0x44,
    },
    LdtEntry {
        base: CODE as u32,
        limit: 0xf_ffff,
        flags: 0x5d,
    },
    LdtEntry {
        base: DATA as u32,
        limit: 0xfff,
        flags: 0x61,
    },
];

/// CS of 16-bit code: the LDT's.
pub const CS16: u16 = 5 << 3 | 7;

/// A data segment that is 16 bits wide.
pub const DATA16: u16 = 4 << 3 | 7;

/// An entry of the LDT.
#[derive(Debug, Clone, Copy)]
pub struct LdtEntry {
    /// Linear address.
    pub base: u32,
    /// Limit in bytes, or in pages.
    pub limit: u32,
    /// seg_32bit, contents (2 bits), read_exec_only, limit_in_pages, seg_not_present, useable: bits 0 to 6.
    pub flags: u32,
}

impl LdtEntry {
    /// The descriptor that Linux makes of it (accessed, as Linux always has it).
    pub fn descriptor(self) -> u64 {
        let bit = |i: u32| u64::from(self.flags >> i & 1);
        let kind = bit(1) << 2 | bit(2) << 3 | (bit(3) ^ 1) << 1 | 1;
        let rights = kind | 1 << 4 | 3 << 5 | (bit(5) ^ 1) << 7 | bit(6) << 12 | bit(0) << 14 | bit(4) << 15;
        let (base, limit) = (u64::from(self.base), u64::from(self.limit));
        limit & 0xffff | (base & 0xff_ffff) << 16 | rights << 40 | (limit >> 16 & 0xf) << 48 | (base >> 24) << 56
    }
}

/// Size of an XSAVE area with x87, XMM and YMM state in the standard format.
pub const XSAVE_SIZE: usize = 832;

/// x87, MXCSR, XMM and YMM registers, as XSAVE64 lays them out.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Xsave(pub [u8; XSAVE_SIZE]);

impl Xsave {
    /// The word of `N` bytes at `at`.
    pub fn get<const N: usize>(&self, at: usize) -> [u8; N] {
        core::array::from_fn(|i| self.0[at + i])
    }

    /// Replaces the bytes at `at`.
    pub fn set(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Bits 255:0 of a vector register.
    pub fn vector(&self, register: usize) -> [u8; 32] {
        let mut vector = [0; 32];
        vector[..16].copy_from_slice(&self.0[160 + 16 * register..][..16]);
        vector[16..].copy_from_slice(&self.0[576 + 16 * register..][..16]);
        vector
    }

    /// Sets bits 255:0 of a vector register.
    pub fn set_vector(&mut self, register: usize, vector: [u8; 32]) {
        self.set(160 + 16 * register, &vector[..16]);
        self.set(576 + 16 * register, &vector[16..]);
    }
}

/// The registers.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct State {
    /// Floating point and vectors.
    pub xsave: Xsave,
    /// By number, as instructions number them.
    pub gpr: [u64; 16],
    /// RIP.
    pub rip: u64,
    /// RFLAGS.
    pub flags: u64,
    /// Base of FS.
    pub fs_base: u64,
    /// Base of GS.
    pub gs_base: u64,
    /// ES, CS, SS, DS, FS, GS.
    pub selectors: [u16; 6],
    /// Nothing.
    pub padding: [u16; 2],
}

/// Bytes that differ from the template.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Patch {
    /// Index in [`WRITABLE`].
    pub page: u8,
    /// Number of bytes.
    pub length: u8,
    /// Offset in the page.
    pub at: u16,
    /// The bytes.
    pub bytes: [u8; 72],
}

/// Patches of one case.
pub const PATCHES: usize = 3;

/// What a case starts from.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Input {
    /// Registers.
    pub state: State,
    /// The instruction, at RIP.
    pub code: [u8; 16],
    /// How many bytes of `code` there are.
    pub length: u64,
    /// Memory besides the template.
    pub patches: [Patch; PATCHES],
}

/// Vector of an outcome that cannot be compared: the kernel did something on behalf of the case.
pub const NO_VECTOR: u32 = 0x100;

/// What a case leaves behind.
#[derive(Clone)]
#[repr(C)]
pub struct Output {
    /// Registers as the exception's handler sees them.
    pub state: State,
    /// Vector of the exception that ended the case.
    pub vector: u32,
    /// Error code, 0 if there is none.
    pub error_code: u32,
    /// CR2, of a page fault.
    pub cr2: u64,
    /// For each writable page, the first changed byte and the one behind the last; equal if there is none.
    pub changed: [[u16; 2]; 3],
    /// The pages' bytes, in that range.
    pub pages: [[u8; PAGE]; 3],
}

impl Output {
    /// The bytes of a page that changed, with the first one's offset.
    pub fn change(&self, page: usize) -> (usize, &[u8]) {
        let [start, end] = self.changed[page].map(usize::from);
        (start, &self.pages[page][start..end])
    }
}

/// Memory before each case: the writable pages, then the read-only one.
pub type Template = [[u8; PAGE]; 4];

/// Cases that are handed over at once.
pub const BATCH: usize = 64;

/// What parent and child share.
#[repr(C)]
pub struct Batch {
    /// Memory.
    pub template: Template,
    /// How many cases there are.
    pub count: u64,
    /// The case that is running.
    pub index: u64,
    /// The cases are of a program: what is on the code pages.
    pub has_program: u64,
    /// The code pages then.
    pub program: [u8; CODE_PAGES * PAGE],
    /// The cases.
    pub inputs: [Input; BATCH],
    /// What became of them.
    pub outputs: [Output; BATCH],
}

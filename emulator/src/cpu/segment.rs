//! Segment registers with their hidden parts, and descriptors (SDM Vol. 3, Protected-Mode Memory Management).

use serde::{Deserialize, Serialize};

/// System segment type: local descriptor table.
pub const LDT: u16 = 2;
/// System segment type: available 16-bit TSS.
pub const TSS16_AVAILABLE: u16 = 1;
/// System segment type: busy 16-bit TSS.
pub const TSS16_BUSY: u16 = 3;
/// System segment type: available 32-bit (64-bit in IA-32e mode) TSS.
pub const TSS32_AVAILABLE: u16 = 9;
/// System segment type: busy 32-bit (64-bit in IA-32e mode) TSS.
pub const TSS32_BUSY: u16 = 11;

/// A segment register, numbered as instructions number them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
pub enum Seg {
    /// Extra.
    Es = 0,
    /// Code.
    Cs = 1,
    /// Stack.
    Ss = 2,
    /// Data.
    Ds = 3,
    /// Extra, with a 64-bit base.
    Fs = 4,
    /// Extra, with a 64-bit base.
    Gs = 5,
}

impl Seg {
    /// All six, in their numbers' order.
    pub const ALL: [Seg; 6] = [Seg::Es, Seg::Cs, Seg::Ss, Seg::Ds, Seg::Fs, Seg::Gs];

    /// The register of this number, taken modulo 8; 6 and 7 give DS.
    #[inline(always)]
    pub fn from_number(number: u8) -> Seg {
        match number & 7 {
            0 => Seg::Es,
            1 => Seg::Cs,
            2 => Seg::Ss,
            4 => Seg::Fs,
            5 => Seg::Gs,
            _ => Seg::Ds,
        }
    }
}

/// The access rights of a segment, laid out as in bits 23:8 of a descriptor's second half with the limit bits cleared:
/// type 3:0, S 4, DPL 6:5, P 7, AVL 12, L 13, D/B 14, G 15.
#[derive(Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Attributes(pub u16);

impl Attributes {
    /// Type and S.
    pub fn kind(self) -> u16 {
        self.0 & 0x1f
    }

    /// The four type bits of a system descriptor.
    pub fn system_type(self) -> u16 {
        self.0 & 0xf
    }

    /// A code or data segment (S set).
    pub fn is_code_or_data(self) -> bool {
        self.0 & 0x10 != 0
    }

    /// A code segment.
    pub fn is_code(self) -> bool {
        self.0 & 0x18 == 0x18
    }

    /// A data segment.
    pub fn is_data(self) -> bool {
        self.0 & 0x18 == 0x10
    }

    /// A conforming code segment.
    pub fn is_conforming(self) -> bool {
        self.0 & 0x1c == 0x1c
    }

    /// A data segment that can be written.
    pub fn is_writable_data(self) -> bool {
        self.0 & 0x1a == 0x12
    }

    /// A data segment, or a code segment that can be read.
    pub fn is_readable(self) -> bool {
        self.is_data() || self.0 & 0x1a == 0x1a
    }

    /// A data segment whose limit is its lower end.
    pub fn is_expand_down(self) -> bool {
        self.0 & 0x1c == 0x14
    }

    /// The accessed bit of a code or data segment.
    pub fn is_accessed(self) -> bool {
        self.0 & 1 != 0
    }

    /// Descriptor privilege level, 0 to 3.
    pub fn dpl(self) -> u8 {
        (self.0 >> 5 & 3) as u8
    }

    /// Replaces the descriptor privilege level.
    pub fn with_dpl(self, dpl: u8) -> Attributes {
        Attributes(self.0 & !0x60 | u16::from(dpl & 3) << 5)
    }

    /// Present. A segment register loaded with a null selector has this clear.
    pub fn is_present(self) -> bool {
        self.0 & 0x80 != 0
    }

    /// 64-bit code.
    pub fn is_long(self) -> bool {
        self.0 & 0x2000 != 0
    }

    /// 32-bit code, stack pointer, or upper bound.
    pub fn is_big(self) -> bool {
        self.0 & 0x4000 != 0
    }

    /// The limit counts pages of 4 KiB.
    pub fn is_page_granular(self) -> bool {
        self.0 & 0x8000 != 0
    }
}

impl core::fmt::Debug for Attributes {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:#06x}", self.0)
    }
}

/// A segment register: selector and hidden part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Selector.
    pub selector: u16,
    /// Access rights.
    pub attributes: Attributes,
    /// Limit in bytes: the highest offset (the lowest minus one, if it expands down).
    pub limit: u32,
    /// Linear address of offset 0.
    pub base: u64,
}

impl Segment {
    /// A data segment as real mode has it: 64 KiB at selector × 16.
    pub fn real_mode(selector: u16) -> Segment {
        Segment {
            selector,
            attributes: Attributes(0x93),
            limit: 0xffff,
            base: u64::from(selector) << 4,
        }
    }

    /// A flat code or data segment of 4 GiB: `kind` has type and S.
    pub fn flat(selector: u16, attributes: Attributes) -> Segment {
        Segment {
            selector,
            attributes,
            limit: 0xffff_ffff,
            base: 0,
        }
    }

    /// LDTR or TR as RESET leaves them.
    pub fn null_system(kind: u16) -> Segment {
        Segment {
            selector: 0,
            attributes: Attributes(0x80 | kind),
            limit: 0xffff,
            base: 0,
        }
    }

    /// The low half of an unused or null segment register with this selector.
    pub fn null(selector: u16) -> Segment {
        Segment {
            selector,
            attributes: Attributes(0),
            limit: 0,
            base: 0,
        }
    }

    /// Unpacks an 8-byte descriptor; the base has 32 bits.
    pub fn from_descriptor(selector: u16, descriptor: u64) -> Segment {
        let attributes = Attributes((descriptor >> 40) as u16 & 0xf0ff);
        let raw = (descriptor & 0xffff | descriptor >> 32 & 0xf_0000) as u32;
        let limit = if attributes.is_page_granular() {
            raw << 12 | 0xfff
        } else {
            raw
        };
        let base = descriptor >> 16 & 0xff_ffff | descriptor >> 32 & 0xff00_0000;
        Segment {
            selector,
            attributes,
            limit,
            base,
        }
    }
}

/// ES, CS, SS, DS, FS and GS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segments([Segment; 6]);

impl Segments {
    /// As RESET leaves them, all at selector 0.
    pub fn real_mode() -> Segments {
        Segments([Segment::real_mode(0); 6])
    }
}

impl core::ops::Index<Seg> for Segments {
    type Output = Segment;

    #[inline(always)]
    fn index(&self, seg: Seg) -> &Segment {
        &self.0[seg as usize]
    }
}

impl core::ops::IndexMut<Seg> for Segments {
    #[inline(always)]
    fn index_mut(&mut self, seg: Seg) -> &mut Segment {
        &mut self.0[seg as usize]
    }
}

/// GDTR or IDTR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TableRegister {
    /// Linear address of the table.
    pub base: u64,
    /// Offset of its last byte.
    pub limit: u16,
}

//! How long an instruction is, even if there is no such instruction.
//!
//! The modelled processor finds the end of an instruction before it finds that it is none: as long as the bytes up to there
//! cannot be fetched, the fault is that of the fetch. So undefined opcodes have lengths, too: those of what would be there, or
//! once was. A prefix that the processor does not know (EVEX, or VEX behind REX) is the opcode that it was before.

use crate::cpu::CodeSize;

/// Bytes of the instruction at the start of `bytes`; more than there are if its end is not among them.
///
/// Nothing but prefixes, opcode, and the places of operands is looked at: whether there is such an instruction, the decoder
/// knows. Of EVEX it is only known that it is not there.
pub(super) fn length(code: CodeSize, bytes: &[u8]) -> usize {
    let mut reader = Reader {
        bytes,
        at: 0,
        code,
        operand: false,
        address: false,
        wide: false,
    };
    reader
        .opcode()
        .and_then(|tail| reader.end(tail))
        .unwrap_or(bytes.len() + 1)
}

/// Whether the bytes begin with an EVEX prefix.
pub(super) fn begins_evex(code: CodeSize, bytes: &[u8]) -> bool {
    let long = code == CodeSize::Bits64;
    let is_prefix = |byte: &u8| {
        matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3)
            || long && matches!(byte, 0x40..=0x4f)
    };
    let start = bytes.iter().take_while(|byte| is_prefix(byte)).count();
    match bytes[start..] {
        [0x62] => true,
        [0x62, modrm, ..] => long || modrm >= 0xc0,
        _ => false,
    }
}

/// What follows an opcode.
#[derive(Debug, Clone, Copy)]
struct Tail {
    modrm: bool,
    immediate: Immediate,
}

#[derive(Debug, Clone, Copy)]
enum Immediate {
    /// So many bytes.
    Bytes(usize),
    /// 2 or 4 bytes, as the operand size says; and so many more.
    Sized(usize),
    /// As [`Immediate::Sized`], or 8 bytes with REX.W.
    Full,
    /// As many as an address has.
    Address,
    /// For TEST, the first two of its group: one byte, or as the operand size says.
    Test { byte: bool },
}

const NOTHING: Tail = plain(0);
const MODRM: Tail = with_modrm(0);
const MODRM_BYTE: Tail = with_modrm(1);

const fn plain(bytes: usize) -> Tail {
    Tail {
        modrm: false,
        immediate: Immediate::Bytes(bytes),
    }
}

const fn with_modrm(bytes: usize) -> Tail {
    Tail {
        modrm: true,
        immediate: Immediate::Bytes(bytes),
    }
}

const fn sized(modrm: bool) -> Tail {
    Tail {
        modrm,
        immediate: Immediate::Sized(0),
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    code: CodeSize,
    /// There is a prefix 66.
    operand: bool,
    /// There is a prefix 67.
    address: bool,
    /// REX.W.
    wide: bool,
}

impl Reader<'_> {
    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    /// Reads prefixes and opcode.
    fn opcode(&mut self) -> Option<Tail> {
        let long = self.code == CodeSize::Bits64;
        let mut rex = None;
        loop {
            let byte = self.next()?;
            match byte {
                0x66 => self.operand = true,
                0x67 => self.address = true,
                0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0xf0 | 0xf2 | 0xf3 => {}
                0x40..=0x4f if long => {
                    rex = Some(byte);
                    continue;
                }
                _ => {
                    self.wide = rex.is_some_and(|rex| rex & 8 != 0);
                    return self.after_prefixes(byte, rex.is_some());
                }
            }
            rex = None;
        }
    }

    fn after_prefixes(&mut self, opcode: u8, has_rex: bool) -> Option<Tail> {
        let is_vex = match opcode {
            _ if has_rex => false,
            0xc4 | 0xc5 if self.code == CodeSize::Bits64 => true,
            0xc4 | 0xc5 => self.peek()? >= 0xc0,
            // XOP, which may not be there: POP has but one form.
            0x8f => self.peek()? >> 3 & 7 != 0,
            _ => false,
        };
        Some(match opcode {
            0x0f => {
                let opcode = self.next()?;
                if matches!(opcode, 0x38 | 0x3a) {
                    self.next()?;
                }
                two_bytes(opcode)
            }
            0xc5 if is_vex => {
                self.next()?;
                vex(1, self.next()?)
            }
            0xc4 if is_vex => {
                let map = self.next()? & 0x1f;
                self.next()?;
                vex(map, self.next()?)
            }
            0x8f if is_vex => {
                let map = self.next()? & 0x1f;
                self.next()?;
                self.next()?;
                if map == 10 { with_modrm(4) } else { MODRM }
            }
            opcode => one_byte(opcode),
        })
    }

    /// Where the instruction ends.
    fn end(mut self, tail: Tail) -> Option<usize> {
        let mut digit = 0;
        if tail.modrm {
            let modrm = self.next()?;
            digit = modrm >> 3 & 7;
            // Moves of control and debug registers name registers whatever the mode bits say.
            if !self.is_control_move() {
                self.at += self.displacement(modrm)?;
            }
        }
        let narrow = self.operand != (self.code == CodeSize::Bits16) && !self.wide;
        let size = if narrow { 2 } else { 4 };
        Some(
            self.at
                + match tail.immediate {
                    Immediate::Bytes(bytes) => bytes,
                    Immediate::Sized(more) => size + more,
                    Immediate::Full if self.wide => 8,
                    Immediate::Full => size,
                    Immediate::Address => self.address_size(),
                    Immediate::Test { .. } if digit > 1 => 0,
                    Immediate::Test { byte: true } => 1,
                    Immediate::Test { byte: false } => size,
                },
        )
    }

    fn is_control_move(&self) -> bool {
        matches!(self.bytes[..self.at], [.., 0x0f, 0x20..=0x23, _])
    }

    fn address_size(&self) -> usize {
        match (self.code, self.address) {
            (CodeSize::Bits16, false) | (CodeSize::Bits32, true) => 2,
            (CodeSize::Bits64, false) => 8,
            _ => 4,
        }
    }

    /// Bytes of displacement, after the SIB byte, which is read; `None` if that is missing.
    fn displacement(&mut self, modrm: u8) -> Option<usize> {
        let (mode, rm) = (modrm >> 6, modrm & 7);
        if self.address_size() == 2 {
            return Some(match (mode, rm) {
                (0, 6) | (2, _) => 2,
                (1, _) => 1,
                _ => 0,
            });
        }
        let base = if mode != 3 && rm == 4 { self.next()? & 7 } else { rm };
        Some(match (mode, base) {
            (0, 5) | (2, _) => 4,
            (1, _) => 1,
            _ => 0,
        })
    }
}

fn one_byte(opcode: u8) -> Tail {
    match opcode {
        // The eight arithmetic operations.
        0x00..=0x3f => match opcode & 7 {
            0..=3 => MODRM,
            4 => plain(1),
            5 => sized(false),
            _ => NOTHING,
        },
        0x62 | 0x63 | 0x84..=0x8f | 0xc4 | 0xc5 | 0xd0..=0xd3 | 0xd8..=0xdf | 0xfe | 0xff => MODRM,
        0x6b | 0x80 | 0x82 | 0x83 | 0xc0 | 0xc1 | 0xc6 => MODRM_BYTE,
        0x69 | 0x81 | 0xc7 => sized(true),
        0xf6 | 0xf7 => Tail {
            modrm: true,
            immediate: Immediate::Test { byte: opcode == 0xf6 },
        },
        0x6a | 0x70..=0x7f | 0xa8 | 0xb0..=0xb7 | 0xcd | 0xd4 | 0xd5 | 0xe0..=0xe7 | 0xeb => plain(1),
        0xc2 | 0xca => plain(2),
        0xc8 => plain(3),
        0x68 | 0xa9 | 0xe8 | 0xe9 => sized(false),
        0x9a | 0xea => Tail {
            modrm: false,
            immediate: Immediate::Sized(2),
        },
        0xb8..=0xbf => Tail {
            modrm: false,
            immediate: Immediate::Full,
        },
        0xa0..=0xa3 => Tail {
            modrm: false,
            immediate: Immediate::Address,
        },
        _ => NOTHING,
    }
}

/// Opcodes behind 0F; those of the maps 0F 38 and 0F 3A are all alike.
fn two_bytes(opcode: u8) -> Tail {
    match opcode {
        0x3a | 0x0f | 0x70..=0x73 | 0xa4 | 0xac | 0xba | 0xc2 | 0xc4..=0xc6 => MODRM_BYTE,
        // EXTRQ and INSERTQ.
        0x78 => with_modrm(2),
        0x80..=0x8f => sized(false),
        0x04..=0x0c | 0x0e | 0x24..=0x27 | 0x30..=0x37 | 0x39 | 0x3b..=0x3f | 0x77 | 0x7a | 0x7b => NOTHING,
        0xa0..=0xa2 | 0xa6..=0xaa | 0xb9 | 0xc8..=0xcf | 0xff => NOTHING,
        _ => MODRM,
    }
}

/// Opcodes behind a VEX prefix: those of the map that it stands for.
fn vex(map: u8, opcode: u8) -> Tail {
    match map {
        // The escapes of other maps are none here, and no prefix makes an operand narrow.
        1 if matches!(opcode, 0x38 | 0x3a) => NOTHING,
        1 if matches!(opcode, 0x80..=0x8f) => plain(4),
        1 if matches!(opcode, 0x20..=0x23) => plain(1),
        1 => two_bytes(opcode),
        3 => MODRM_BYTE,
        _ => MODRM,
    }
}

//! How long an instruction is that is not one.
//!
//! The modelled processor finds the end of an instruction before it finds that there is none of that kind: as long as the
//! bytes up to there cannot be fetched, the fault is that of the fetch. So undefined opcodes have lengths, too.

use crate::cpu::CodeSize;

/// Bytes of the instruction at the start of `bytes`, which is undefined; more than there are if its end is not among them.
pub(super) fn length(code: CodeSize, bytes: &[u8]) -> usize {
    let mut reader = Reader {
        bytes,
        at: 0,
        code,
        operand: false,
        address: false,
    };
    match reader.opcode() {
        Some(tail) => reader.end(tail),
        None => bytes.len() + 1,
    }
}

/// Whether the bytes begin with what is undefined whatever follows: EVEX where there is no such prefix, UD0, UD1.
pub(super) fn is_at_once(code: CodeSize, bytes: &[u8], has_evex: bool) -> bool {
    let long = code == CodeSize::Bits64;
    let is_prefix = |byte: &u8| {
        matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3)
            || long && matches!(byte, 0x40..=0x4f)
    };
    let start = bytes.iter().take_while(|byte| is_prefix(byte)).count();
    match &bytes[start..] {
        [0x62, ..] if long => !has_evex,
        [0x62, modrm, ..] => !has_evex && *modrm >= 0xc0,
        [0x0f, 0xb9 | 0xff, ..] => true,
        _ => false,
    }
}

/// What follows an opcode.
#[derive(Debug, Clone, Copy, Default)]
struct Tail {
    modrm: bool,
    immediate: usize,
}

impl Tail {
    const NOTHING: Tail = Tail {
        modrm: false,
        immediate: 0,
    };
    const MODRM: Tail = Tail {
        modrm: true,
        immediate: 0,
    };
    const MODRM_BYTE: Tail = Tail {
        modrm: true,
        immediate: 1,
    };
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    code: CodeSize,
    operand: bool,
    address: bool,
}

impl Reader<'_> {
    fn next(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    /// Reads prefixes and opcode.
    fn opcode(&mut self) -> Option<Tail> {
        let long = self.code == CodeSize::Bits64;
        loop {
            return Some(match self.next()? {
                0x66 => {
                    self.operand = true;
                    continue;
                }
                0x67 => {
                    self.address = true;
                    continue;
                }
                0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0xf0 | 0xf2 | 0xf3 => continue,
                0x40..=0x4f if long => continue,
                0x0f => match self.next()? {
                    0x38 => {
                        self.next()?;
                        Tail::MODRM
                    }
                    0x3a => {
                        self.next()?;
                        Tail::MODRM_BYTE
                    }
                    opcode => two_bytes(opcode),
                },
                0xc5 if long || self.names_registers() => {
                    self.next()?;
                    vex(1, self.next()?)
                }
                0xc4 if long || self.names_registers() => {
                    let map = self.next()? & 0x1f;
                    self.next()?;
                    vex(map, self.next()?)
                }
                opcode => self.one_byte(opcode),
            });
        }
    }

    /// The next byte is no ModR/M byte that names memory.
    fn names_registers(&self) -> bool {
        self.bytes.get(self.at).is_some_and(|modrm| *modrm >= 0xc0)
    }

    fn one_byte(&self, opcode: u8) -> Tail {
        match opcode {
            0x82 | 0xc6 => Tail::MODRM_BYTE,
            0xc7 => Tail {
                modrm: true,
                immediate: if self.operand == (self.code == CodeSize::Bits16) {
                    4
                } else {
                    2
                },
            },
            0x62 | 0x63 | 0x8c..=0x8f | 0xc4 | 0xc5 | 0xd8..=0xdf | 0xfe | 0xff => Tail::MODRM,
            _ => Tail::NOTHING,
        }
    }

    /// Where the instruction ends.
    fn end(mut self, tail: Tail) -> usize {
        if tail.modrm {
            let Some(modrm) = self.next() else {
                return self.bytes.len() + 1;
            };
            let displacement = match self.displacement(modrm) {
                Some(displacement) => displacement,
                None => return self.bytes.len() + 1,
            };
            self.at += displacement;
        }
        self.at + tail.immediate
    }

    /// Bytes of displacement, after the SIB byte, which is read; `None` if that is missing.
    fn displacement(&mut self, modrm: u8) -> Option<usize> {
        let (mode, rm) = (modrm >> 6, modrm & 7);
        let narrow = match self.code {
            CodeSize::Bits16 => !self.address,
            CodeSize::Bits32 => self.address,
            CodeSize::Bits64 => false,
        };
        if narrow {
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

/// Opcodes behind 0F.
fn two_bytes(opcode: u8) -> Tail {
    match opcode {
        0x70..=0x73 | 0xa4 | 0xac | 0xba | 0xc2 | 0xc4..=0xc6 | 0x0f => Tail::MODRM_BYTE,
        0x04 | 0x0a | 0x0c | 0x24..=0x27 | 0x36 | 0x37 | 0x39 | 0x3b..=0x3f | 0x7a | 0x7b | 0xa6 | 0xa7 | 0xb9 => {
            Tail::NOTHING
        }
        0x05..=0x09 | 0x0b | 0x0e | 0x30..=0x35 | 0x77 | 0xa0..=0xa2 | 0xa8..=0xaa | 0xc8..=0xcf | 0xff => {
            Tail::NOTHING
        }
        _ => Tail::MODRM,
    }
}

/// Opcodes behind a VEX prefix.
fn vex(map: u8, opcode: u8) -> Tail {
    match map {
        1 if opcode == 0x77 => Tail::NOTHING,
        1 if matches!(opcode, 0x70..=0x73 | 0xc2 | 0xc4..=0xc6) => Tail::MODRM_BYTE,
        3 => Tail::MODRM_BYTE,
        _ => Tail::MODRM,
    }
}

//! SSE4.2's comparisons of strings in registers: PCMPESTRI, PCMPESTRM, PCMPISTRI, PCMPISTRM (SDM Vol. 2, Imm8 Control Byte
//! Operation).

use super::lanes::build;
use super::shuffle::Lane;
use crate::cpu::flags::{CF, OF, SF, ZF};

/// What an instruction compares.
#[derive(Debug, Clone, Copy)]
pub(super) struct Strings {
    pub a: [u8; 16],
    pub b: [u8; 16],
    pub imm: u8,
    /// How many elements of `a` count, 0 to 16.
    length_a: usize,
    length_b: usize,
}

/// What it finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    /// One bit for each element of the second string.
    bits: u32,
    /// CF, ZF, SF and OF; the others become zero.
    pub flags: u64,
    elements: usize,
    imm: u8,
}

impl Strings {
    /// Strings that end before their first zero.
    pub(super) fn implicit(a: [u8; 16], b: [u8; 16], imm: u8) -> Strings {
        let length = |string: &[u8; 16]| {
            let count = elements(imm);
            (0..count).find(|i| element(string, *i, imm) == 0).unwrap_or(count)
        };
        let (length_a, length_b) = (length(&a), length(&b));
        Strings {
            a,
            b,
            imm,
            length_a,
            length_b,
        }
    }

    /// Strings with given lengths, whose signs do not count.
    pub(super) fn explicit(a: [u8; 16], b: [u8; 16], imm: u8, length_a: i64, length_b: i64) -> Strings {
        let length = |length: i64| length.unsigned_abs().min(elements(imm) as u64) as usize;
        let (length_a, length_b) = (length(length_a), length(length_b));
        Strings {
            a,
            b,
            imm,
            length_a,
            length_b,
        }
    }

    pub(super) fn compare(&self) -> Found {
        let count = elements(self.imm);
        let all = (1 << count) - 1;
        let mut bits = 0;
        for j in 0..count {
            bits |= u32::from(self.holds(j)) << j;
        }
        match self.imm >> 4 & 3 {
            1 => bits ^= all,
            // Masked: only elements of the string change.
            3 => bits ^= (1 << self.length_b) - 1,
            _ => {}
        }
        let flag = |holds: bool, flag: u64| if holds { flag } else { 0 };
        let flags = flag(bits != 0, CF)
            | flag(self.length_b < count, ZF)
            | flag(self.length_a < count, SF)
            | flag(bits & 1 != 0, OF);
        Found {
            bits,
            flags,
            elements: count,
            imm: self.imm,
        }
    }

    /// The comparison at element `j` of the second string.
    fn holds(&self, j: usize) -> bool {
        let a = |i: usize| element(&self.a, i, self.imm);
        let b = |i: usize| element(&self.b, i, self.imm);
        let in_b = j < self.length_b;
        match self.imm >> 2 & 3 {
            // Equal any.
            0 => in_b && (0..self.length_a).any(|i| a(i) == b(j)),
            // Ranges: from an even element to the next.
            1 => in_b && (0..self.length_a / 2).any(|i| (a(2 * i)..=a(2 * i + 1)).contains(&b(j))),
            // Equal each; beyond both ends is equal.
            2 => match (j < self.length_a, in_b) {
                (true, true) => a(j) == b(j),
                (in_a, in_b) => in_a == in_b,
            },
            // Equal ordered: the first string starts here, as far as the register reaches.
            _ => (0..elements(self.imm) - j)
                .take(self.length_a)
                .all(|i| j + i < self.length_b && a(i) == b(j + i)),
        }
    }
}

impl Found {
    /// Number of the lowest or, if the immediate says so, of the highest element found; that of none is one beyond the last.
    pub(super) fn index(&self) -> u64 {
        if self.bits == 0 {
            return self.elements as u64;
        }
        match self.imm & 0x40 {
            0 => self.bits.trailing_zeros().into(),
            _ => self.bits.ilog2().into(),
        }
    }

    /// The bits, or, if the immediate says so, an element of ones for each that is set.
    pub(super) fn mask(&self) -> [u8; 16] {
        let ones = |i: usize| self.bits >> i & 1 != 0;
        match (self.imm & 0x40, self.elements) {
            (0, _) => u128::from(self.bits).to_le_bytes(),
            (_, 16) => build::<u8, 16>(|i| if ones(i) { u8::MAX } else { 0 }),
            _ => build::<u16, 16>(|i| if ones(i) { u16::MAX } else { 0 }),
        }
    }
}

/// How many elements a register has.
fn elements(imm: u8) -> usize {
    if imm & 1 == 0 { 16 } else { 8 }
}

/// Element `i`, sign- or zero-extended.
fn element(string: &[u8; 16], i: usize, imm: u8) -> i32 {
    match imm & 3 {
        0 => u8::get(string, i).into(),
        1 => u16::get(string, i).into(),
        2 => i8::get(string, i).into(),
        _ => i16::get(string, i).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> [u8; 16] {
        build::<u8, 16>(|i| text.as_bytes().get(i).copied().unwrap_or(0))
    }

    fn found(a: &str, b: &str, imm: u8) -> Found {
        Strings::implicit(text(a), text(b), imm).compare()
    }

    #[test]
    fn equal_any_finds_a_character_of_a_set() {
        assert_eq!(found("aeiou", "rhythm and blues", 0x00).index(), 7);
        assert_eq!(found("aeiou", "rhythm and blues", 0x40).index(), 14);
        assert_eq!(found("aeiou", "rhythm", 0x00).index(), 16);
        assert_eq!(found("aeiou", "rhythm", 0x00).flags, SF | ZF);
    }

    #[test]
    fn ranges_take_pairs_and_ignore_an_odd_last_character() {
        assert_eq!(found("azAZ", "12 xY", 0x04).bits, 0b11000);
        assert_eq!(found("azA", "12 xY", 0x04).bits, 0b01000);
    }

    #[test]
    fn equal_each_counts_what_lies_beyond_both_ends() {
        assert_eq!(found("abc", "abd", 0x08).bits, 0xfffb);
        assert_eq!(found("abc", "abd", 0x18).index(), 2);
        assert_eq!(found("abc", "ab", 0x38).bits, 0xfff8);
        assert_eq!(found("abc", "ab", 0x18).bits, 0b100);
    }

    #[test]
    fn equal_ordered_finds_a_beginning_at_the_registers_end() {
        assert_eq!(found("lost", "paradise is lost", 0x0c).index(), 12);
        assert_eq!(found("lost", "paradise is lo", 0x0c).index(), 16);
        assert_eq!(found("lost", "lo, what a cello", 0x0c).index(), 14);
        assert_eq!(found("", "abc", 0x0c).bits, 0xffff);
    }

    #[test]
    fn lengths_may_be_negative_and_huge() {
        let (a, b) = (text("abcdefgh"), text("abcdefgh"));
        for (length, expected) in [(3, 0b111), (-3, 0b111), (i64::MIN, 0xff), (0, 0)] {
            let found = Strings::explicit(a, b, 0x00, 8, length).compare();
            assert_eq!(found.bits, expected);
        }
    }

    #[test]
    fn masks_are_bits_or_elements() {
        assert_eq!(u128::from_le_bytes(found("b", "abab", 0x00).mask()), 0b1010);
        assert_eq!(u128::from_le_bytes(found("b", "abab", 0x40).mask()), 0xff00_ff00);
    }
}

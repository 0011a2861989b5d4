//! A set of interrupt vectors, kept as the eight registers the guest reads.

/// One bit for each of the 256 vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Vectors([u32; 8]);

impl Vectors {
    /// The set of eight registers; bit 0 of the first is vector 0.
    pub fn from_words(words: [u32; 8]) -> Self {
        Self(words)
    }

    /// The eight registers.
    pub fn words(&self) -> [u32; 8] {
        self.0
    }

    /// The 32 vectors from `32 * index`, index 0 to 7 (taken modulo 8).
    pub fn word(&self, index: u8) -> u32 {
        self.0[usize::from(index & 7)]
    }

    /// Whether `vector` is in the set.
    pub fn contains(&self, vector: u8) -> bool {
        self.0[usize::from(vector >> 5)] & 1 << (vector & 31) != 0
    }

    /// Puts `vector` in, or takes it out.
    pub fn set(&mut self, vector: u8, present: bool) {
        let word = &mut self.0[usize::from(vector >> 5)];
        let bit = 1 << (vector & 31);
        *word = if present { *word | bit } else { *word & !bit };
    }

    /// The highest vector in the set.
    pub fn highest(&self) -> Option<u8> {
        let (index, word) = self.0.iter().enumerate().rfind(|(_, word)| **word != 0)?;
        Some((index as u8) << 5 | word.ilog2() as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_vector_comes_first() {
        let mut set = Vectors::default();
        assert_eq!(set.highest(), None);
        for vector in [0x10, 0xff, 0x80, 0x1f, 0x20] {
            set.set(vector, true);
        }
        for vector in [0xff, 0x80, 0x20, 0x1f, 0x10] {
            assert_eq!(set.highest(), Some(vector));
            assert!(set.contains(vector));
            set.set(vector, false);
        }
        assert_eq!(set, Vectors::default());
    }

    #[test]
    fn vector_0x41_is_bit_1_of_word_2() {
        let mut set = Vectors::default();
        set.set(0x41, true);
        assert_eq!(
            (0..8).map(|word| set.word(word)).collect::<Vec<_>>(),
            [0, 0, 2, 0, 0, 0, 0, 0]
        );
    }
}

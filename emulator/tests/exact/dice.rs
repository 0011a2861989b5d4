//! Decisions taken from bytes: a fuzzer's, or of a generator that begins with a seed.

/// What is left of the bytes. When they are spent, all decisions are 0.
pub struct Dice<'a>(&'a [u8]);

impl<'a> Dice<'a> {
    pub fn new(bytes: &'a [u8]) -> Dice<'a> {
        Dice(bytes)
    }

    pub fn is_spent(&self) -> bool {
        self.0.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        match self.0 {
            [first, rest @ ..] => {
                self.0 = rest;
                *first
            }
            [] => 0,
        }
    }

    pub fn word(&mut self) -> u64 {
        u64::from_le_bytes([0; 8].map(|_: u8| self.byte()))
    }

    /// A number below `end`, which is at most 65536.
    pub fn below(&mut self, end: usize) -> usize {
        let low = usize::from(self.byte());
        let high = if end > 256 { usize::from(self.byte()) } else { 0 };
        (high << 8 | low) % end
    }

    pub fn choose<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == n - 1
    }

    /// A number of the kind that finds mistakes: small, an edge, or anything.
    pub fn number(&mut self) -> u64 {
        match self.below(6) {
            0 => u64::from(self.byte()),
            1 => u64::from(self.byte()).wrapping_neg(),
            2 => 1 << self.below(64),
            3 => (1 << self.below(64)) - 1,
            _ => self.word(),
        }
    }
}

/// `length` bytes that follow from `seed` (xorshift64*).
pub fn roll(seed: u64, length: usize) -> Vec<u8> {
    // Neighbouring seeds must not make neighbours, and none may be 0.
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40) as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

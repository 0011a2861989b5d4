//! Randomness that a seed repeats, with values at which instructions change their minds.

/// A sequence that looks random and is the same each time (SplitMix64).
#[derive(Debug, Clone)]
pub struct Dice(u64);

/// Integers at which carries, signs and widths change.
const INTEGERS: [u64; 20] = [
    0,
    1,
    2,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x7fff,
    0x8000,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    0x8000_0000_8000_0000,
    0x0000_ffff_ffff_0000,
    u64::MAX,
];

/// Singles: zeros, denormals, ends of the ranges of formats and integers, infinities, NaNs.
const SINGLES: [u32; 24] = [
    0,
    1,
    0x0040_0000,
    0x007f_ffff,
    0x0080_0000,
    0x0080_0001,
    0x3380_0000,
    0x3880_0000,
    0x387f_ffff,
    0x3f00_0000,
    0x3f80_0000,
    0x3f80_0001,
    0x3fc0_0000,
    0x4000_0000,
    0x477f_f000,
    0x4b00_0000,
    0x4eff_ffff,
    0x4f00_0000,
    0x5f00_0000,
    0x7f7f_ffff,
    0x7f80_0000,
    0x7f80_0001,
    0x7fc0_0000,
    0x7fff_ffff,
];

/// Doubles, chosen likewise.
const DOUBLES: [u64; 24] = [
    0,
    1,
    0x0008_0000_0000_0000,
    0x000f_ffff_ffff_ffff,
    0x0010_0000_0000_0000,
    0x3690_0000_0000_0000,
    0x380f_ffff_e000_0000,
    0x3810_0000_0000_0000,
    0x3fe0_0000_0000_0000,
    0x3ff0_0000_0000_0000,
    0x3ff0_0000_0000_0001,
    0x3ff8_0000_0000_0000,
    0x4000_0000_0000_0000,
    0x41df_ffff_ffc0_0000,
    0x41e0_0000_0000_0000,
    0x4330_0000_0000_0000,
    0x43e0_0000_0000_0000,
    0x47ef_ffff_e000_0000,
    0x47f0_0000_0000_0000,
    0x7fef_ffff_ffff_ffff,
    0x7ff0_0000_0000_0000,
    0x7ff0_0000_0000_0001,
    0x7ff8_0000_0000_0000,
    0x7fff_ffff_ffff_ffff,
];

/// Sign and exponent, and significand, of 80-bit numbers, chosen likewise; some are of formats that no operation makes.
const EXTENDEDS: [(u16, u64); 22] = [
    (0, 0),
    (0, 1),
    (0, 0x7fff_ffff_ffff_ffff),
    (0, 0x8000_0000_0000_0000),
    (1, 0x8000_0000_0000_0000),
    (1, 0x4000_0000_0000_0000),
    (0x3c00, 0x8000_0000_0000_0000),
    (0x3f6a, 0x8000_0000_0000_0000),
    (0x3fbf, 0x8000_0000_0000_0000),
    (0x3ffe, 0xffff_ffff_ffff_ffff),
    (0x3fff, 0x8000_0000_0000_0000),
    (0x3fff, 0xc000_0000_0000_0001),
    (0x400d, 0xffff_0000_0000_0000),
    (0x401d, 0xffff_ffff_0000_0000),
    (0x403e, 0x8000_0000_0000_0000),
    (0x407e, 0xffff_ff00_0000_0000),
    (0x43fe, 0xffff_ffff_ffff_f800),
    (0x7ffe, 0xffff_ffff_ffff_ffff),
    (0x7fff, 0x8000_0000_0000_0000),
    (0x7fff, 0x8000_0000_0000_0001),
    (0x7fff, 0xc000_0000_0000_0000),
    (0x7fff, 0x0000_0000_0000_0000),
];

/// What the elements of vectors and operands look like in one case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taste {
    /// Integers near edges.
    Integers,
    /// Singles.
    Singles,
    /// Doubles.
    Doubles,
    /// Any bits.
    Bits,
}

impl Dice {
    /// The sequence of `seed`.
    pub fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    /// 64 random bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// True in `percent` of a hundred cases.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of `choices`.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// An integer: an edge, near an edge, small, or anything.
    pub fn integer(&mut self) -> u64 {
        match self.below(8) {
            0 | 1 => self.pick(&INTEGERS),
            2 => self.pick(&INTEGERS).wrapping_add(self.below(5)).wrapping_sub(2),
            3 => self.below(256),
            4 => self.below(256).wrapping_neg(),
            5 => self.next() >> self.below(64),
            _ => self.next(),
        }
    }

    /// A single in its bits.
    fn single(&mut self) -> u32 {
        let sign = (self.next() as u32) & 1 << 31;
        match self.below(4) {
            0 => self.pick(&SINGLES) | sign,
            1 => (self.pick(&SINGLES) ^ 1 << self.below(31)) | sign,
            // Exponents close to each other, so that sums round.
            2 => (0x3f00_0000 + (self.next() as u32 & 0x00ff_ffff)) | sign,
            _ => self.next() as u32,
        }
    }

    /// A double in its bits.
    fn double(&mut self) -> u64 {
        let sign = self.next() & 1 << 63;
        match self.below(4) {
            0 => self.pick(&DOUBLES) | sign,
            1 => (self.pick(&DOUBLES) ^ 1 << self.below(63)) | sign,
            2 => (0x3fe0_0000_0000_0000 + (self.next() & 0x001f_ffff_ffff_ffff)) | sign,
            _ => self.next(),
        }
    }

    /// Sign with exponent, and significand, of an 80-bit number.
    pub fn extended(&mut self) -> (u16, u64) {
        let sign = (self.next() as u16) & 0x8000;
        match self.below(8) {
            0 | 1 => {
                let (exponent, significand) = self.pick(&EXTENDEDS);
                (exponent | sign, significand)
            }
            2 => {
                let (exponent, significand) = self.pick(&EXTENDEDS);
                (exponent | sign, significand ^ 1 << self.below(64))
            }
            3 => ((0x3ff0 + self.below(32) as u16) | sign, self.next() | 1 << 63),
            4 => ((0x3fff + self.below(70) as u16) | sign, !0 << self.below(64) | 1 << 63),
            5 => ((0x3fbf + self.below(0x80) as u16) | sign, self.next() | 1 << 63),
            6 => (self.next() as u16, self.next() | 1 << 63),
            _ => (self.next() as u16, self.next()),
        }
    }

    /// How this case's elements look.
    pub fn taste(&mut self) -> Taste {
        self.pick(&[
            Taste::Integers,
            Taste::Singles,
            Taste::Singles,
            Taste::Doubles,
            Taste::Doubles,
            Taste::Bits,
        ])
    }

    /// Eight bytes of elements.
    pub fn element(&mut self, taste: Taste) -> u64 {
        match taste {
            Taste::Integers => self.integer(),
            Taste::Singles => u64::from(self.single()) << 32 | u64::from(self.single()),
            Taste::Doubles => self.double(),
            Taste::Bits => self.next(),
        }
    }
}

//! PCLMULQDQ: multiplication of polynomials over GF(2).

use super::lanes::operations;
use super::shuffle::Lane;

operations! {
    /// Immediate bit 0 chooses the quadword of the destination, bit 4 that of the source.
    Pclmulqdq: |a, b, imm| {
        let x = u64::get(&a, usize::from(imm & 1));
        let y = u64::get(&b, usize::from(imm >> 4 & 1));
        super::lanes::build::<u64, N>(|i| (multiply(x, y) >> (64 * i)) as u64)
    };
}

fn multiply(x: u64, y: u64) -> u128 {
    (0..64)
        .filter(|i| y >> i & 1 != 0)
        .fold(0, |product, i| product ^ u128::from(x) << i)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn squaring_spreads_the_bits() {
        assert_eq!(multiply(u64::MAX, u64::MAX), 0x5555_5555_5555_5555_5555_5555_5555_5555);
        assert_eq!(multiply(1 << 63, 1 << 63), 1 << 126);
        assert_eq!(multiply(0, u64::MAX), 0);
    }
}

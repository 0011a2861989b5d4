//! Sizes as people write them.

/// A size that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no size; expected bytes, or a number with K, M, G or T, like 512M")]
pub struct SizeError {
    /// What was written.
    pub text: String,
}

/// Reads `512M`, `2G`, `4096`: a decimal number of bytes, or of 2^10, 2^20, 2^30, 2^40 bytes (K, M, G, T in either case).
///
/// # Errors
/// [`SizeError`] if it is something else or does not fit 64 bits.
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let refused = || SizeError { text: text.to_owned() };
    let split = text.len()
        - text
            .chars()
            .next_back()
            .map_or(0, |c| if c.is_ascii_alphabetic() { 1 } else { 0 });
    let (digits, unit) = text.split_at(split);
    let shift = match unit {
        "" => 0,
        "K" | "k" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        "T" | "t" => 40,
        _ => return Err(refused()),
    };
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(refused()); // u64's own parser would take a plus sign
    }
    let number: u64 = digits.parse().map_err(|_| refused())?;
    number.checked_mul(1 << shift).ok_or_else(refused)
}

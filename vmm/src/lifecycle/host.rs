//! What the host has.

/// The host's memory and swap together, in bytes: no guest can have more. None if the host does not tell.
pub(super) fn memory() -> Option<u64> {
    sum(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

/// Adds up `MemTotal` and `SwapTotal`, which proc(5) gives in KiB.
fn sum(meminfo: &str) -> Option<u64> {
    let kib = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    };
    kib("MemTotal:")?
        .checked_add(kib("SwapTotal:").unwrap_or(0))?
        .checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_swap_are_added() {
        assert_eq!(
            sum("MemTotal:  2048 kB\nMemFree: 1 kB\nSwapTotal: 1024 kB\n"),
            Some(3 << 20)
        );
        assert_eq!(sum("MemTotal:  2048 kB\n"), Some(2 << 20));
    }

    #[test]
    fn a_host_that_tells_nothing_limits_nothing() {
        for text in ["", "MemTotal: many kB", "MemTotal: 18446744073709551615 kB"] {
            assert_eq!(sum(text), None, "{text}");
        }
    }
}

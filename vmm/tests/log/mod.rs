//! What Debian's kernel prints while it boots, without what depends on how fast that goes.
//!
//! Everything else has to be the same, line by line: the exceptions are those named here.

/// Lines that tell a time, besides the one at their beginning, or a number given to whoever comes first. Their digits are
/// not compared.
const FIGURES: [&str; 6] = [
    // How long the machine was there before the kernel looked.
    "kvm-clock: using sched offset of ",
    "node 0 deferred pages initialised in ",
    // The time of day.
    "audit: type=2000 audit(",
    "rtc_cmos 00:01: setting system clock to ",
    // Two clocks, and what is between them.
    "sched_clock: Marking stable ",
    // The button and the keyboard controller's probing draw numbers.
    "input: Power Button as ",
];

/// Lines printed by threads of the kernel's own, beside the one that boots. Where they come is not compared.
const THREADS: [&str; 4] = [
    "audit: type=2000 audit(",
    "Trying to unpack rootfs image as initramfs",
    "Freeing initrd memory: ",
    "input: Power Button as ",
];

/// The only line that is there or not: the host gave the guest no time for a while.
const NO_TIME: &str = "hrtimer: interrupt took ";

/// A console's text, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub struct Log {
    /// The kernel's lines in order.
    kernel: Vec<String>,
    /// Those without a place.
    threads: Vec<String>,
    /// What programs printed. The kernel may come amid their lines.
    programs: String,
}

impl Log {
    pub fn of(text: &str) -> Self {
        let text = text.replace('\r', "");
        let (mut kernel, mut threads, mut programs) = (Vec::new(), Vec::new(), String::new());
        let mut rest = &text[..];
        while let Some(next) = rest.chars().next() {
            let Some(line) = stamped(rest) else {
                programs.push(next);
                rest = &rest[next.len_utf8()..];
                continue;
            };
            let (line, after) = line.split_once('\n').unwrap_or((line, ""));
            rest = after;
            let begins = |list: &[&str]| list.iter().any(|start| line.starts_with(start));
            let figures = if begins(&FIGURES) {
                without_digits(line)
            } else {
                line.to_owned()
            };
            if begins(&THREADS) {
                threads.push(figures);
            } else if !begins(&[NO_TIME]) {
                kernel.push(figures);
            }
        }
        threads.sort();
        Self {
            kernel,
            threads,
            programs,
        }
    }

    /// Panics with the first line that is different.
    pub fn assert_same(&self, other: &Self) {
        for (number, pair) in self.kernel.iter().zip(&other.kernel).enumerate() {
            assert_eq!(pair.0, pair.1, "line {number}");
        }
        assert_eq!(self, other);
        assert!(self.kernel.len() > 100, "it is a boot: {self:?}");
    }
}

/// The line at the beginning of `text` without its time, such as `[    1.234567] `, if it has one.
fn stamped(text: &str) -> Option<&str> {
    let (seconds, rest) = text.strip_prefix('[')?.split_once('.')?;
    let (micros, line) = rest.split_at_checked(6)?;
    let seconds = seconds.trim_start_matches(' ');
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    line.strip_prefix("] ").filter(|_| number(seconds) && number(micros))
}

/// A `#` for every number.
fn without_digits(line: &str) -> String {
    let mut kept = String::new();
    for next in line.chars() {
        match next.is_ascii_digit() {
            false => kept.push(next),
            true if kept.ends_with('#') => {}
            true => kept.push('#'),
        }
    }
    kept
}

#[test]
fn only_times_may_differ_in_a_boot_log() {
    let log = Log::of(
        "[    0.000000] a\r\n[   12.345678] node 0 deferred pages initialised in 28ms\r\n[   12.4] re\
         [   13.000000] audit: type=2000 audit(1.2:1): x\r\nady\r\n[   14.000000] hrtimer: interrupt took 9 ns\r\nend",
    );
    let again = Log::of(
        "[    0.000001] a\n[    2.345678] node 0 deferred pages initialised in 4ms\n\
         [    3.000000] audit: type=2000 audit(11.22:1): x\n[   12.4] ready\nend",
    );
    assert_eq!(log, again);
    assert_eq!(log.programs, "[   12.4] ready\nend");
    assert_eq!(log.kernel, ["a", "node # deferred pages initialised in #ms"]);
    for other in ["[    0.000000] b\n", "[    0.000000] a\n[    0.000000] a\n", "a\n"] {
        assert_ne!(Log::of("[    0.000000] a\n"), Log::of(other));
    }
}

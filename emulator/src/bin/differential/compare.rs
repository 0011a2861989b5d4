//! What differs between the processor and the emulator.

use crate::quirk::Mask;
use crate::state::{Output, State, WRITABLE};

/// Flags that are compared at all: what there is in RFLAGS, but for the two that Linux forces.
const FLAGS: u64 = 0x3f_7fd7;

/// One field that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// What it is.
    pub field: String,
    /// On the processor.
    pub expected: String,
    /// In the emulator.
    pub found: String,
}

const GPRS: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
];
const SEGMENTS: [&str; 6] = ["es", "cs", "ss", "ds", "fs", "gs"];

/// Nothing differs.
pub fn same(expected: &Output, found: &Output, mask: Mask) -> bool {
    let (a, b) = (&expected.state, &found.state);
    let after_fault = !matches!(expected.vector, 1 | 3);
    let same_changes = after_fault && mask.memory_after_fault
        || (0..WRITABLE.len()).all(|page| {
            let [start, end] = expected.changed[page];
            let [own_start, own_end] = found.changed[page];
            let is_empty = start >= end && own_start >= own_end;
            is_empty || expected.change(page) == found.change(page)
        });
    same_changes
        && expected.vector == found.vector
        && expected.error_code == found.error_code
        && (expected.vector != 14 || expected.cr2 == found.cr2)
        && (a.gpr == b.gpr || after_fault && mask.registers_after_fault)
        && a.rip == b.rip
        && (a.flags ^ b.flags) & FLAGS & !mask.flags == 0
        && (a.fs_base, a.gs_base) == (b.fs_base, b.gs_base)
        && a.selectors.map(without_null_rpl) == b.selectors.map(without_null_rpl)
        && same_xsave(a, b, after_fault && mask.x87_after_fault)
}

/// A selector, but null for one that is null with an RPL: Linux returns to its handler with IRET, which clears that.
fn without_null_rpl(selector: u16) -> u16 {
    if selector < 4 { 0 } else { selector }
}

/// Whether the processor tells the x87 pointers: one that saves zeros while no exception is pending does not keep them.
fn tells_pointers(state: &State) -> bool {
    state.xsave.0[2] & 0x80 != 0
}

fn same_xsave(a: &State, b: &State, without_x87: bool) -> bool {
    let same_pointers = !tells_pointers(a) || a.xsave.0[6..24] == b.xsave.0[6..24];
    let (a, b) = (&a.xsave.0, &b.xsave.0);
    let same_x87 =
        same_pointers && a[..6] == b[..6] && (0..8).all(|i| a[32 + 16 * i..][..10] == b[32 + 16 * i..][..10]);
    (same_x87 || without_x87) && a[24..28] == b[24..28] && a[160..416] == b[160..416] && a[576..] == b[576..]
}

/// Everything that differs.
pub fn differences(expected: &Output, found: &Output, mask: Mask) -> Vec<Difference> {
    let mut list = Vec::new();
    let after_fault = !matches!(expected.vector, 1 | 3);
    let mut number = |field: &str, expected: u64, found: u64| {
        if expected != found {
            list.push(Difference {
                field: field.to_owned(),
                expected: format!("{expected:#x}"),
                found: format!("{found:#x}"),
            });
        }
    };
    let (a, b) = (&expected.state, &found.state);
    number("vector", expected.vector.into(), found.vector.into());
    number("error code", expected.error_code.into(), found.error_code.into());
    if expected.vector == 14 && found.vector == 14 {
        number("cr2", expected.cr2, found.cr2);
    }
    let gprs = if after_fault && mask.registers_after_fault {
        0
    } else {
        GPRS.len()
    };
    for (i, name) in GPRS.iter().enumerate().take(gprs) {
        number(name, a.gpr[i], b.gpr[i]);
    }
    number("rip", a.rip, b.rip);
    number("rflags", a.flags & FLAGS & !mask.flags, b.flags & FLAGS & !mask.flags);
    for (i, name) in SEGMENTS.iter().enumerate() {
        let selector = |state: &State| without_null_rpl(state.selectors[i]).into();
        number(name, selector(a), selector(b));
    }
    number("fs base", a.fs_base, b.fs_base);
    number("gs base", a.gs_base, b.gs_base);
    for (name, at, size) in [
        ("fcw", 0, 2),
        ("fsw", 2, 2),
        ("ftw", 4, 2),
        ("mxcsr", 24, 4),
        ("fop", 6, 2),
        ("fip", 8, 8),
        ("fdp", 16, 8),
    ] {
        if after_fault && mask.x87_after_fault && at != 24 || matches!(at, 6..24) && !tells_pointers(a) {
            continue;
        }
        let word = |state: &State| {
            state.xsave.0[at..at + size]
                .iter()
                .rev()
                .fold(0, |value, byte| value << 8 | u64::from(*byte))
        };
        number(name, word(a), word(b));
    }
    let mut bytes = |field: String, expected: &[u8], found: &[u8]| {
        if expected != found {
            let expected = hex(expected);
            let found = hex(found);
            list.push(Difference { field, expected, found });
        }
    };
    let stack = if after_fault && mask.x87_after_fault { 0 } else { 8 };
    for i in 0..stack {
        let register = |state: &State| {
            let mut bytes = state.xsave.get::<10>(32 + 16 * i);
            bytes.reverse();
            bytes
        };
        bytes(format!("st({i})"), &register(a), &register(b));
    }
    for i in 0..16 {
        let register = |state: &State| {
            let mut bytes = state.xsave.vector(i);
            bytes.reverse();
            bytes
        };
        bytes(format!("ymm{i}"), &register(a), &register(b));
    }
    let pages = if after_fault && mask.memory_after_fault {
        0
    } else {
        WRITABLE.len()
    };
    for (page, address) in WRITABLE.iter().enumerate().take(pages) {
        let (start, now) = expected.change(page);
        let (own_start, own) = found.change(page);
        if now.is_empty() && own.is_empty() || (start, now) == (own_start, own) {
            continue;
        }
        let text = |start: usize, bytes: &[u8]| format!("{:#x}: {}", address + start as u64, hex(bytes));
        list.push(Difference {
            field: "memory".to_owned(),
            expected: text(start, now),
            found: text(own_start, own),
        });
    }
    list
}

/// Bytes in hexadecimal, without much more than anybody wants to see.
pub fn hex(bytes: &[u8]) -> String {
    const SHOWN: usize = 1024;
    let mut text: String = bytes.iter().take(SHOWN).map(|byte| format!("{byte:02x}")).collect();
    if bytes.len() > SHOWN {
        text.push_str(&format!("… ({} bytes)", bytes.len()));
    }
    text
}

//! Counts by family, and mismatches as rows for tests.

use std::collections::BTreeMap;

use iced_x86::{FastFormatter, Instruction};
use reprise_emulator::Counters;

use crate::case::{Case, decode};
use crate::compare::{Difference, hex};
use crate::state::WRITABLE;

/// What happened in one family.
#[derive(Debug, Clone, Copy, Default)]
pub struct Count {
    /// Cases that were compared.
    pub executions: u64,
    /// Cases that could not be: Linux stepped in.
    pub skipped: u64,
    /// Cases that ended in an exception of the instruction itself.
    pub faults: u64,
    /// Cases that differed.
    pub mismatches: u64,
    /// Flags that were not compared in some cases.
    pub masked: u64,
}

/// A case that differed, made as small as it goes.
pub struct Mismatch {
    /// The case.
    pub case: Case,
    /// What it differs in.
    pub differences: Vec<Difference>,
    /// By which way.
    pub way: &'static str,
}

/// The text of an instruction.
pub fn disassemble(instruction: &Instruction) -> String {
    let mut text = String::new();
    FastFormatter::new().format(instruction, &mut text);
    text
}

impl Mismatch {
    /// Mismatches that are probably of the same cause have the same title.
    pub fn title(&self) -> String {
        let input = &self.case.input;
        let name = match decode(&input.code, input.state.rip, self.case.bits) {
            Some((instruction, code, length)) if instruction.is_invalid() => {
                format!("INVALID {}", opcode(&code[..length], self.case.bits))
            }
            Some((instruction, ..)) => format!("{:?}", instruction.code()),
            None => "nothing".to_owned(),
        };
        let fields: Vec<&str> = self
            .differences
            .iter()
            .map(|difference| difference.field.as_str())
            .collect();
        let first = fields.first().copied().unwrap_or("nothing");
        format!("{name} ({} bits, {}): {first}", self.case.bits, self.way)
    }

    /// The whole story: bytes, text, what is not zero before, and what differs.
    pub fn print(&self) {
        let input = &self.case.input;
        let state = &input.state;
        println!("--- {}", self.title());
        if let Some((instruction, ..)) = decode(&input.code, state.rip, self.case.bits) {
            println!(
                "    {} ; {}",
                hex(&input.code[..input.length as usize]),
                disassemble(&instruction)
            );
        }
        let mut start = format!("rip={:#x} flags={:#x}", state.rip, state.flags);
        for (i, value) in state.gpr.iter().enumerate().filter(|(_, value)| **value != 0) {
            start.push_str(&format!(" r{i}={value:#x}"));
        }
        for (name, base) in [("fs", state.fs_base), ("gs", state.gs_base)] {
            if base != 0 {
                start.push_str(&format!(" {name}={base:#x}"));
            }
        }
        println!("    {start}");
        let xsave = &state.xsave;
        let mut floating = format!(
            "fcw={:#x} fsw={:#x} ftw={:#x} fop={:#x} fip={:#x} fdp={:#x} mxcsr={:#x}",
            u16::from_le_bytes(xsave.get(0)),
            u16::from_le_bytes(xsave.get(2)),
            xsave.0[4],
            u16::from_le_bytes(xsave.get(6)),
            u64::from_le_bytes(xsave.get(8)),
            u64::from_le_bytes(xsave.get(16)),
            u32::from_le_bytes(xsave.get(24)),
        );
        for i in 0..8 {
            let mut register = xsave.get::<10>(32 + 16 * i);
            register.reverse();
            if register != [0; 10] {
                floating.push_str(&format!(" st{i}={}", hex(&register)));
            }
        }
        for i in 0..16 {
            let mut vector = xsave.vector(i);
            vector.reverse();
            if vector != [0; 32] {
                floating.push_str(&format!(" ymm{i}={}", hex(&vector)));
            }
        }
        println!("    {floating}");
        for patch in input.patches.iter().filter(|patch| patch.length > 0) {
            let address = WRITABLE[usize::from(patch.page)] + u64::from(patch.at);
            println!("    [{address:#x}]={}", hex(&patch.bytes[..usize::from(patch.length)]));
        }
        for Difference { field, expected, found } in &self.differences {
            println!("    {field}: {expected} on the processor, {found} in the emulator");
        }
    }
}

/// Escape and opcode bytes, without prefixes; with the ModR/M byte's reg field and whether it names a register.
fn opcode(code: &[u8], bits: u32) -> String {
    let is_prefix = |byte: &u8| {
        matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3)
            || bits == 64 && matches!(byte, 0x40..=0x4f)
    };
    let start = code.iter().take_while(|byte| is_prefix(byte)).count();
    let rest = &code[start..];
    let length = match rest {
        [0x0f, 0x38 | 0x3a, ..] => 3,
        [0x0f, ..] => 2,
        [0xc5, ..] => 3,
        [0xc4 | 0x8f, ..] => 4,
        [0x62, ..] => 5,
        _ => 1,
    };
    let modrm = rest.get(length).map_or(String::new(), |modrm| {
        let place = if *modrm >= 0xc0 { "register" } else { "memory" };
        format!("/{} {place}", modrm >> 3 & 7)
    });
    format!("{}{modrm}", hex(&rest[..length.min(rest.len())]))
}

/// Prints the table.
pub fn table(families: &[String], counts: &[Count]) {
    println!(
        "{:32} {:>11} {:>10} {:>9} {:>10}  flags not compared",
        "family", "executions", "faults", "skipped", "mismatches"
    );
    let mut rows: BTreeMap<&str, Count> = BTreeMap::new();
    let mut sum = Count::default();
    for (name, count) in families.iter().zip(counts) {
        rows.insert(name, *count);
        sum.executions += count.executions;
        sum.faults += count.faults;
        sum.skipped += count.skipped;
        sum.mismatches += count.mismatches;
        sum.masked |= count.masked;
    }
    for (name, count) in rows {
        row(name, &count);
    }
    row("all", &sum);
}

/// Prints how much the tiers have done.
pub fn tiers(done: &Counters) {
    let share = done.translated as f64 * 100.0 / done.instructions.max(1) as f64;
    println!(
        "instructions in the emulator: {}, of them in translated code: {} ({share:.1} %)",
        done.instructions, done.translated
    );
}

fn row(name: &str, count: &Count) {
    println!(
        "{name:32} {:>11} {:>10} {:>9} {:>10}  {}",
        count.executions,
        count.faults,
        count.skipped,
        count.mismatches,
        flags(count.masked)
    );
}

/// Flags by their letters.
pub fn flags(bits: u64) -> String {
    let names = [(0, "CF"), (2, "PF"), (4, "AF"), (6, "ZF"), (7, "SF"), (11, "OF")];
    let set: Vec<&str> = names
        .into_iter()
        .filter(|(bit, _)| bits >> bit & 1 != 0)
        .map(|(_, name)| name)
        .collect();
    set.join(" ")
}

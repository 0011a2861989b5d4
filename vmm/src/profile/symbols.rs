//! The kernel's functions by address: from an ELF file's symbol table, or a list as System.map and /proc/kallsyms are.

use std::fs;
use std::io;
use std::path::Path;

/// Functions, in the order of their addresses.
#[derive(Debug, Default)]
pub struct Symbols {
    functions: Vec<Function>,
}

#[derive(Debug)]
struct Function {
    start: u64,
    /// The first address that is no longer the function's.
    end: u64,
    name: String,
}

/// A function of which nobody says how long it is ends here at the latest.
const LONGEST: u64 = 1 << 20;

impl Symbols {
    /// Reads symbols from a file of either kind.
    ///
    /// # Errors
    /// If it cannot be read, or there are no symbols of functions in it.
    pub fn read(path: &Path) -> io::Result<Self> {
        let bytes = fs::read(path)?;
        let symbols = match bytes.starts_with(b"\x7fELF") {
            true => Self::of_elf(&bytes).unwrap_or_default(),
            false => Self::of_map(&String::from_utf8_lossy(&bytes)),
        };
        match symbols.functions.is_empty() {
            true => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{}: there are no symbols in it", path.display()),
            )),
            false => Ok(symbols),
        }
    }

    /// Lines of address, type and name. What is no function ends the one before.
    pub(super) fn of_map(text: &str) -> Self {
        let lines = text.lines().filter_map(|line| {
            let mut parts = line.split_whitespace();
            let start = u64::from_str_radix(parts.next()?, 16).ok()?;
            let kind = parts.next()?;
            let name = parts.next()?;
            let is_function = matches!(kind, "T" | "t" | "W" | "w");
            // Without the right to see addresses, all of them are zero.
            (start != 0).then(|| (start, 0, is_function.then(|| clean(name))))
        });
        Self::of(lines.collect())
    }

    /// `.symtab` of a 64-bit ELF file.
    fn of_elf(bytes: &[u8]) -> Option<Self> {
        const SHT_SYMTAB: u64 = 2;
        const STT_FUNC: u64 = 2;
        const SYMBOL: u64 = 24;
        let word = |at: u64, size: usize| -> Option<u64> {
            let at = usize::try_from(at).ok()?;
            let bytes = bytes.get(at..at.checked_add(size)?)?;
            Some(bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)))
        };
        // ELFCLASS64, ELFDATA2LSB.
        if bytes.get(4..6)? != [2, 1] {
            return None;
        }
        let (sections, size, count) = (word(0x28, 8)?, word(0x3a, 2)?, word(0x3c, 2)?);
        let section = |number: u64| sections.checked_add(number.checked_mul(size)?);
        let table = (0..count).filter_map(section).find(|at| {
            let kind = at.checked_add(4).and_then(|at| word(at, 4));
            kind == Some(SHT_SYMTAB)
        })?;
        let (start, length, strings) = (word(table + 0x18, 8)?, word(table + 0x20, 8)?, word(table + 0x28, 4)?);
        let names = word(section(strings)?.checked_add(0x18)?, 8)?;
        let mut list = Vec::new();
        for number in 0..length.min(bytes.len() as u64) / SYMBOL {
            let at = start.checked_add(number * SYMBOL)?;
            let (name, kind) = (word(at, 4)?, word(at.checked_add(4)?, 1)? & 0xf);
            let (address, size) = (word(at.checked_add(8)?, 8)?, word(at.checked_add(16)?, 8)?);
            let name = usize::try_from(names.checked_add(name)?).ok()?;
            let name = bytes.get(name..)?;
            let name = &name[..name.iter().position(|byte| *byte == 0)?];
            if kind == STT_FUNC && address != 0 {
                list.push((address, size, Some(clean(&String::from_utf8_lossy(name)))));
            }
        }
        Some(Self::of(list))
    }

    /// Addresses, sizes (0 if unknown) and names, if they are functions.
    fn of(mut list: Vec<(u64, u64, Option<String>)>) -> Self {
        list.sort_by(|a, b| (a.0, &a.2).cmp(&(b.0, &b.2)));
        let mut functions: Vec<Function> = Vec::new();
        for (i, (start, size, name)) in list.iter().enumerate() {
            let Some(name) = name else { continue };
            let next = list[i..].iter().map(|other| other.0).find(|other| other > start);
            let longest = start.saturating_add(if *size == 0 { LONGEST } else { *size });
            // Another name of the same.
            if functions.last().is_some_and(|last| last.start == *start) {
                continue;
            }
            functions.push(Function {
                start: *start,
                end: next.map_or(longest, |next| next.min(longest)),
                name: name.clone(),
            });
        }
        Self { functions }
    }

    /// The number of the function at `address`.
    #[must_use]
    pub fn find(&self, address: u64) -> Option<usize> {
        let after = self.functions.partition_point(|function| function.start <= address);
        let number = after.checked_sub(1)?;
        (address < self.functions[number].end).then_some(number)
    }

    /// The name of function `number`, which [`find`](Self::find) gave.
    #[must_use]
    pub fn name(&self, number: usize) -> &str {
        self.functions.get(number).map_or("?", |function| &function.name)
    }
}

/// A name without what separates frames and counts.
fn clean(name: &str) -> String {
    name.replace(|c: char| c == ';' || c.is_whitespace() || c.is_control(), "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_ends_where_it_says_or_the_next_symbol_begins() {
        let symbols = Symbols::of(vec![
            (0x1000, 0x10, Some("sized".to_owned())),
            (0x2000, 0, Some("b".to_owned())),
            (0x2000, 0, Some("a".to_owned())),
            (0x2100, 0, None),
            (0x3000, 0, Some("last".to_owned())),
        ]);
        let at = |address| symbols.find(address).map(|number| symbols.name(number).to_owned());
        for (address, name) in [
            (0xfff, None),
            (0x1000, Some("sized")),
            (0x100f, Some("sized")),
            (0x1010, None),
            (0x20ff, Some("a")),
            (0x2100, None),
            (0x3000 + LONGEST - 1, Some("last")),
            (0x3000 + LONGEST, None),
        ] {
            assert_eq!(at(address).as_deref(), name, "{address:#x}");
        }
    }

    #[test]
    fn symbols_of_this_very_program_are_found_in_its_file() {
        let program = std::env::current_exe().unwrap();
        let symbols = Symbols::read(&program).unwrap();
        assert!(
            symbols
                .functions
                .iter()
                .any(|function| function.name.contains("symbols_of_this_very_program"))
        );
        let bytes = fs::read(program).unwrap();
        // Cut short anywhere, it is no more than a file without.
        for length in [0, 4, 5, 63, 64, 1000, bytes.len() / 2, bytes.len() - 100] {
            let _whether = Symbols::of_elf(&bytes[..length]);
        }
    }

    #[test]
    fn a_file_without_symbols_is_refused_by_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("none");
        fs::write(&path, "0000000000000000 T hidden\n").unwrap();
        assert!(Symbols::read(&path).unwrap_err().to_string().contains("none"));
    }
}

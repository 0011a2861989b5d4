//! Which models of processor a saved vCPU can go on as.
//!
//! A guest asks CPUID once, when it starts, and believes the answers for ever. So a restored vCPU answers what the saved one
//! did, whatever a new machine would say here; and it is accepted wherever everything that was announced is there.

use std::cmp::Ordering;

use reprise_emulator::cpuid::{CpuidEntry, CpuidRegisters};

use crate::StateError;

/// More leaves than any processor has, and as many as KVM takes.
const MOST_ENTRIES: usize = 256;

/// What a saved register may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// What it is here: it says which processor this is, or where something lies in the guest's memory.
    Equal,
    /// Bits of what there is, all of which must be here too.
    Subset,
    /// Widths, byte by byte, none of which may be larger than here.
    AtMost,
    /// Anything: it describes, and nothing follows from it.
    Any,
}

use Rule::{Any, AtMost, Equal, Subset};

/// The rules for EAX, EBX, ECX and EDX.
fn rules(leaf: u32, subleaf: u32) -> [Rule; 4] {
    match (leaf, subleaf) {
        // Signature; APIC id and line size; features.
        (1, _) => [Any, Equal, Subset, Subset],
        // The last subleaf; features.
        (7, 0) => [Any, Subset, Subset, Subset],
        (0xb, _) => [Equal; 4],
        // XCR0; sizes, which follow from it.
        (0xd, 0) => [Subset, Any, Any, Subset],
        (0xd, 1) => [Subset, Any, Subset, Subset],
        // Size and place of a state component.
        (0xd, _) => [Equal; 4],
        (0x4000_0000, _) => [Any, Equal, Equal, Equal],
        (0x8000_0008, _) => [AtMost, Subset, Any, Any],
        (0x8000_001e, _) => [Equal; 4],
        // Vendor, caches, frequencies, names.
        (0 | 2 | 4 | 5 | 0x15 | 0x16 | 0x4000_0010, _) => [Any; 4],
        (0x8000_0000 | 0x8000_0002..=0x8000_0006 | 0x8000_001d, _) => [Any; 4],
        _ => [Subset; 4],
    }
}

fn keeps(rule: Rule, saved: u32, own: u32) -> bool {
    match rule {
        Equal => saved == own,
        Subset => saved & !own == 0,
        AtMost => saved
            .to_le_bytes()
            .into_iter()
            .zip(own.to_le_bytes())
            .all(|(saved, own)| saved.cmp(&own) != Ordering::Greater),
        Any => true,
    }
}

fn registers(entry: CpuidRegisters) -> [u32; 4] {
    [entry.eax, entry.ebx, entry.ecx, entry.edx]
}

/// Checks that a vCPU which would announce `own` can go on as one that announced `saved`.
///
/// # Errors
/// [`StateError::CpuModel`] naming the first leaf that it cannot answer like that.
pub fn check(saved: &[CpuidEntry], own: &[CpuidEntry]) -> Result<(), StateError> {
    StateError::unless(
        saved.len() <= MOST_ENTRIES,
        "the number of CPUID leaves",
        saved.len() as u64,
    )?;
    for entry in saved {
        let subleaf = entry.subleaf.unwrap_or(0);
        let same = |own: &&CpuidEntry| own.leaf == entry.leaf && own.subleaf.is_none_or(|own| own == subleaf);
        let here = own.iter().find(same).map(|own| own.registers);
        let both = registers(entry.registers)
            .into_iter()
            .zip(registers(here.unwrap_or_default()));
        let kept = rules(entry.leaf, subleaf)
            .into_iter()
            .zip(both)
            .all(|(rule, (saved, own))| keeps(rule, saved, own));
        if !kept {
            return Err(StateError::CpuModel {
                leaf: entry.leaf,
                subleaf,
                saved: Some(entry.registers),
                own: here,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(leaf: u32, subleaf: Option<u32>, [eax, ebx, ecx, edx]: [u32; 4]) -> CpuidEntry {
        let registers = CpuidRegisters { eax, ebx, ecx, edx };
        CpuidEntry {
            leaf,
            subleaf,
            registers,
        }
    }

    #[test]
    fn what_announces_less_is_accepted_and_what_announces_more_is_not() {
        let own = [entry(7, Some(0), [0, 0b1110, 0, 0])];
        assert_eq!(check(&[entry(7, Some(0), [0, 0b0110, 0, 0])], &own), Ok(()));
        assert_eq!(check(&[], &own), Ok(()));
        assert!(matches!(
            check(&[entry(7, Some(0), [0, 0b1111, 0, 0])], &own),
            Err(StateError::CpuModel {
                leaf: 7,
                subleaf: 0,
                ..
            })
        ));
    }

    #[test]
    fn a_leaf_that_is_not_here_must_announce_nothing() {
        assert_eq!(check(&[entry(0x19, Some(1), [0; 4])], &[]), Ok(()));
        assert!(matches!(
            check(&[entry(0x19, Some(1), [0, 0, 1, 0])], &[]),
            Err(StateError::CpuModel { own: None, .. })
        ));
    }

    #[test]
    fn another_processors_answers_are_refused() {
        let own = [entry(1, None, [0, 0x0100_0800, 0, 0])];
        assert!(check(&[entry(1, None, [9, 0x0000_0800, 0, 0])], &own).is_err());
        assert_eq!(check(&[entry(1, None, [9, 0x0100_0800, 0, 0])], &own), Ok(()));
    }

    #[test]
    fn components_must_lie_where_they_lay() {
        let own = [entry(0xd, Some(2), [256, 576, 0, 0])];
        assert!(check(&[entry(0xd, Some(2), [256, 640, 0, 0])], &own).is_err());
    }

    #[test]
    fn addresses_may_be_narrower_and_not_wider() {
        let own = [entry(0x8000_0008, None, [0x302e, 0, 0, 0])];
        assert_eq!(check(&[entry(0x8000_0008, None, [0x3027, 0, 0, 0])], &own), Ok(()));
        assert!(check(&[entry(0x8000_0008, None, [0x392e, 0, 0, 0])], &own).is_err());
    }

    #[test]
    fn what_only_describes_may_differ() {
        assert_eq!(check(&[entry(0x15, None, [1, 2, 3, 4])], &[]), Ok(()));
    }
}

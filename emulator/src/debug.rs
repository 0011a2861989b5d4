//! Breakpoints: DR0 to DR3, matched as DR7 says (SDM Vol. 3, Debug Registers).
//!
//! # How
//! While any breakpoint is enabled every instruction is executed the careful way, which sees all that it touches; otherwise
//! nothing is looked at. A breakpoint on an instruction is a fault before it, unless RF is set; one on data or ports is a
//! trap after it. DR6 tells which matched, of those that are enabled.

use crate::cpu::{Cpu, Cr4};

/// DR7: the local and global enable bits.
const ENABLED: u64 = 0xff;

/// What a breakpoint watches, as DR7 codes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Watched {
    /// Execution.
    Instruction,
    /// Stores.
    Write,
    /// Ports.
    Port,
    /// Loads, and stores too.
    Read,
}

/// Any breakpoint is enabled.
#[inline(always)]
pub(crate) fn is_armed(cpu: &Cpu) -> bool {
    cpu.dr7 & ENABLED != 0
}

/// The breakpoints that `length` bytes (or ports) from `address` on match, as DR6 has them.
pub(crate) fn matches(cpu: &Cpu, address: u64, length: u64, watched: Watched) -> u8 {
    if !is_armed(cpu) {
        return 0;
    }
    let mut found = 0;
    for (i, start) in (0..).zip(cpu.dr) {
        let control = cpu.dr7 >> (16 + 4 * i);
        let size = match control >> 2 & 3 {
            0 => 1,
            1 => 2,
            // Outside long mode 8 bytes are undefined, but no longer in any processor.
            2 => 8,
            _ => 4,
        };
        let kind = match control & 3 {
            0 => Watched::Instruction,
            1 => Watched::Write,
            2 if cpu.cr4.any(Cr4::DE) => Watched::Port,
            2 => continue,
            _ => Watched::Read,
        };
        let wants = kind == watched || kind == Watched::Read && watched == Watched::Write;
        // The low bits of a breakpoint's address that its size covers do not count.
        let (start, size) = match watched {
            Watched::Instruction => (start, 1),
            _ => (start & !(size - 1), size),
        };
        let overlaps = start.wrapping_sub(address) < length || address.wrapping_sub(start) < size;
        if wants && overlaps && cpu.dr7 >> (2 * i) & 3 != 0 {
            found |= 1 << i;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// DR3 as DR7's four bits `control` say, at 0x1008.
    fn cpu(control: u64) -> Cpu {
        let mut cpu = Cpu::reset();
        cpu.dr[3] = 0x1008;
        cpu.dr7 = 0x400 | 1 << 7 | control << 28;
        cpu
    }

    #[test]
    fn a_breakpoint_on_data_matches_every_access_that_overlaps_it() {
        for (control, size) in [(0b0001, 1), (0b0101, 2), (0b1101, 4), (0b1001, 8)] {
            for address in 0x1000..0x1018 {
                for length in [1, 2, 4, 8] {
                    let overlaps = address < 0x1008 + size && address + length > 0x1008;
                    let found = matches(&cpu(control), address, length, Watched::Write);
                    assert_eq!(found, if overlaps { 8 } else { 0 }, "{address:#x} {length}");
                }
            }
        }
    }

    #[test]
    fn loads_match_only_what_watches_them() {
        assert_eq!(matches(&cpu(0b0001), 0x1008, 1, Watched::Read), 0);
        assert_eq!(matches(&cpu(0b0011), 0x1008, 1, Watched::Read), 8);
        assert_eq!(matches(&cpu(0b0011), 0x1008, 1, Watched::Write), 8);
        assert_eq!(matches(&cpu(0b0000), 0x1008, 1, Watched::Write), 0);
        assert_eq!(matches(&cpu(0b0000), 0x1008, 1, Watched::Instruction), 8);
    }

    #[test]
    fn ports_are_watched_only_with_debug_extensions() {
        let mut cpu = cpu(0b0010);
        assert_eq!(matches(&cpu, 0x1008, 1, Watched::Port), 0);
        cpu.cr4.0 |= Cr4::DE;
        assert_eq!(matches(&cpu, 0x1008, 1, Watched::Port), 8);
    }

    #[test]
    fn what_is_not_enabled_does_not_match() {
        let mut cpu = cpu(0b0001);
        cpu.dr7 &= !0xff;
        assert_eq!(matches(&cpu, 0x1008, 1, Watched::Write), 0);
        cpu.dr7 |= 1 << 0;
        assert_eq!(
            matches(&cpu, 0x1008, 1, Watched::Write),
            0,
            "DR0 is enabled, DR3 is not"
        );
    }
}

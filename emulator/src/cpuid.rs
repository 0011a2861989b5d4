//! What CPUID answers, and what follows from it: which control bits, MSRs and state components there are.
//!
//! The table is made by whoever builds the machine, one for each CPU since it holds the APIC ID. Bits that mirror the
//! CPU's own state (OSXSAVE, OSPKE, the size of the XSAVE area) are filled in when the guest asks.

mod features;

use iced_x86::CpuidFeature;
use serde::{Deserialize, Serialize};

pub(crate) use self::features::{CR4_FEATURES, EFER_FEATURES};
pub use self::features::{Feature, INSTRUCTIONS, Register};
use crate::cpu::{Cpu, Cr4};

/// The four registers that CPUID fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CpuidRegisters {
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

/// One answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuidEntry {
    /// EAX as asked.
    pub leaf: u32,
    /// ECX as asked; `None` if the leaf does not look at it.
    pub subleaf: Option<u32>,
    /// The answer.
    pub registers: CpuidRegisters,
}

/// Everything that CPUID answers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CpuidTable {
    entries: Vec<CpuidEntry>,
    cr4: u64,
    efer: u64,
    xcr0: u64,
}

/// State components that always fit the legacy area: x87 and SSE.
const LEGACY_COMPONENTS: u64 = 3;
/// Size of the legacy area and the XSAVE header.
const XSAVE_BASE: u32 = 576;

impl CpuidTable {
    /// A table of `entries`. A leaf and subleaf without an entry answers zeros.
    pub fn new(entries: Vec<CpuidEntry>) -> CpuidTable {
        let mut table = CpuidTable {
            entries,
            ..CpuidTable::default()
        };
        let bits = |features: &[(u64, Feature)]| {
            features
                .iter()
                .filter(|(_, feature)| table.has(*feature))
                .fold(0, |bits, (bit, _)| bits | bit)
        };
        let (cr4, efer) = (bits(CR4_FEATURES), bits(EFER_FEATURES));
        let components = table.find(0xd, 0);
        table.cr4 = cr4;
        table.efer = efer;
        table.xcr0 = u64::from(components.edx) << 32 | u64::from(components.eax);
        table
    }

    /// The entries.
    pub fn entries(&self) -> &[CpuidEntry] {
        &self.entries
    }

    /// Bits of CR4 that can be set.
    pub(crate) fn cr4(&self) -> u64 {
        self.cr4
    }

    /// Bits of EFER that can be set.
    pub(crate) fn efer(&self) -> u64 {
        self.efer
    }

    /// Bits of XCR0 that can be set.
    pub(crate) fn xcr0(&self) -> u64 {
        self.xcr0
    }

    /// Whether the bit is set.
    pub fn has(&self, feature: Feature) -> bool {
        let registers = self.find(feature.leaf, feature.subleaf);
        let value = match feature.register {
            Register::Eax => registers.eax,
            Register::Ebx => registers.ebx,
            Register::Ecx => registers.ecx,
            Register::Edx => registers.edx,
        };
        value >> feature.bit & 1 != 0
    }

    /// Whether the instructions of `feature` are there. What has no bit is there in every processor: CPUID itself, hints, and
    /// the calls to the hypervisor, which answers them or does not.
    pub fn announces(&self, feature: CpuidFeature) -> bool {
        let mut bits = features::bits(feature).peekable();
        bits.peek().is_none() || bits.any(|bit| self.has(bit))
    }

    fn find(&self, leaf: u32, subleaf: u32) -> CpuidRegisters {
        self.entries
            .iter()
            .find(|entry| entry.leaf == leaf && entry.subleaf.is_none_or(|own| own == subleaf))
            .map_or_else(CpuidRegisters::default, |entry| entry.registers)
    }

    /// What the CPU in state `cpu` answers (SDM Vol. 2, CPUID; APM Vol. 3, CPUID).
    ///
    /// A leaf out of range answers zeros, as AMD's processors do; the topology leaves echo the subleaf in any case.
    pub fn query(&self, cpu: &Cpu, leaf: u32, subleaf: u32) -> CpuidRegisters {
        let mut registers = self.find(leaf, subleaf);
        match leaf {
            1 => set(&mut registers.ecx, 27, cpu.cr4.any(Cr4::OSXSAVE)),
            7 if subleaf == 0 => set(&mut registers.ecx, 4, cpu.cr4.any(Cr4::PKE)),
            0xb | 0x1f if self.entries.iter().any(|entry| entry.leaf == leaf) => {
                registers.ecx = registers.ecx & !0xff | subleaf & 0xff;
                registers.edx = self.find(leaf, 0).edx;
            }
            0xd if subleaf == 0 && self.xcr0 != 0 => registers.ebx = self.standard_size(cpu.xcr0),
            0xd if subleaf == 1 && registers.eax & 0xa != 0 => {
                registers.ebx = self.compacted_size(cpu.xcr0 | cpu.msr.xss);
            }
            _ => {}
        }
        registers
    }

    /// Bytes of the standard XSAVE area for the components of `mask`.
    fn standard_size(&self, mask: u64) -> u32 {
        self.extended(mask)
            .map(|component| component.ebx.saturating_add(component.eax))
            .fold(XSAVE_BASE, u32::max)
    }

    /// Bytes of the compacted XSAVE area for the components of `mask`.
    fn compacted_size(&self, mask: u64) -> u32 {
        self.extended(mask).fold(XSAVE_BASE, |size, component| {
            let start = if component.ecx & 2 != 0 {
                size.next_multiple_of(64)
            } else {
                size
            };
            start.saturating_add(component.eax)
        })
    }

    fn extended(&self, mask: u64) -> impl Iterator<Item = CpuidRegisters> {
        (0..63)
            .filter(move |i| (mask & !LEGACY_COMPONENTS) >> i & 1 != 0)
            .map(|i| self.find(0xd, i))
    }
}

fn set(word: &mut u32, bit: u32, value: bool) {
    *word = *word & !(1 << bit) | u32::from(value) << bit;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Efer;

    fn entry(leaf: u32, subleaf: Option<u32>, [eax, ebx, ecx, edx]: [u32; 4]) -> CpuidEntry {
        CpuidEntry {
            leaf,
            subleaf,
            registers: CpuidRegisters { eax, ebx, ecx, edx },
        }
    }

    #[test]
    fn osxsave_follows_cr4() {
        let table = CpuidTable::new(vec![entry(1, None, [0, 0, 1 << 26, 0])]);
        let mut cpu = Cpu::reset();
        assert_eq!(table.query(&cpu, 1, 7).ecx, 1 << 26);
        cpu.cr4.0 |= Cr4::OSXSAVE;
        assert_eq!(table.query(&cpu, 1, 7).ecx, 1 << 26 | 1 << 27);
    }

    #[test]
    fn the_xsave_area_grows_with_xcr0() {
        let table = CpuidTable::new(vec![
            entry(0xd, Some(0), [7, 0, 832, 0]),
            entry(0xd, Some(2), [256, 576, 0, 0]),
        ]);
        let mut cpu = Cpu::reset();
        assert_eq!(table.query(&cpu, 0xd, 0).ebx, 576);
        cpu.xcr0 = 7;
        assert_eq!(table.query(&cpu, 0xd, 0).ebx, 832);
    }

    #[test]
    fn a_compacted_component_begins_at_a_multiple_of_64_if_it_must_be_aligned() {
        let table = |alignment| {
            CpuidTable::new(vec![
                entry(0xd, Some(0), [0x207, 0, 840, 0]),
                entry(0xd, Some(1), [2, 0, 0, 0]),
                entry(0xd, Some(2), [8, 576, 0, 0]),
                entry(0xd, Some(9), [8, 832, alignment, 0]),
            ])
        };
        let mut cpu = Cpu::reset();
        cpu.xcr0 = 0x207;
        assert_eq!(table(0).query(&cpu, 0xd, 1).ebx, 592);
        assert_eq!(table(2).query(&cpu, 0xd, 1).ebx, 648);
    }

    #[test]
    fn what_is_not_announced_cannot_be_set() {
        let table = CpuidTable::new(vec![
            entry(7, Some(0), [0, 1 << 20, 0, 0]),
            entry(0x8000_0001, None, [0, 0, 0, 1 << 11]),
        ]);
        assert_eq!((table.cr4(), table.efer()), (Cr4::SMAP, Efer::SCE));
    }

    #[test]
    fn an_unknown_leaf_answers_zeros() {
        let table = CpuidTable::new(vec![entry(0, None, [0xd, 1, 2, 3])]);
        assert_eq!(table.query(&Cpu::reset(), 0x17, 0), CpuidRegisters::default());
    }
}

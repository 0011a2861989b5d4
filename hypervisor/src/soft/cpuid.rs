//! What CPUID says: the model of the processor.
//!
//! # What it is
//! A processor of AMD's family 19h with a brand of its own. What it announces is what the emulator executes of what the
//! [`CpuModel`] includes, and no more.
//! It is immune to every attack on speculation, as it does not speculate, and says so wherever there is a bit for it;
//! so a guest spends nothing on mitigations.
//! # What is left to the emulator
//! The bits that depend on the processor's state at the time: OSXSAVE (leaf 1 ECX), APIC (leaf 1 and 0x8000_0001 EDX)
//! and the size of the enabled XSAVE area (leaf 0xD EBX).

mod features;
mod hypervisor;
mod state;
#[cfg(test)]
mod tests;

use reprise_emulator::cpuid::{CpuidEntry, CpuidRegisters};
use reprise_emulator::paging::PHYSICAL_BITS;

use super::clock::TSC_KHZ;
use crate::CpuModel;
use features::Word;

/// Family 19h, model 1, stepping 1.
const SIGNATURE: u32 = 0x00a0_0f11;
const VENDOR: &[u8; 12] = b"AuthenticAMD";
const BRAND: &[u8; 48] = b"Reprise Software CPU\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

const MAX_BASIC: u32 = 0x15;
const MAX_EXTENDED: u32 = 0x8000_0021;

/// Bytes of a cache line, and of what CLFLUSH and MONITOR work on.
const LINE: u32 = 64;

/// A cache, as the topology leaves describe it.
struct Cache {
    /// 1 data, 2 instructions, 3 both.
    kind: u32,
    level: u32,
    ways: u32,
    sets: u32,
    /// Whether all cores share it.
    shared: bool,
}

/// The caches a guest may arrange its work by: two small ones and a middle one for each core, a large one for all.
const CACHES: [Cache; 4] = [
    Cache {
        kind: 1,
        level: 1,
        ways: 8,
        sets: 64,
        shared: false,
    },
    Cache {
        kind: 2,
        level: 1,
        ways: 8,
        sets: 64,
        shared: false,
    },
    Cache {
        kind: 3,
        level: 2,
        ways: 8,
        sets: 1024,
        shared: false,
    },
    Cache {
        kind: 3,
        level: 3,
        ways: 16,
        sets: 16384,
        shared: true,
    },
];

/// The leaves whose answer depends on ECX.
const HAS_SUBLEAVES: [u32; 4] = [0x7, 0xb, 0xd, 0x8000_001d];

/// What CPUID says on vCPU `index` (its APIC id) of a machine with `vcpus` vCPUs: cores of one package, one thread each. The
/// hypervisor is Hyper-V, or KVM. What is announced is what `model` includes and what the emulator executes.
pub fn entries(index: u32, vcpus: u32, hyperv: bool, model: CpuModel) -> Vec<CpuidEntry> {
    let mut list = Vec::new();
    let mut add = |leaf, subleaf, [eax, ebx, ecx, edx]: [u32; 4]| {
        list.push(CpuidEntry {
            leaf,
            subleaf: HAS_SUBLEAVES.contains(&leaf).then_some(subleaf),
            registers: CpuidRegisters { eax, ebx, ecx, edx },
        });
    };
    let word = |word: Word| word.value(model);
    let linear_bits = if model.has_everything() { 57 } else { 48 };
    let cores = vcpus.max(1);
    // How many bits of an APIC id tell the cores of a package apart.
    let core_bits = cores.next_power_of_two().trailing_zeros();
    let several = cores > 1;
    let [vendor_b, vendor_d, vendor_c] = words(VENDOR);

    add(0, 0, [MAX_BASIC, vendor_b, vendor_c, vendor_d]);
    let threads = if several { features::HTT } else { 0 };
    let ebx = index.min(0xff) << 24 | cores.min(0xff) << 16 | (LINE / 8) << 8;
    add(1, 0, [SIGNATURE, ebx, word(Word::OneEcx), word(Word::OneEdx) | threads]);
    // The APIC timer always runs.
    add(6, 0, [1 << 2, 0, 0, 0]);
    add(
        7,
        0,
        [0, word(Word::SevenEbx), word(Word::SevenEcx), word(Word::SevenEdx)],
    );
    add(0xb, 0, [0, 1, 1 << 8, index]);
    add(0xb, 1, [core_bits, cores, 2 << 8 | 1, index]);
    add(0xb, 2, [0, 0, 2, index]);
    let components: Vec<_> = state::components(model).collect();
    let xcr0 = components
        .iter()
        .fold(state::LEGACY, |bits, component| bits | component.bit());
    let end = components.iter().map(|component| component.offset + component.size);
    let area = end.fold(state::BASE, u32::max);
    add(0xd, 0, [xcr0, area, area, 0]);
    add(0xd, 1, [word(Word::XsaveEax), state::BASE, 0, 0]);
    for component in components {
        add(0xd, component.number, [component.size, component.offset, 0, 0]);
    }
    // The time-stamp counter is the crystal, 1 GHz.
    add(0x15, 0, [1, 1, TSC_KHZ * 1000, 0]);

    let leaves = if hyperv {
        hypervisor::hyperv()
    } else {
        hypervisor::kvm()
    };
    for (leaf, registers) in leaves {
        add(leaf, 0, registers);
    }

    add(0x8000_0000, 0, [MAX_EXTENDED, vendor_b, vendor_c, vendor_d]);
    let legacy = if several { features::CMP_LEGACY } else { 0 };
    add(
        0x8000_0001,
        0,
        [
            SIGNATURE,
            0,
            word(Word::ExtendedOneEcx) | legacy,
            word(Word::ExtendedOneEdx),
        ],
    );
    for (leaf, part) in (0x8000_0002..).zip(BRAND.chunks_exact(16)) {
        let word = |place: usize| u32::from_le_bytes([part[place], part[place + 1], part[place + 2], part[place + 3]]);
        add(leaf, 0, [word(0), word(4), word(8), word(12)]);
    }
    let [l1_data, l1_code, l2, l3] = &CACHES;
    let l1 = |cache: &Cache| cache.kibibytes() << 24 | cache.ways << 16 | 1 << 8 | LINE;
    add(0x8000_0005, 0, [0, 0, l1(l1_data), l1(l1_code)]);
    // 8 ways are written 6, 16 ways 8; the last level counts in 512 KiB.
    add(
        0x8000_0006,
        0,
        [0, 0, l2.kibibytes() << 16 | 6 << 12 | 1 << 8 | LINE, {
            (l3.kibibytes() / 512) << 18 | 8 << 12 | 1 << 8 | LINE
        }],
    );
    add(0x8000_0007, 0, [0, 0, 0, features::INVARIANT_TSC]);
    add(
        0x8000_0008,
        0,
        [
            linear_bits << 8 | PHYSICAL_BITS,
            word(Word::ExtendedEightEbx),
            core_bits << 12 | (cores - 1),
            0,
        ],
    );
    for (subleaf, cache) in (0..).zip(&CACHES) {
        let sharing = if cache.shared { (1 << core_bits) - 1 } else { 0 };
        // Bit 8: the level initialises itself.
        let eax = sharing << 14 | 1 << 8 | cache.level << 5 | cache.kind;
        add(
            0x8000_001d,
            subleaf,
            [eax, (cache.ways - 1) << 22 | (LINE - 1), cache.sets - 1, 0],
        );
    }
    // One thread for each core, one node.
    add(0x8000_001e, 0, [index, index & 0xff, 0, 0]);
    add(
        0x8000_0021,
        0,
        [features::EXTENDED_21_EAX, 0, features::EXTENDED_21_ECX, 0],
    );
    list
}

impl Cache {
    fn kibibytes(&self) -> u32 {
        self.ways * self.sets * LINE / 1024
    }
}

fn words(text: &[u8; 12]) -> [u32; 3] {
    [0, 4, 8].map(|place| u32::from_le_bytes([text[place], text[place + 1], text[place + 2], text[place + 3]]))
}

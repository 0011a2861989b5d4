//! What CPUID says on KVM: what the host's KVM can announce and the emulator executes, which finishes what KVM cannot.
//!
//! # What it is
//! The soft backend's model, without what this host's KVM does not have. What the processor *is* (vendor, family, the
//! immunities that kernels conclude from them) and how fast it counts is the host's, since it is the host's processor that
//! speculates. Leaves come in a fixed order, and the same host gives the same answers each time.

use iced_x86::CpuidFeature;
use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use reprise_emulator::cpuid::{CpuidEntry, CpuidRegisters, INSTRUCTIONS, Register};
use reprise_emulator::paging::PHYSICAL_BITS;

use super::xsave::Layout;
use crate::tsc::TscRate;
use crate::{CpuModel, soft};

/// Leaf 1 ECX: XSAVE.
const XSAVE: u32 = 1 << 26;
/// Leaf 1 ECX: CR4.OSXSAVE.
const OSXSAVE: u32 = 1 << 27;
/// Leaf 7 ECX: CR4.PKE.
const OSPKE: u32 = 1 << 4;
/// Leaf 1 ECX: there is a hypervisor; which KVM need not say.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 ECX: the local APIC's timer has a TSC-deadline mode; old KVMs say so elsewhere, and it is checked there.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1 EDX: several logical processors in the package.
const HTT: u32 = 1 << 28;
/// Leaf 0x8000_0001 ECX: what leaf 1 calls threads are cores.
const CMP_LEGACY: u32 = 1 << 1;

/// Speculation control, of which there is none on the soft CPU: leaf 7 EDX.
const CONTROL_SEVEN_EDX: u32 = 1 << 26      // IA32_SPEC_CTRL, IA32_PRED_CMD
    | 1 << 28; // IA32_FLUSH_CMD
/// Speculation control: leaf 0x8000_0008 EBX.
const CONTROL_EXTENDED_8_EBX: u32 = 1 << 12 // IBPB
    | 1 << 14                               // IBRS
    | 1 << 15                               // STIBP
    | 1 << 24; // SSBD in IA32_SPEC_CTRL

/// The local APIC timers' input, in kHz.
const APIC_BUS_KHZ: u32 = 1_000_000;

/// What CPUID says on vCPU `index` (its APIC id) of a machine with `vcpus` vCPUs, on a KVM that can announce `supported`
/// and whose guests' time-stamp counters run at `khz`; no more than `model` has.
pub fn model(supported: &[kvm_cpuid_entry2], index: u32, vcpus: u32, khz: u32, model: CpuModel) -> Vec<CpuidEntry> {
    let find = |leaf, subleaf| find(supported, leaf, subleaf);
    let host = find(1, 0);
    let has_xsave = host.ecx & XSAVE != 0;
    let mut entries = soft::cpuid::entries(index, vcpus, false, model);
    // A KVM that may announce XSAVE on its own account says at least which components it has.
    let has_components = has_xsave || find(0xd, 0).eax != 0;
    entries.retain(|entry| entry.leaf != 0xd || has_components);
    for CpuidEntry {
        leaf,
        subleaf,
        registers: own,
    } in &mut entries
    {
        let kvm = find(*leaf, subleaf.unwrap_or(0));
        match *leaf {
            0 | 0x8000_0000 => {
                let vendor = find(0, 0);
                (own.ebx, own.ecx, own.edx) = (vendor.ebx, vendor.ecx, vendor.edx);
            }
            1 => {
                own.eax = kvm.eax;
                own.ecx &= kvm.ecx | HYPERVISOR | TSC_DEADLINE;
                own.edx &= kvm.edx | HTT;
            }
            6 => and(own, kvm),
            7 => {
                own.edx |= CONTROL_SEVEN_EDX;
                and(own, kvm);
            }
            // Without MONITOR there is nothing to tell of it.
            5 if host.ecx & 1 << 3 == 0 => *own = CpuidRegisters::default(),
            // Which components XSAVE manages, and which of its forms there are; sizes are the components'.
            0xd if *subleaf == Some(0) => (own.eax, own.edx) = (own.eax & kvm.eax, own.edx & kvm.edx),
            0xd if *subleaf == Some(1) => own.eax &= kvm.eax,
            0xd => *own = kvm,
            0x15 => *own = TscRate::crystal(khz),
            0x4000_0001 => and(own, kvm),
            0x4000_0010 => (own.eax, own.ebx) = (khz, APIC_BUS_KHZ),
            0x8000_0001 => {
                own.eax = kvm.eax;
                own.ecx &= kvm.ecx | CMP_LEGACY;
                own.edx &= kvm.edx;
            }
            0x8000_0002..=0x8000_0004 if kvm != CpuidRegisters::default() => *own = kvm,
            0x8000_0007 | 0x8000_0021 => and(own, kvm),
            0x8000_0008 => {
                // No more bits of addresses than either has.
                let bits = PHYSICAL_BITS.min(kvm.eax & 0xff);
                let linear = (own.eax >> 8 & 0xff).min(kvm.eax >> 8 & 0xff);
                own.eax = linear << 8 | bits;
                own.ebx = (own.ebx | CONTROL_EXTENDED_8_EBX) & kvm.ebx;
            }
            _ => {}
        }
    }
    // Components that KVM does not have.
    entries.retain(|entry| entry.leaf != 0xd || entry.subleaf < Some(2) || entry.registers.eax != 0);
    entries
}

fn and(own: &mut CpuidRegisters, kvm: CpuidRegisters) {
    own.eax &= kvm.eax;
    own.ebx &= kvm.ebx;
    own.ecx &= kvm.ecx;
    own.edx &= kvm.edx;
}

fn find(entries: &[kvm_cpuid_entry2], leaf: u32, subleaf: u32) -> CpuidRegisters {
    let same = |entry: &&kvm_cpuid_entry2| {
        entry.function == leaf && (entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX == 0 || entry.index == subleaf)
    };
    entries
        .iter()
        .find(same)
        .map_or_else(CpuidRegisters::default, |entry| CpuidRegisters {
            eax: entry.eax,
            ebx: entry.ebx,
            ecx: entry.ecx,
            edx: entry.edx,
        })
}

/// The table as KVM takes it.
pub fn to_kvm(model: &[CpuidEntry]) -> CpuId {
    let entries: Vec<kvm_cpuid_entry2> = model
        .iter()
        .map(|entry| {
            let CpuidRegisters { eax, ebx, ecx, edx } = entry.registers;
            kvm_cpuid_entry2 {
                function: entry.leaf,
                index: entry.subleaf.unwrap_or(0),
                flags: entry.subleaf.map_or(0, |_| KVM_CPUID_FLAG_SIGNIFCANT_INDEX),
                eax,
                ebx,
                ecx,
                edx,
                ..kvm_cpuid_entry2::default()
            }
        })
        .collect();
    CpuId::from_entries(&entries).expect("fewer leaves than KVM_MAX_CPUID_ENTRIES")
}

/// Adds every instruction to what a KVM can announce, but those that need a register which KVM may not have.
pub fn add_instructions(supported: &mut CpuId) {
    for entry in supported.as_mut_slice() {
        let bits = INSTRUCTIONS.iter().filter(|(feature, bit)| {
            (bit.leaf, bit.subleaf) == (entry.function, entry.index) && !needs_register(*feature)
        });
        for (_, bit) in bits {
            let register = match bit.register {
                Register::Eax => &mut entry.eax,
                Register::Ebx => &mut entry.ebx,
                Register::Ecx => &mut entry.ecx,
                Register::Edx => &mut entry.edx,
            };
            *register |= 1 << bit.bit;
        }
    }
}

/// Whether the instructions work on a register, or are of no use without a bit of one, that the processor must have.
fn needs_register(feature: CpuidFeature) -> bool {
    use CpuidFeature::*;
    matches!(
        feature,
        MONITOR
            | FSGSBASE
            | INVPCID
            | PKU
            | XSAVES
            | AVX512F
            | AVX512DQ
            | AVX512_IFMA
            | AVX512CD
            | AVX512BW
            | AVX512VL
            | AVX512_VBMI
            | AVX512_VBMI2
            | AVX512_VNNI
            | AVX512_BITALG
            | AVX512_VPOPCNTDQ
    )
}

/// The table that guests see, of which KVM was given `wanted` and of which it says `has` (KVM_GET_CPUID2).
///
/// A KVM in software may announce what the processor does on its own account, since its guests' user programs ask the processor
/// itself. What depends on the vCPU's state is as wanted: it is the emulator's business.
pub fn announced(wanted: Vec<CpuidEntry>, has: &[kvm_cpuid_entry2]) -> Vec<CpuidEntry> {
    let mut table = wanted;
    for entry in &mut table {
        let subleaf = entry.subleaf.unwrap_or(0);
        let kvm = find(has, entry.leaf, subleaf);
        let own = &mut entry.registers;
        match (entry.leaf, subleaf) {
            (1, _) => {
                own.ecx |= kvm.ecx & !OSXSAVE;
                // How many threads there are, the machine says.
                own.edx |= kvm.edx & !HTT;
            }
            (7, 0) => {
                own.ebx |= kvm.ebx;
                own.ecx |= kvm.ecx & !OSPKE;
                own.edx |= kvm.edx;
            }
            // Components; the forms of XSAVE.
            (0xd, 0 | 1) => own.eax |= kvm.eax,
            (0xd, _) if *own == CpuidRegisters::default() => *own = kvm,
            (0x8000_0001, _) => {
                own.ecx |= kvm.ecx;
                own.edx |= kvm.edx;
            }
            (0x8000_0008, _) => own.ebx |= kvm.ebx,
            _ => {}
        }
    }
    table
}

/// An entry as KVM has it.
pub fn from_kvm(entry: &kvm_cpuid_entry2) -> CpuidEntry {
    let indexed = entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0;
    CpuidEntry {
        leaf: entry.function,
        subleaf: indexed.then_some(entry.index),
        registers: CpuidRegisters {
            eax: entry.eax,
            ebx: entry.ebx,
            ecx: entry.ecx,
            edx: entry.edx,
        },
    }
}

/// Where this host's KVM has each state component in an XSAVE area.
pub fn layout(supported: &[kvm_cpuid_entry2]) -> Layout {
    let components = supported
        .iter()
        .filter(|entry| entry.function == 0xd && entry.index >= 2);
    Layout::new(components.map(|entry| (entry.index, entry.eax, entry.ebx)))
}

/// Whether a processor of this model has XSAVE.
pub fn has_xsave(model: &[CpuidEntry]) -> bool {
    model
        .iter()
        .any(|entry| entry.leaf == 1 && entry.registers.ecx & XSAVE != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A KVM that can announce everything, on a processor of another make.
    fn everything() -> Vec<kvm_cpuid_entry2> {
        let mut list: Vec<_> = to_kvm(&soft::cpuid::entries(0, 1, false, CpuModel::Host))
            .as_slice()
            .to_vec();
        for entry in &mut list {
            if !matches!(entry.function, 0 | 0xb | 0xd) {
                (entry.eax, entry.ebx, entry.ecx, entry.edx) = (u32::MAX, u32::MAX, u32::MAX, u32::MAX);
            }
            if entry.function == 1 {
                entry.eax = 0x0008_06f8;
            }
        }
        list
    }

    fn registers(model: &[CpuidEntry], leaf: u32) -> CpuidRegisters {
        model
            .iter()
            .find(|entry| entry.leaf == leaf)
            .map_or_else(CpuidRegisters::default, |entry| entry.registers)
    }

    #[test]
    fn nothing_is_announced_that_the_emulator_does_not_execute() {
        let (soft, kvm) = (
            soft::cpuid::entries(1, 2, false, CpuModel::Host),
            model(&everything(), 1, 2, 1_000_000, CpuModel::Host),
        );
        for leaf in [1, 7, 0x8000_0001] {
            let (soft, kvm) = (registers(&soft, leaf), registers(&kvm, leaf));
            assert_eq!((kvm.ecx, kvm.ebx), (soft.ecx, soft.ebx), "leaf {leaf:#x}");
            let control = if leaf == 7 { CONTROL_SEVEN_EDX } else { 0 };
            assert_eq!(kvm.edx & !control, soft.edx, "leaf {leaf:#x}");
        }
        assert_eq!(registers(&kvm, 1).eax, 0x0008_06f8);
    }

    #[test]
    fn nothing_is_announced_that_kvm_does_not_have() {
        let kvm = model(&[], 0, 2, 1_000_000, CpuModel::Host);
        assert_eq!(registers(&kvm, 1).ecx, HYPERVISOR | TSC_DEADLINE);
        assert_eq!(registers(&kvm, 1).edx, HTT);
        for leaf in [7, 0xd, 0x4000_0001, 0x8000_0007, 0x8000_0021] {
            assert_eq!(registers(&kvm, leaf), CpuidRegisters::default(), "leaf {leaf:#x}");
        }
        assert!(!has_xsave(&kvm));
    }

    #[test]
    fn what_kvm_announces_on_its_own_account_is_known() {
        let wanted = model(&[], 0, 1, 1_000_000, CpuModel::Host);
        let (plain, mut kvm) = (to_kvm(&wanted), to_kvm(&wanted));
        assert_eq!(announced(wanted.clone(), plain.as_slice()), wanted);
        for entry in kvm.as_mut_slice() {
            if entry.function == 1 {
                // AVX and XSAVE, which is enabled.
                entry.ecx |= 1 << 28 | XSAVE | OSXSAVE;
            }
        }
        let table = announced(wanted.clone(), kvm.as_slice());
        let (before, after) = (registers(&wanted, 1), registers(&table, 1));
        assert_eq!(after.ecx, before.ecx | 1 << 28 | XSAVE);
        assert_eq!(after.ebx, before.ebx);
    }

    #[test]
    fn instructions_are_added_and_registers_are_not() {
        let leaf = |function| kvm_cpuid_entry2 {
            function,
            ..kvm_cpuid_entry2::default()
        };
        let mut supported = CpuId::from_entries(&[leaf(1), leaf(7)]).unwrap();
        add_instructions(&mut supported);
        let [one, seven] = supported.as_slice() else {
            panic!("two leaves")
        };
        // AVX, POPCNT and XSAVE, but not MONITOR; AVX2 and BMI2, but not AVX512F and FSGSBASE.
        assert_eq!(
            one.ecx & (1 << 28 | 1 << 23 | XSAVE | 1 << 3),
            1 << 28 | 1 << 23 | XSAVE
        );
        assert_eq!(seven.ebx & (1 << 5 | 1 << 8 | 1 << 16 | 1), 1 << 5 | 1 << 8);
    }

    #[test]
    fn the_order_is_the_soft_models_and_kvm_takes_the_table() {
        let places =
            |model: &[CpuidEntry]| -> Vec<_> { model.iter().map(|entry| (entry.leaf, entry.subleaf)).collect() };
        let kvm = model(&everything(), 0, 1, 2_450_000, CpuModel::Host);
        assert_eq!(places(&kvm), places(&soft::cpuid::entries(0, 1, false, CpuModel::Host)));
        assert_eq!(to_kvm(&kvm).as_slice().len(), kvm.len());
    }
}

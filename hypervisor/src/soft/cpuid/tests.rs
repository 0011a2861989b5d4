use iced_x86::CpuidFeature;
use reprise_emulator::CpuidTable;
use reprise_emulator::cpuid::INSTRUCTIONS;
use reprise_emulator::model::executes;

use super::*;

fn leaf(list: &[CpuidEntry], leaf: u32, subleaf: u32) -> [u32; 4] {
    let entry = list
        .iter()
        .find(|entry| entry.leaf == leaf && entry.subleaf.is_none_or(|own| own == subleaf))
        .expect("the leaf is there");
    let CpuidRegisters { eax, ebx, ecx, edx } = entry.registers;
    [eax, ebx, ecx, edx]
}

fn text(words: &[u32]) -> String {
    let bytes: Vec<u8> = words
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .filter(|byte| *byte != 0)
        .collect();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn the_names_read_in_the_order_of_their_registers() {
    let list = entries(0, 1, false, CpuModel::Host);
    let [_, ebx, ecx, edx] = leaf(&list, 0, 0);
    assert_eq!(text(&[ebx, edx, ecx]), "AuthenticAMD");
    let [_, ebx, ecx, edx] = leaf(&list, 0x8000_0000, 0);
    assert_eq!(text(&[ebx, edx, ecx]), "AuthenticAMD");
    let [_, ebx, ecx, edx] = leaf(&list, 0x4000_0000, 0);
    assert_eq!(text(&[ebx, ecx, edx]), "KVMKVMKVM");
    let brand = [0x8000_0002, 0x8000_0003, 0x8000_0004]
        .map(|number| leaf(&list, number, 0))
        .concat();
    assert_eq!(text(&brand), "Reprise Software CPU");
}

#[test]
fn the_family_is_19h() {
    let [eax, ..] = leaf(&entries(0, 1, false, CpuModel::Host), 1, 0);
    assert_eq!((eax >> 8 & 0xf) + (eax >> 20 & 0xff), 0x19);
}

#[test]
fn no_leaf_lies_beyond_the_maximum_of_its_range_and_none_is_there_twice() {
    for hyperv in [false, true] {
        let list = entries(0, 4, hyperv, CpuModel::Host);
        let maxima = [0, 0x4000_0000, 0x8000_0000].map(|first| (first, leaf(&list, first, 0)[0]));
        let mut keys: Vec<_> = list.iter().map(|entry| (entry.leaf, entry.subleaf)).collect();
        for (leaf, _) in &keys {
            let range = maxima.iter().find(|(first, _)| first >> 30 == leaf >> 30);
            assert!(
                range.is_some_and(|(first, max)| (first..=max).contains(&leaf)),
                "{leaf:#x}"
            );
        }
        for (_, maximum) in maxima {
            assert!(keys.contains(&(maximum, None)), "{maximum:#x}");
        }
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), list.len());
    }
}

#[test]
fn every_topology_leaf_counts_the_same_cores() {
    for (vcpus, bits) in [(1, 0), (2, 1), (3, 2), (4, 2), (255, 8)] {
        let list = entries(vcpus - 1, vcpus, false, CpuModel::Host);
        let [_, ebx, _, edx] = leaf(&list, 1, 0);
        assert_eq!((ebx >> 24, ebx >> 16 & 0xff), (vcpus - 1, vcpus));
        assert_eq!(edx >> 28 & 1 == 1, vcpus > 1);
        assert_eq!(leaf(&list, 0xb, 0), [0, 1, 0x100, vcpus - 1]);
        assert_eq!(leaf(&list, 0xb, 1), [bits, vcpus, 0x201, vcpus - 1]);
        let [_, _, ecx, _] = leaf(&list, 0x8000_0008, 0);
        assert_eq!((ecx & 0xff, ecx >> 12 & 0xf), (vcpus - 1, bits));
        assert_eq!(leaf(&list, 0x8000_001e, 0)[..3], [vcpus - 1, vcpus - 1, 0]);
        let [eax, ..] = leaf(&list, 0x8000_001d, 3);
        assert_eq!(eax >> 14, (1 << bits) - 1, "all share the last level");
    }
}

#[test]
fn both_descriptions_of_the_caches_agree() {
    let list = entries(0, 2, false, CpuModel::Host);
    let size = |subleaf| {
        let [_, ebx, ecx, _] = leaf(&list, 0x8000_001d, subleaf);
        ((ebx >> 22) + 1) * ((ebx & 0xfff) + 1) * (ecx + 1) / 1024
    };
    let [_, _, data, code] = leaf(&list, 0x8000_0005, 0);
    let [_, _, second, third] = leaf(&list, 0x8000_0006, 0);
    assert_eq!([size(0), size(1)], [data >> 24, code >> 24]);
    assert_eq!([size(2), size(3)], [second >> 16, (third >> 18) * 512]);
}

#[test]
fn the_counter_runs_at_one_gigahertz_everywhere() {
    let list = entries(0, 1, false, CpuModel::Host);
    let [denominator, numerator, crystal, _] = leaf(&list, 0x15, 0);
    assert_eq!(
        u64::from(crystal) * u64::from(numerator) / u64::from(denominator),
        1_000_000_000
    );
    assert_eq!(leaf(&list, 0x4000_0010, 0)[..2], [1_000_000, 1_000_000]);
}

#[test]
fn what_the_two_feature_leaves_share_is_equal() {
    let list = entries(0, 1, false, CpuModel::Host);
    let [.., one] = leaf(&list, 1, 0);
    let [.., extended] = leaf(&list, 0x8000_0001, 0);
    let shared = 0x0183_f3ff;
    assert_eq!(one & shared, extended & shared);
}

/// The extensions that a guest of `model` is told of.
fn announced(model: CpuModel) -> Vec<CpuidFeature> {
    let table = CpuidTable::new(entries(0, 1, false, model));
    let bits = INSTRUCTIONS.iter().filter(|(_, bit)| table.has(*bit));
    bits.map(|(feature, _)| *feature).collect()
}

#[test]
fn what_the_emulator_executes_of_a_model_is_announced_and_nothing_else() {
    for model in CpuModel::ALL {
        let found = announced(model);
        for (feature, _) in INSTRUCTIONS {
            let is_included = model.includes(*feature) && !model.leaves_out(*feature);
            let expected = executes(*feature) && is_included && *feature != CpuidFeature::MONITOR;
            assert_eq!(found.contains(feature), expected, "{feature:?} of {model:?}");
        }
    }
}

#[test]
fn the_host_model_announces_everything_that_works_but_what_it_leaves_out() {
    let found = announced(CpuModel::Host);
    for (feature, _) in INSTRUCTIONS {
        let is_left_out = CpuModel::Host.leaves_out(*feature) || *feature == CpuidFeature::MONITOR;
        assert_eq!(
            found.contains(feature),
            executes(*feature) && !is_left_out,
            "{feature:?}"
        );
    }
}

#[test]
fn the_components_of_xsave_follow_the_instructions_that_use_them() {
    for model in CpuModel::ALL {
        let (list, found) = (entries(0, 1, false, model), announced(model));
        let [xcr0, _, largest, _] = leaf(&list, 0xd, 0);
        let mut end = 576;
        for component in 2..32 {
            if xcr0 >> component & 1 != 0 {
                let [size, offset, ..] = leaf(&list, 0xd, component);
                assert!(offset >= end && size > 0, "component {component} of {model:?}");
                end = offset + size;
            }
        }
        assert_eq!((xcr0 & 3, largest), (3, end), "{model:?}");
        assert!(xcr0 & 4 == 0 || found.contains(&CpuidFeature::AVX), "{model:?}");
        assert!(xcr0 & 0xe0 == 0 || found.contains(&CpuidFeature::AVX512F), "{model:?}");
    }
}

#[test]
fn addresses_of_57_bits_are_announced_in_both_places_or_in_none() {
    for model in CpuModel::ALL {
        let list = entries(0, 1, false, model);
        let (bits, la57) = (
            leaf(&list, 0x8000_0008, 0)[0] >> 8 & 0xff,
            leaf(&list, 7, 0)[2] >> 16 & 1,
        );
        assert_eq!(bits, if la57 == 1 { 57 } else { 48 }, "{model:?}");
    }
}

#[test]
fn a_guest_finds_kvm_or_hyper_v_and_never_both() {
    let list = entries(0, 2, true, CpuModel::Host);
    let [max, ebx, ecx, edx] = leaf(&list, 0x4000_0000, 0);
    assert_eq!((max, text(&[ebx, ecx, edx]).as_str()), (0x4000_0005, "Microsoft Hv"));
    assert_eq!(text(&leaf(&list, 0x4000_0001, 0)), "Hv#1");
    assert!(list.iter().all(|entry| entry.leaf != 0x4000_0010), "KVM's frequencies");
    let [privileges, _, _, features] = leaf(&list, 0x4000_0003, 0);
    assert_eq!(privileges & 0b110_0000, 0b110_0000, "mandatory: hypercalls, VP index");
    assert_eq!(
        privileges & (1 << 2 | 1 << 3 | 1 << 10 | 1 << 15),
        0,
        "no SynIC, no synthetic timers, no guest idle, no TSC invariant control"
    );
    assert_eq!(features, 1 << 4 | 1 << 8);
}

#[test]
fn mwait_is_not_announced_since_guests_would_not_yield_then() {
    for hyperv in [false, true] {
        let list = entries(0, 2, hyperv, CpuModel::Host);
        assert_eq!(leaf(&list, 1, 0)[2] >> 3 & 1, 0);
        assert!(list.iter().all(|entry| entry.leaf != 5));
    }
    let [features, ..] = leaf(&entries(0, 2, false, CpuModel::Host), 0x4000_0001, 0);
    for (bit, there) in [
        (4, false),
        (5, true),
        (7, true),
        (9, false),
        (11, true),
        (13, true),
        (14, false),
    ] {
        assert_eq!(features >> bit & 1 == 1, there, "feature bit {bit}");
    }
}

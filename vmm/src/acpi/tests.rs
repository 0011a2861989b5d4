use std::collections::BTreeMap;

use reprise_devices::acpi::ports;

use super::*;

const BASE: u64 = layout::ACPI_TABLES;

fn description(vcpus: u32, serial: bool) -> Description {
    Description {
        vcpus,
        serial,
        memory: 512 << 20,
    }
}

/// The tables of a machine, found as a system finds them.
struct Found {
    image: Vec<u8>,
    tables: BTreeMap<[u8; 4], Vec<u8>>,
}

impl Found {
    fn of(vcpus: u32, serial: bool) -> Self {
        let image = build(description(vcpus, serial), BASE);
        let rsdp = &image[..36];
        assert_eq!(&rsdp[..8], b"RSD PTR ");
        assert_eq!(sum(&rsdp[..20]), 0, "the first checksum");
        assert_eq!(sum(rsdp), 0, "the second");
        let mut found = Self {
            tables: BTreeMap::new(),
            image,
        };
        let xsdt = found.table(u64_at(&found.image, 24)).to_vec();
        for entry in xsdt[36..].chunks(8) {
            let table = found.table(u64_at(entry, 0)).to_vec();
            found.tables.insert(*table.first_chunk().unwrap(), table);
        }
        let fadt = found.tables[b"FACP"].clone();
        let dsdt = found.table(u64_at(&fadt, 140)).to_vec();
        assert_eq!(
            u64::from(u32_at(&fadt, 40)),
            u64_at(&fadt, 140),
            "both DSDT fields agree"
        );
        found.tables.insert(*b"DSDT", dsdt);
        found
    }

    /// The table at a guest-physical address, its checksum checked.
    fn table(&self, address: u64) -> &[u8] {
        let at = usize::try_from(address - BASE).unwrap();
        let length = u32_at(&self.image, at + 4) as usize;
        let table = &self.image[at..at + length];
        assert_eq!(sum(table), 0, "checksum of {:?}", std::str::from_utf8(&table[..4]));
        table
    }

    /// The MADT's structures by type.
    fn madt(&self) -> Vec<(u8, Vec<u8>)> {
        let mut rest = &self.tables[b"APIC"][44..];
        let mut structures = Vec::new();
        while let [kind, length, ..] = *rest {
            structures.push((kind, rest[2..usize::from(length)].to_vec()));
            rest = &rest[usize::from(length)..];
        }
        structures
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(*bytes[at..].first_chunk().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*bytes[at..].first_chunk().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*bytes[at..].first_chunk().unwrap())
}

#[test]
fn a_system_finds_every_table_from_the_rsdp_and_their_checksums_hold() {
    let found = Found::of(2, true);
    assert_eq!(
        found.tables.keys().collect::<Vec<_>>(),
        [b"APIC", b"DSDT", b"FACP", b"MCFG"]
    );
}

#[test]
fn the_fadt_repeats_what_the_power_management_device_says() {
    let found = Found::of(1, true);
    let fadt = &found.tables[b"FACP"];
    assert_eq!(u64::from(u32_at(fadt, 56)), ports::PM1A_EVT);
    assert_eq!(u64::from(u32_at(fadt, 64)), ports::PM1A_CNT);
    assert_eq!(u64::from(u32_at(fadt, 76)), ports::PM_TMR);
    assert_eq!(u32::from(u16_at(fadt, 46)), ports::SCI_GSI);
    assert_eq!((fadt[88], fadt[89], fadt[91]), (4, 2, 4), "register lengths");
    assert_eq!(u32_at(fadt, 48), 0, "SMI_CMD: the machine is in ACPI mode already");
    assert_eq!(u64_at(fadt, 120), ports::RESET, "the reset register's address");
    assert_eq!(fadt[116], 1, "which is a port");
    assert_eq!(fadt[128], ports::RESET_VALUE);
    assert_eq!((u64::from(u32_at(fadt, 80)), fadt[92]), (ports::GPE0, 2));
    let flags = u32_at(fadt, 112);
    assert_eq!(flags >> 4 & 1, 0, "the power button is fixed hardware");
    assert_eq!(flags >> 20 & 1, 0, "this is the full hardware model");
    assert_eq!(flags >> 10 & 1, 1, "there is a reset register");
    assert_eq!(u16_at(fadt, 109), 0b111, "legacy devices, an 8042, no VGA");
    let facs = usize::try_from(u64::from(u32_at(fadt, 36)) - BASE).unwrap();
    assert_eq!(&found.image[facs..facs + 4], b"FACS");
    assert_eq!(facs % 64, 0, "ACPI wants it so");
}

#[test]
fn the_madt_has_a_local_apic_for_each_processor_and_the_isa_overrides() {
    for vcpus in [1, 2, 255, 300] {
        let madt = Found::of(vcpus, false).madt();
        let apics: Vec<u32> = madt
            .iter()
            .filter_map(|(kind, body)| match kind {
                0 => Some(body[1].into()),
                9 => Some(u32_at(body, 2)),
                _ => None,
            })
            .collect();
        assert_eq!(apics, (0..vcpus).collect::<Vec<_>>());
        assert!(
            madt.iter().all(|(kind, body)| *kind != 0 || body[1] != 255),
            "255 is everybody"
        );
        let overrides: Vec<_> = madt
            .iter()
            .filter(|(kind, _)| *kind == 2)
            .map(|(_, body)| (body[1], u32_at(body, 2), u16_at(body, 6)))
            .collect();
        assert_eq!(
            overrides,
            [(0, 2, 0), (9, 9, 0b1101)],
            "the PIT is on pin 2, the SCI is level-triggered"
        );
    }
}

#[test]
fn the_dsdt_tells_how_to_power_off_and_names_only_devices_that_are_there() {
    let has = |found: &Found, name: &[u8]| found.tables[b"DSDT"].windows(name.len()).any(|window| window == name);
    let found = Found::of(2, true);
    for name in [
        b"_S5_", b"COM1", b"RTC0", b"C000", b"C001", b"S001", b"S01F", b"_EJ0", b"_E01",
    ] {
        assert!(has(&found, name), "{name:?}");
    }
    assert!(!has(&found, b"C002"));
    assert!(!has(&found, b"S000"), "the host bridge stays");
    assert!(!has(&Found::of(1, false), b"COM1"), "without a serial port");
}

#[test]
fn tables_for_more_processors_than_there_is_room_for_are_refused() {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
    assert_eq!(write(&memory, description(4, true)).unwrap(), BASE);
    let refused = write(&memory, description(4096, true));
    assert!(
        matches!(refused, Err(AcpiError::TooLarge { vcpus: 4096, .. })),
        "{refused:?}"
    );
}

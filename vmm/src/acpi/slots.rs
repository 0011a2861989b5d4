//! The slots of the PCI bus: a device for each device number, which a system ejects by, and the event that says that PCI
//! devices come or go (ACPI, "Device Insertion, Removal, and Status Objects").
//!
//! The registers are those of [`reprise_devices::pci::hotplug`].

use acpi_tables::Aml;
use acpi_tables::aml::{
    Acquire, And, Arg, Device, EISAName, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, IO, If,
    Local, Method, MethodCall, Mutex, Name, Notify, ONE, OpRegion, OpRegionSpace, Path, Release, ResourceTemplate,
    Scope, ShiftLeft, Store, ZERO,
};
use reprise_devices::acpi::ports::GPE_PCI;
use reprise_devices::pci::{hotplug, root};

use super::dsdt::port;

/// What a slot is notified of.
mod notification {
    /// Device Check: something came.
    pub const CHECK: u8 = 1;
    /// Ejection Request.
    pub const EJECT: u8 = 3;
}

/// Waits for a mutex without end.
const FOREVER: u16 = 0xffff;

/// The slots behind the host bridge's.
fn numbers() -> impl Iterator<Item = u32> {
    1..u32::from(root::DEVICES)
}

/// The name of a slot's device: S and three hexadecimal digits.
fn name(number: u32) -> String {
    format!("S{number:03X}")
}

/// What lies within the root bus: the registers, the method that ejects, and the slots.
pub fn devices(aml: &mut Vec<u8>) {
    let length = u8::try_from(hotplug::PORTS).expect("twelve ports");
    let first = port(hotplug::PORT);
    Device::new(
        Path::new("PHPR"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0A06")),
            &Name::new(Path::new("_UID"), &"PCI hot-plug"),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![&IO::new(first, first, 1, length)]),
            ),
        ],
    )
    .to_aml_bytes(aml);
    OpRegion::new(Path::new("PCST"), OpRegionSpace::SystemIO, &first, &length).to_aml_bytes(aml);
    // In the order of the registers, which lie one behind the other.
    Field::new(
        Path::new("PCST"),
        FieldAccessType::DWord,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        vec![
            FieldEntry::Named(*b"PCIU", 32),
            FieldEntry::Named(*b"PCID", 32),
            FieldEntry::Named(*b"B0EJ", 32),
        ],
    )
    .to_aml_bytes(aml);
    Mutex::new(Path::new("BLCK"), 0).to_aml_bytes(aml);
    Method::new(
        Path::new("PCEJ"),
        1,
        false,
        vec![
            &Acquire::new(Path::new("BLCK"), FOREVER),
            &ShiftLeft::new(&Path::new("B0EJ"), &ONE, &Arg(0)),
            &Release::new(Path::new("BLCK")),
        ],
    )
    .to_aml_bytes(aml);
    for number in numbers() {
        Device::new(
            Path::new(&name(number)),
            vec![
                &Name::new(Path::new("_ADR"), &(number << 16)),
                &Name::new(Path::new("_SUN"), &number),
                &Method::new(
                    Path::new("_EJ0"),
                    1,
                    true,
                    vec![&MethodCall::new(Path::new("PCEJ"), vec![&number])],
                ),
            ],
        )
        .to_aml_bytes(aml);
    }
}

/// The event's method: it tells each slot that something came or is to go.
pub fn event(aml: &mut Vec<u8>) {
    let within = |name: &str| Path::new(&format!("\\_SB_.PCI0.{name}"));
    let mut body = Vec::new();
    Acquire::new(within("BLCK"), FOREVER).to_aml_bytes(&mut body);
    for (local, register, what) in [
        (Local(0), "PCIU", notification::CHECK),
        (Local(1), "PCID", notification::EJECT),
    ] {
        Store::new(&local, &within(register)).to_aml_bytes(&mut body);
        for number in numbers() {
            let bit = 1_u32 << number;
            let set = And::new(&ZERO, &local, &bit);
            let slot = within(&name(number));
            let notify = Notify::new(&slot, &what);
            If::new(&set, vec![&notify]).to_aml_bytes(&mut body);
        }
    }
    Release::new(within("BLCK")).to_aml_bytes(&mut body);
    let method = super::dsdt::Raw(body);
    Scope::new(
        Path::new("_GPE"),
        vec![&Method::new(
            Path::new(&format!("_E{GPE_PCI:02X}")),
            0,
            true,
            vec![&method],
        )],
    )
    .to_aml_bytes(aml);
}

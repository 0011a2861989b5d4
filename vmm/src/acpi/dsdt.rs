//! DSDT: the devices that a system cannot find by itself, in AML.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, Path,
    ResourceTemplate, Scope,
};
use reprise_devices::acpi::ports;
use reprise_devices::pci::root;
use reprise_devices::{rtc, serial};

use super::{Description, Table, slots};
use crate::boot::layout;

/// The ISA interrupt of the RTC's alarm.
const RTC_IRQ: u32 = 8;

/// The table.
pub fn table(description: Description) -> Table {
    let mut body = Vec::new();
    soft_off(&mut body);
    let mut devices = Vec::new();
    for id in 0..description.vcpus {
        processor(&mut devices, id);
    }
    if description.serial {
        serial_port(&mut devices);
    }
    clock(&mut devices);
    pci(&mut devices, description.memory);
    body.extend(Scope::raw(Path::new("_SB_"), devices));
    slots::event(&mut body);
    super::table(*b"DSDT", 2, &body)
}

/// `\_S5`: what to write into SLP_TYP to power off. The other sleep states are not there.
fn soft_off(aml: &mut Vec<u8>) {
    let sleep_type = ports::SLP_TYP_S5;
    Name::new(Path::new("_S5_"), &Package::new(vec![&sleep_type, &sleep_type])).to_aml_bytes(aml);
}

/// A processor device; its _UID is the id in the MADT.
fn processor(aml: &mut Vec<u8>, id: u32) {
    // Names have four characters: C and three hexadecimal digits.
    let name = format!("C{:03X}", id & 0xfff);
    Device::new(
        Path::new(&name),
        vec![
            &Name::new(Path::new("_HID"), &"ACPI0007"),
            &Name::new(Path::new("_UID"), &id),
        ],
    )
    .to_aml_bytes(aml);
}

/// COM1, a 16550A.
fn serial_port(aml: &mut Vec<u8>) {
    let first = port(serial::COM1);
    let length = u8::try_from(serial::PORTS).expect("eight ports");
    Device::new(
        Path::new("COM1"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
            &Name::new(Path::new("_UID"), &1_u32),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![
                    &IO::new(first, first, 1, length),
                    &Interrupt::new(true, true, false, false, serial::COM1_GSI),
                ]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}

/// The CMOS clock.
fn clock(aml: &mut Vec<u8>) {
    let first = port(rtc::PORT);
    let length = u8::try_from(rtc::PORTS).expect("two ports");
    Device::new(
        Path::new("RTC0"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0B00")),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![
                    &IO::new(first, first, 1, length),
                    &Interrupt::new(true, true, false, false, RTC_IRQ),
                ]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}

/// The PCI root bus with what its devices may claim, and the memory of its configuration space, which a system uses only if
/// it is somebody's resource (PCI Firmware Specification, "MCFG Table Description").
///
/// There is no routing of INTx interrupts, as no function has a pin.
fn pci(aml: &mut Vec<u8>, memory: u64) {
    let (first, ports) = (port(root::CONFIG_PORT), root::CONFIG_PORTS);
    let (low, high) = (layout::PCI_LOW, layout::pci_high(memory));
    let below_4g = |address: u64| u32::try_from(address).expect("it lies below 4 GiB");
    let mut inside = Vec::new();
    slots::devices(&mut inside);
    let inside = Raw(inside);
    Device::new(
        Path::new("PCI0"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0A08")),
            &Name::new(Path::new("_CID"), &EISAName::new("PNP0A03")),
            &Name::new(Path::new("_UID"), &0_u32),
            &Name::new(Path::new("_SEG"), &0_u32),
            &Name::new(Path::new("_BBN"), &0_u32),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![
                    &AddressSpace::new_bus_number(0_u16, 0_u16),
                    &IO::new(first, first, 1, u8::try_from(ports).expect("eight ports")),
                    &AddressSpace::new_memory(
                        AddressSpaceCacheable::NotCacheable,
                        true,
                        below_4g(low.start),
                        below_4g(low.end - 1),
                        None,
                    ),
                    &AddressSpace::new_memory(
                        AddressSpaceCacheable::NotCacheable,
                        true,
                        high.start,
                        high.end - 1,
                        None,
                    ),
                ]),
            ),
            &inside,
        ],
    )
    .to_aml_bytes(aml);
    Device::new(
        Path::new("MCFG"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0C02")),
            &Name::new(Path::new("_UID"), &0_u32),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![&Memory32Fixed::new(
                    true,
                    below_4g(layout::PCI_ECAM),
                    below_4g(root::ECAM_LENGTH),
                )]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}

/// AML that is there already.
pub(super) struct Raw(pub(super) Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}

pub(super) fn port(address: u64) -> u16 {
    u16::try_from(address).expect("ports have 16 bits")
}

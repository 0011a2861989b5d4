//! MADT: processors and interrupt controllers (ACPI, Multiple APIC Description Table).

use reprise_devices::acpi::ports::SCI_GSI;

use super::Table;

/// Where the local APICs and the IO-APIC are, as every hypervisor backend has them.
const LOCAL_APIC: u32 = 0xfee0_0000;
const IO_APIC: u32 = 0xfec0_0000;

/// Multiple APIC Flags, PCAT_COMPAT: there are two 8259s besides.
const PCAT_COMPAT: u32 = 1 << 0;

/// Local APIC flags: enabled.
const ENABLED: u32 = 1 << 0;
/// The first APIC id that a local APIC structure cannot carry; 255 is everybody.
const FIRST_X2APIC_ID: u32 = 255;

/// MPS INTI flags.
mod inti {
    /// As the bus has it: ISA is edge-triggered, active high.
    pub const BUS: u16 = 0;
    /// Active high, level-triggered.
    pub const HIGH_LEVEL: u16 = 0b01 | 0b11 << 2;
}

/// The table.
pub fn table(vcpus: u32) -> Table {
    let mut body = Vec::new();
    body.extend(LOCAL_APIC.to_le_bytes());
    body.extend(PCAT_COMPAT.to_le_bytes());
    for id in 0..vcpus {
        match u8::try_from(id) {
            Ok(id) if u32::from(id) < FIRST_X2APIC_ID => local_apic(&mut body, id),
            _ => local_x2apic(&mut body, id),
        }
    }
    io_apic(&mut body);
    // The PIT, IRQ 0, is wired to pin 2, where the PIC's output would be.
    interrupt_override(&mut body, 0, 2, inti::BUS);
    let sci = u8::try_from(SCI_GSI).expect("an ISA interrupt");
    interrupt_override(&mut body, sci, SCI_GSI, inti::HIGH_LEVEL);
    local_apic_nmi(&mut body);
    super::table(*b"APIC", 5, &body)
}

/// Processor Local APIC Structure.
fn local_apic(body: &mut Vec<u8>, id: u8) {
    body.extend([0, 8, id, id]);
    body.extend(ENABLED.to_le_bytes());
}

/// Processor Local x2APIC Structure.
fn local_x2apic(body: &mut Vec<u8>, id: u32) {
    body.extend([9, 16, 0, 0]);
    body.extend(id.to_le_bytes());
    body.extend(ENABLED.to_le_bytes());
    body.extend(id.to_le_bytes());
}

/// I/O APIC Structure: id 0, its pins are the global system interrupts from 0 on.
fn io_apic(body: &mut Vec<u8>) {
    body.extend([1, 12, 0, 0]);
    body.extend(IO_APIC.to_le_bytes());
    body.extend(0_u32.to_le_bytes());
}

/// Interrupt Source Override Structure, of the ISA bus.
fn interrupt_override(body: &mut Vec<u8>, irq: u8, gsi: u32, flags: u16) {
    body.extend([2, 10, 0, irq]);
    body.extend(gsi.to_le_bytes());
    body.extend(flags.to_le_bytes());
}

/// Local APIC NMI Structure: LINT1 of every processor.
fn local_apic_nmi(body: &mut Vec<u8>) {
    body.extend([4, 6, 0xff]);
    body.extend(inti::BUS.to_le_bytes());
    body.push(1);
}

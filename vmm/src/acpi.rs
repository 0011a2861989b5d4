//! ACPI tables: what the machine tells its guest about itself.
//!
//! # Purpose
//! RSDP, XSDT, FADT, FACS, MADT, MCFG and DSDT, as the ACPI specification lays them out. They repeat what the devices know
//! ([`reprise_devices::acpi::ports`] and the other devices' constants) and say nothing that is not there.
//!
//! # Life
//! [`write()`] puts them into guest memory once, before the guest runs. The RSDP lies where a system searches for it, and its
//! address goes to the kernel besides.

mod dsdt;
mod fadt;
mod madt;
mod slots;
#[cfg(test)]
mod tests;

use acpi_tables::facs::FACS;
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, sdt::Sdt};
use reprise_hypervisor::GuestMemory;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::boot::layout;

const OEM_ID: [u8; 6] = *b"REPRIS";
const OEM_TABLE_ID: [u8; 8] = *b"MICROVM ";
const OEM_REVISION: u32 = 1;

/// What the tables describe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Description {
    /// How many processors there are; their APIC ids are 0, 1, 2, …
    pub vcpus: u32,
    /// Whether there is a serial port.
    pub serial: bool,
    /// RAM in bytes.
    pub memory: u64,
}

/// The tables cannot be put into guest memory.
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    /// They are too large.
    #[error("ACPI tables for {vcpus} vCPUs take {size} bytes; there is room for {room}")]
    TooLarge {
        /// How many processors they describe.
        vcpus: u32,
        /// Their bytes.
        size: u64,
        /// The bytes there are.
        room: u64,
    },
    /// There is no RAM where they must lie.
    #[error("guest memory at {address:#x} cannot be written")]
    Memory {
        /// Where.
        address: u64,
        /// What is wrong there.
        source: GuestMemoryError,
    },
}

/// Writes the tables from [`layout::ACPI_TABLES`] on, and returns the address of the RSDP.
///
/// # Errors
/// [`AcpiError`] if they do not fit.
pub fn write(memory: &GuestMemory, description: Description) -> Result<u64, AcpiError> {
    let image = build(description, layout::ACPI_TABLES);
    let (size, room) = (image.len() as u64, layout::ACPI_TABLES_END - layout::ACPI_TABLES);
    if size > room {
        return Err(AcpiError::TooLarge {
            vcpus: description.vcpus,
            size,
            room,
        });
    }
    let address = layout::ACPI_TABLES;
    memory
        .write_slice(&image, GuestAddress(address))
        .map_err(|source| AcpiError::Memory { address, source })?;
    Ok(address)
}

/// All tables as they lie from `base` on, the RSDP first.
fn build(description: Description, base: u64) -> Vec<u8> {
    // The RSDP names the XSDT, which names the others; so it is made last, and its place is kept.
    let mut image = Image {
        base,
        bytes: vec![0; Rsdp::len()],
    };
    let facs = image.place(&FACS::new());
    let dsdt = image.place(&dsdt::table(description));
    let fadt = image.place(&fadt::table(facs, dsdt));
    let madt = image.place(&madt::table(description.vcpus));
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(layout::PCI_ECAM, 0, 0, 0);
    let mcfg = image.place(&mcfg);
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    for table in [fadt, madt, mcfg] {
        xsdt.add_entry(table);
    }
    let xsdt = image.place(&xsdt);
    let mut rsdp = Vec::new();
    Rsdp::new(OEM_ID, xsdt).to_aml_bytes(&mut rsdp);
    image.bytes[..rsdp.len()].copy_from_slice(&rsdp);
    image.bytes
}

struct Image {
    base: u64,
    bytes: Vec<u8>,
}

impl Image {
    /// Appends a table and returns its address. 64 bytes is what the FACS asks for; the others ask for less.
    fn place(&mut self, table: &dyn Aml) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(64), 0);
        let address = self.base + self.bytes.len() as u64;
        table.to_aml_bytes(&mut self.bytes);
        address
    }
}

/// A table with the standard header and `body`.
fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Table {
    const HEADER: u32 = 36;
    let mut sdt = Sdt::new(signature, HEADER, revision, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    sdt.append_slice(body);
    Table(sdt)
}

struct Table(Sdt);

impl Aml for Table {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(self.0.as_slice());
    }
}

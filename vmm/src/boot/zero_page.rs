//! The Linux boot protocol: `boot_params`, and the page tables and descriptors of the 64-bit entry (Linux,
//! Documentation/arch/x86/boot.rst and zero-page.rst).

use linux_loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use reprise_hypervisor::GuestMemory;
use vm_memory::{Bytes, GuestAddress};

use super::{BootError, Placed, layout};

/// `type_of_loader`: one without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
/// `boot_flag` and `header`, for an image that came without a setup header.
const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448;

/// Present, writable.
const TABLE: u64 = 0b11;
/// Present, writable, a 2 MiB page.
const LARGE_PAGE: u64 = 0b1000_0011;
const PAGE: u64 = 4096;

/// The descriptors of `__BOOT_CS` (0x10) and `__BOOT_DS` (0x18), flat, for a 64-bit and for a 32-bit entry.
const GDT_64: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
const GDT_32: [u64; 4] = [0, 0, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

/// The bytes of the descriptor table.
pub const GDT_SIZE: u16 = size_of::<[u64; 4]>() as u16;

/// Writes `boot_params`; the command line is there already. `header` is the image's own, or `None` for a vmlinux.
pub fn write(
    memory: &GuestMemory,
    memory_size: u64,
    header: Option<setup_header>,
    placed: &Placed,
) -> Result<(), BootError> {
    let mut params = boot_params {
        hdr: header.unwrap_or_default(),
        ..Default::default()
    };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.boot_flag = BOOT_FLAG;
    params.hdr.header = HEADER_MAGIC;
    params.hdr.cmd_line_ptr = u32::try_from(layout::COMMAND_LINE).expect("a constant below 1 MiB");
    params.acpi_rsdp_addr = placed.rsdp;
    if let Some(initramfs) = &placed.initramfs {
        // It was placed below 4 GiB.
        params.hdr.ramdisk_image = low(initramfs.start);
        params.hdr.ramdisk_size = low(initramfs.end - initramfs.start);
    }
    let map = layout::memory_map(memory_size);
    let mut table = params.e820_table;
    for (entry, (range, kind)) in table.iter_mut().zip(&map) {
        *entry = boot_e820_entry {
            addr: range.start,
            size: range.end - range.start,
            r#type: kind.number(),
        };
    }
    params.e820_table = table;
    params.e820_entries = u8::try_from(map.len()).expect("a handful");
    memory
        .write_obj(params, GuestAddress(layout::ZERO_PAGE))
        .map_err(BootError::memory(layout::ZERO_PAGE))
}

fn low(value: u64) -> u32 {
    u32::try_from(value).expect("the initramfs lies below 4 GiB")
}

/// Writes the descriptor table of a 32-bit entry.
pub fn write_gdt_32(memory: &GuestMemory) -> Result<(), BootError> {
    memory
        .write_obj(GDT_32, GuestAddress(layout::GDT))
        .map_err(BootError::memory(layout::GDT))
}

/// Writes the descriptor table of a 64-bit entry, and page tables that map the first 4 GiB to themselves.
pub fn write_long_mode_tables(memory: &GuestMemory) -> Result<(), BootError> {
    memory
        .write_obj(GDT_64, GuestAddress(layout::GDT))
        .map_err(BootError::memory(layout::GDT))?;
    let put = |address: u64, entry: u64| {
        memory
            .write_obj(entry, GuestAddress(address))
            .map_err(BootError::memory(address))
    };
    let pointers = layout::PAGE_TABLES + PAGE;
    let directories = pointers + PAGE;
    put(layout::PAGE_TABLES, pointers | TABLE)?;
    for gigabyte in 0..4 {
        put(pointers + 8 * gigabyte, (directories + PAGE * gigabyte) | TABLE)?;
    }
    for page in 0..4 * 512 {
        put(directories + 8 * page, (page << 21) | LARGE_PAGE)?;
    }
    Ok(())
}

//! The PVH boot protocol: what `hvm_start_info` tells the kernel (Xen, docs/misc/pvh.pandoc and
//! xen/include/public/arch-x86/hvm/start_info.h).

use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use reprise_hypervisor::GuestMemory;
use vm_memory::{Bytes, GuestAddress};

use super::{BootError, Placed, layout};

/// "xEn3" with the 0x80 bit of the "E" set.
const MAGIC: u32 = 0x336e_c578;
/// The first version with a memory map.
const VERSION: u32 = 1;

/// The longest command line that Linux takes, without the zero byte (COMMAND_LINE_SIZE).
pub const COMMAND_LINE_MAX: usize = 2047;

/// Writes `hvm_start_info` and what it points at; the command line is there already.
pub fn write(memory: &GuestMemory, memory_size: u64, placed: &Placed) -> Result<(), BootError> {
    let put = |source| BootError::Memory {
        address: layout::START_INFO,
        source,
    };
    let map = layout::memory_map(memory_size);
    let info = hvm_start_info {
        magic: MAGIC,
        version: VERSION,
        nr_modules: u32::from(placed.initramfs.is_some()),
        modlist_paddr: layout::MODULES,
        cmdline_paddr: layout::COMMAND_LINE,
        rsdp_paddr: placed.rsdp,
        memmap_paddr: layout::MEMORY_MAP,
        memmap_entries: u32::try_from(map.len()).expect("a handful"),
        ..Default::default()
    };
    memory.write_obj(info, GuestAddress(layout::START_INFO)).map_err(put)?;
    if let Some(initramfs) = &placed.initramfs {
        let module = hvm_modlist_entry {
            paddr: initramfs.start,
            size: initramfs.end - initramfs.start,
            ..Default::default()
        };
        memory.write_obj(module, GuestAddress(layout::MODULES)).map_err(put)?;
    }
    for (index, (range, kind)) in (0_u64..).zip(&map) {
        let entry = hvm_memmap_table_entry {
            addr: range.start,
            size: range.end - range.start,
            type_: kind.number(),
            reserved: 0,
        };
        let at = layout::MEMORY_MAP + index * size_of::<hvm_memmap_table_entry>() as u64;
        memory.write_obj(entry, GuestAddress(at)).map_err(put)?;
    }
    Ok(())
}

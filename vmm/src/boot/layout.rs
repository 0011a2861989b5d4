//! Where things lie in guest-physical memory.
//!
//! # Invariants
//! - What the VMM places for the kernel (tables, command line) lies below [`LOW_END`]; the kernel and the initramfs lie
//!   from [`HIGH_START`] on, so neither can overwrite the other.
//! - RAM never covers [`MMIO_START`]`..`[`MMIO_END`]: devices, the local APICs and the IO-APIC live there.

use std::ops::Range;

/// The global descriptor table of an entry by the Linux boot protocol.
pub const GDT: u64 = 0x500;
/// `hvm_start_info` of an entry by PVH.
pub const START_INFO: u64 = 0x6000;
/// The list of modules that `hvm_start_info`, or Multiboot's information structure, points at.
pub const MODULES: u64 = 0x6100;
/// The information structure of an entry by Multiboot.
pub const MULTIBOOT_INFO: u64 = 0x6200;
/// The loader's name, for the same.
pub const LOADER_NAME: u64 = 0x6300;
/// `boot_params`, the "zero page" of the Linux boot protocol.
pub const ZERO_PAGE: u64 = 0x7000;
/// The memory map that `hvm_start_info`, or Multiboot's information structure, points at.
pub const MEMORY_MAP: u64 = 0x8000;
/// Page tables that map the first 4 GiB to themselves: one PML4, one page-directory-pointer table, four directories.
pub const PAGE_TABLES: u64 = 0x9000;
/// The string of a Multiboot module, its path, ended by a zero byte.
pub const MODULE_NAME: u64 = 0x1_0000;
/// The kernel's command line, ended by a zero byte.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// The end of conventional memory; from here to 640 KiB is what a PC keeps for its firmware.
pub const LOW_END: u64 = 0x9_fc00;
/// The end of the firmware's part of conventional memory.
pub const EBDA_END: u64 = 0xa_0000;
/// ACPI tables, the RSDP first: a system that searches for it looks here (ACPI, Finding the RSDP on IA-PC Systems).
pub const ACPI_TABLES: u64 = 0xe_0000;
/// The end of the room for ACPI tables.
pub const ACPI_TABLES_END: u64 = HIGH_START;
/// Where kernels may lie.
pub const HIGH_START: u64 = 0x10_0000;
/// RAM below 4 GiB ends here at the latest.
pub const MMIO_START: u64 = 0xc000_0000;
/// Where PCI devices are at first, and the end of that: what follows is PCI configuration space.
pub const PCI_LOW: Range<u64> = MMIO_START..PCI_ECAM;
/// PCI configuration space (ECAM) of the one bus, 1 MiB.
pub const PCI_ECAM: u64 = 0xe000_0000;
/// RAM that did not fit below goes on here.
pub const MMIO_END: u64 = 0x1_0000_0000;

/// What a guest may do with a part of its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Anything.
    Usable,
    /// Nothing: it belongs to the firmware.
    Reserved,
}

impl Kind {
    /// The number of this kind, the same in an e820 map and in the memory map of `hvm_start_info`.
    pub fn number(self) -> u32 {
        match self {
            Self::Usable => 1,
            Self::Reserved => 2,
        }
    }
}

/// A machine with this much RAM has it here: one range, or two around the devices' addresses.
pub fn ram(size: u64) -> Vec<Range<u64>> {
    let below = 0..size.min(MMIO_START);
    // A size near 2^64 is refused before it comes here; saturating is only not to wrap.
    let above = MMIO_END..MMIO_END.saturating_add(size - below.end);
    [below, above].into_iter().filter(|range| !range.is_empty()).collect()
}

/// Where PCI devices are that do not fit below 4 GiB, in a machine with `size` bytes of RAM: 64 GiB from a multiple of 64 GiB on.
pub fn pci_high(size: u64) -> Range<u64> {
    const LENGTH: u64 = 64 << 30;
    let ram_end = ram(size).last().map_or(0, |range| range.end);
    // A size near 2^64 is refused before it comes here.
    let start = ram_end.max(MMIO_END).div_ceil(LENGTH).saturating_mul(LENGTH);
    start..start.saturating_add(LENGTH)
}

/// The memory map that the guest is told, in rising order.
pub fn memory_map(size: u64) -> Vec<(Range<u64>, Kind)> {
    let mut map = vec![
        (0..LOW_END, Kind::Usable),
        (LOW_END..EBDA_END, Kind::Reserved),
        (ACPI_TABLES..ACPI_TABLES_END, Kind::Reserved),
    ];
    let usable = ram(size)
        .into_iter()
        .map(|range| range.start.max(HIGH_START)..range.end);
    map.extend(
        usable
            .filter(|range| !range.is_empty())
            .map(|range| (range, Kind::Usable)),
    );
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_leaves_the_devices_addresses_free() {
        let one_range = |end| Vec::from_iter(Some(0..end));
        assert_eq!(ram(512 << 20), one_range(512 << 20));
        assert_eq!(ram(3 << 30), one_range(0xc000_0000));
        assert_eq!(ram(8 << 30), [0..0xc000_0000, 0x1_0000_0000..0x2_4000_0000]);
    }

    #[test]
    fn the_upper_window_for_pci_devices_lies_above_all_ram() {
        for size in [2 << 20, 3 << 30, 63 << 30, 64 << 30, 200 << 30] {
            let window = pci_high(size);
            assert!(ram(size).iter().all(|range| range.end <= window.start), "{size:#x}");
            assert_eq!((window.start % (64 << 30), window.end - window.start), (0, 64 << 30));
        }
    }

    #[test]
    fn the_memory_map_covers_all_ram_but_the_firmware_s_and_never_overlaps() {
        for size in [2 << 20, 512 << 20, 3 << 30, 8 << 30] {
            let map = memory_map(size);
            for pair in map.windows(2) {
                assert!(pair[0].0.end <= pair[1].0.start, "{pair:x?}");
            }
            let usable: u64 = map
                .iter()
                .filter(|(_, kind)| *kind == Kind::Usable)
                .map(|(range, _)| range.end - range.start)
                .sum();
            assert_eq!(
                usable,
                size - (HIGH_START - LOW_END),
                "all but 640 KiB to 1 MiB and the last KiB below"
            );
        }
    }
}

//! The state in which the bootstrap processor enters a kernel.

use reprise_emulator::cpu::segment::{Attributes, TSS32_BUSY};
use reprise_emulator::cpu::{Cpu, Cr0, Cr4, Efer, Seg, Segment, TableRegister, gpr};

use super::{layout, multiboot, zero_page};

/// Flat code, 32-bit: execute, read, accessed; present, DPL 0, 4 GiB in pages.
const CODE_32: Attributes = Attributes(0xc09b);
/// The same for 64-bit mode.
const CODE_64: Attributes = Attributes(0xa09b);
/// Flat data: read, write, accessed.
const DATA: Attributes = Attributes(0xc093);
/// `__BOOT_CS` and `__BOOT_DS` of the Linux boot protocol.
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;

/// How a kernel is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// PVH: 32-bit protected mode, RBX points at `hvm_start_info`.
    Pvh {
        /// The physical address of the first instruction.
        rip: u64,
    },
    /// The Linux boot protocol, 32-bit: RSI points at `boot_params`.
    Linux32 {
        /// The physical address of the first instruction.
        rip: u64,
    },
    /// The Linux boot protocol, 64-bit: RSI points at `boot_params`, the first 4 GiB are mapped to themselves.
    Linux64 {
        /// The physical address of the first instruction.
        rip: u64,
    },
    /// Multiboot 1: 32-bit protected mode, RAX says so, RBX points at the information structure.
    Multiboot {
        /// The physical address of the first instruction.
        rip: u64,
    },
}

impl Entry {
    /// The processor at that point: as after RESET but for what the protocol says.
    pub fn cpu(self) -> Box<Cpu> {
        let mut cpu = Box::new(Cpu::reset());
        let code = match self {
            Self::Linux64 { .. } => CODE_64,
            Self::Pvh { .. } | Self::Linux32 { .. } | Self::Multiboot { .. } => CODE_32,
        };
        for seg in Seg::ALL {
            cpu.segments[seg] = Segment::flat(BOOT_DS, DATA);
        }
        cpu.segments[Seg::Cs] = Segment::flat(BOOT_CS, code);
        cpu.tr = Segment {
            limit: 0x67,
            ..Segment::null_system(TSS32_BUSY)
        };
        cpu.cr0 = Cr0(Cr0::PE | Cr0::ET);
        cpu.gdtr = TableRegister {
            base: layout::GDT,
            limit: zero_page::GDT_SIZE - 1,
        };
        cpu.idtr = TableRegister { base: 0, limit: 0 };
        match self {
            Self::Pvh { rip } => {
                cpu.rip = rip;
                cpu.gpr.set(gpr::RBX, layout::START_INFO);
            }
            Self::Multiboot { rip } => {
                cpu.rip = rip;
                cpu.gpr.set(gpr::RAX, multiboot::LOADER_MAGIC);
                cpu.gpr.set(gpr::RBX, layout::MULTIBOOT_INFO);
            }
            Self::Linux32 { rip } => {
                cpu.rip = rip;
                cpu.gpr.set(gpr::RSI, layout::ZERO_PAGE);
            }
            Self::Linux64 { rip } => {
                cpu.rip = rip;
                cpu.gpr.set(gpr::RSI, layout::ZERO_PAGE);
                cpu.cr0 = Cr0(Cr0::PE | Cr0::ET | Cr0::PG);
                cpu.cr3 = layout::PAGE_TABLES;
                cpu.cr4 = Cr4(Cr4::PAE);
                cpu.efer = Efer(Efer::LME | Efer::LMA);
            }
        }
        cpu.refresh();
        cpu
    }
}

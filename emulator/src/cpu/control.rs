//! Control registers and EFER (SDM Vol. 3, Control Registers; APM Vol. 2, EFER).

use serde::{Deserialize, Serialize};

macro_rules! bits {
    ($(#[$doc:meta])* $name:ident { $($(#[$bit_doc:meta])* $bit:ident = $value:expr;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
        pub struct $name(pub u64);

        impl $name {
            $($(#[$bit_doc])* pub const $bit: u64 = $value;)*

            /// Any of the bits of `mask` is set.
            #[inline(always)]
            pub fn any(self, mask: u64) -> bool {
                self.0 & mask != 0
            }
        }

        impl core::fmt::Debug for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

bits! {
    /// Control register 0.
    Cr0 {
        /// Protected mode.
        PE = 1 << 0;
        /// Monitor coprocessor.
        MP = 1 << 1;
        /// Emulation: x87 instructions give #NM.
        EM = 1 << 2;
        /// Task switched: x87 and SSE instructions give #NM.
        TS = 1 << 3;
        /// Extension type, always one.
        ET = 1 << 4;
        /// Numeric error: x87 errors give #MF.
        NE = 1 << 5;
        /// Write protect: supervisors obey read-only pages.
        WP = 1 << 16;
        /// Alignment mask.
        AM = 1 << 18;
        /// Not write-through.
        NW = 1 << 29;
        /// Cache disable.
        CD = 1 << 30;
        /// Paging.
        PG = 1 << 31;
    }
}

impl Cr0 {
    /// Every bit that can be other than zero.
    pub const DEFINED: u64 =
        Cr0::PE | Cr0::MP | Cr0::EM | Cr0::TS | Cr0::ET | Cr0::NE | Cr0::WP | Cr0::AM | Cr0::NW | Cr0::CD | Cr0::PG;
}

bits! {
    /// Control register 4.
    Cr4 {
        /// Virtual-8086 extensions.
        VME = 1 << 0;
        /// Protected-mode virtual interrupts.
        PVI = 1 << 1;
        /// RDTSC only at CPL 0.
        TSD = 1 << 2;
        /// Debug extensions.
        DE = 1 << 3;
        /// 4 MiB pages in 32-bit paging.
        PSE = 1 << 4;
        /// 64-bit page-table entries.
        PAE = 1 << 5;
        /// Machine check.
        MCE = 1 << 6;
        /// Global pages.
        PGE = 1 << 7;
        /// RDPMC at any privilege level.
        PCE = 1 << 8;
        /// FXSAVE and SSE.
        OSFXSR = 1 << 9;
        /// #XM for SIMD floating-point exceptions.
        OSXMMEXCPT = 1 << 10;
        /// User-mode instruction prevention.
        UMIP = 1 << 11;
        /// 57-bit linear addresses.
        LA57 = 1 << 12;
        /// RDFSBASE and its kin.
        FSGSBASE = 1 << 16;
        /// Process-context identifiers.
        PCIDE = 1 << 17;
        /// XSAVE.
        OSXSAVE = 1 << 18;
        /// Supervisor-mode execution prevention.
        SMEP = 1 << 20;
        /// Supervisor-mode access prevention.
        SMAP = 1 << 21;
        /// Protection keys for user pages.
        PKE = 1 << 22;
    }
}

bits! {
    /// Extended feature enable register, MSR 0xC000_0080.
    Efer {
        /// SYSCALL and SYSRET.
        SCE = 1 << 0;
        /// Long mode enabled.
        LME = 1 << 8;
        /// Long mode active.
        LMA = 1 << 10;
        /// No-execute pages.
        NXE = 1 << 11;
        /// Fast FXSAVE and FXRSTOR.
        FFXSR = 1 << 14;
        /// Automatic IBRS.
        AIBRSE = 1 << 21;
    }
}

//! The model-specific registers that are part of the processor itself.
//!
//! The time-stamp counter, the local APIC's registers and paravirtual MSRs belong to the platform: the processor asks
//! for them as it asks devices.

use serde::{Deserialize, Serialize};

/// Memory type range registers (SDM Vol. 3, MTRRs). Kept for the guest to read back; memory has one type here.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Mtrrs {
    /// IA32_MTRR_DEF_TYPE.
    pub default_type: u64,
    /// IA32_MTRR_FIX64K_00000, FIX16K_80000, FIX16K_A0000, FIX4K_C0000 to F8000.
    pub fixed: [u64; 11],
    /// IA32_MTRR_PHYSBASE and PHYSMASK, in turn, of the variable ranges.
    pub variable: [u64; 16],
}

/// MSRs that live in the processor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Msrs {
    /// IA32_STAR: SYSCALL and SYSRET selectors.
    pub star: u64,
    /// IA32_LSTAR: SYSCALL target in 64-bit mode.
    pub lstar: u64,
    /// IA32_CSTAR: SYSCALL target in compatibility mode.
    pub cstar: u64,
    /// IA32_FMASK: flags that SYSCALL clears.
    pub fmask: u64,
    /// IA32_KERNEL_GS_BASE: what SWAPGS swaps in.
    pub kernel_gs_base: u64,
    /// IA32_SYSENTER_CS.
    pub sysenter_cs: u64,
    /// IA32_SYSENTER_ESP.
    pub sysenter_esp: u64,
    /// IA32_SYSENTER_EIP.
    pub sysenter_eip: u64,
    /// IA32_PAT: page attribute table.
    pub pat: u64,
    /// IA32_TSC_AUX: what RDTSCP and RDPID return.
    pub tsc_aux: u64,
    /// IA32_MISC_ENABLE.
    pub misc_enable: u64,
    /// IA32_SPEC_CTRL. There is nothing to control: no guest branch is predicted.
    pub spec_ctrl: u64,
    /// IA32_XSS: the supervisor state components of XSAVES.
    pub xss: u64,
    /// Memory type range registers.
    pub mtrr: Mtrrs,
    /// IA32_MCG_STATUS and IA32_MCG_CTL.
    pub mcg: [u64; 2],
}

impl Default for Msrs {
    fn default() -> Msrs {
        Msrs {
            star: 0,
            lstar: 0,
            cstar: 0,
            fmask: 0,
            kernel_gs_base: 0,
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            pat: 0x0007_0406_0007_0406,
            tsc_aux: 0,
            misc_enable: 1,
            spec_ctrl: 0,
            xss: 0,
            mtrr: Mtrrs::default(),
            mcg: [0; 2],
        }
    }
}

//! The model-specific registers that are part of the processor itself.
//!
//! The time-stamp counter, the local APIC's registers and paravirtual MSRs belong to the platform: the processor asks
//! for them as it asks devices.

use serde::{Deserialize, Serialize};

use super::{Cpu, Cr0, Efer, Seg};
use crate::cpuid::{CpuidTable, Feature};
use crate::paging::is_canonical;

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
    /// HWCR (AMD): hardware configuration.
    pub hwcr: u64,
    /// SYSCFG (AMD): system configuration.
    pub syscfg: u64,
    /// DE_CFG (AMD): whether LFENCE serialises dispatch.
    pub de_cfg: u64,
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
            hwcr: HWCR_TSC_FREQ_SEL,
            syscfg: 0,
            de_cfg: DE_CFG_LFENCE_SERIALISES,
        }
    }
}

/// HWCR: the TSC counts at the P0 frequency.
const HWCR_TSC_FREQ_SEL: u64 = 1 << 24;
/// HWCR: FFDIS, a cache-flush filter; ignored IGNNE; McStatusWrEn; TscFreqSel; the bits that software sets or reads back.
const HWCR_BITS: u64 = 1 << 3 | 1 << 6 | 1 << 8 | 1 << 18 | HWCR_TSC_FREQ_SEL;
/// SYSCFG: fixed MTRR extensions, variable ranges above 4 GiB.
const SYSCFG_BITS: u64 = 0x7c_0000;
/// DE_CFG: LFENCE is serialising.
const DE_CFG_LFENCE_SERIALISES: u64 = 1 << 1;
/// IA32_MTRRCAP: 8 variable ranges, fixed ranges, write-combining.
const MTRR_CAP: u64 = 0x508;
/// IA32_MTRR_DEF_TYPE: type, fixed ranges enabled, enabled.
const MTRR_DEF_TYPE_BITS: u64 = 0xcff;
/// IA32_MTRR_PHYSMASK: valid.
const MTRR_MASK_VALID: u64 = 1 << 11;
/// IA32_DEBUGCTL: LBR, BTF and the pin controls.
const DEBUGCTL_BITS: u64 = 0x3f;

/// Where an MSR lives, and what came of reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MsrRead {
    /// Its value.
    Value(u64),
    /// It cannot be read: #GP(0).
    Refused,
    /// It is not the processor's own; the platform knows.
    Platform,
}

/// Where an MSR lives, and what came of writing it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MsrWrite {
    /// Done.
    Done,
    /// Done, and translations are no longer valid.
    Flush,
    /// It does not take the value: #GP(0).
    Refused,
    /// It is not the processor's own; the platform knows.
    Platform,
}

/// The type of memory is one that MTRRs know.
fn is_mtrr_type(kind: u64) -> bool {
    matches!(kind, 0 | 1 | 4 | 5 | 6)
}

/// The index of a fixed-range MTRR.
fn fixed_range(msr: u32) -> Option<usize> {
    match msr {
        0x250 => Some(0),
        0x258 => Some(1),
        0x259 => Some(2),
        0x268..=0x26f => Some(msr as usize - 0x268 + 3),
        _ => None,
    }
}

fn speculation_control(cpuid: &CpuidTable) -> u64 {
    let intel = cpuid.has(Feature::SPEC_CTRL);
    u64::from(intel || cpuid.has(Feature::IBRS))
        | u64::from(intel || cpuid.has(Feature::STIBP)) << 1
        | u64::from(cpuid.has(Feature::SSBD)) << 2
}

impl Cpu {
    /// Reads MSR `msr` as RDMSR at CPL 0 does, if it is the processor's own.
    pub fn read_msr(&self, cpuid: &CpuidTable, msr: u32) -> MsrRead {
        let own = &self.msr;
        let when = |there: bool, value: u64| if there { MsrRead::Value(value) } else { MsrRead::Refused };
        let mtrr = cpuid.has(Feature::MTRR);
        if let Some(i) = fixed_range(msr) {
            return when(mtrr, own.mtrr.fixed[i]);
        }
        let value = match msr {
            // IA32_SPEC_CTRL; IA32_PRED_CMD and IA32_FLUSH_CMD cannot be read.
            0x48 => return when(speculation_control(cpuid) != 0, own.spec_ctrl),
            0x49 | 0x10b => return MsrRead::Refused,
            // PATCH_LEVEL: no microcode.
            0x8b => 0,
            0xfe => return when(mtrr, MTRR_CAP),
            0x174 => own.sysenter_cs,
            0x175 => own.sysenter_esp,
            0x176 => own.sysenter_eip,
            // IA32_MCG_CAP: no banks, no IA32_MCG_CTL.
            0x179 => return when(cpuid.has(Feature::MCE), 0),
            0x17a => return when(cpuid.has(Feature::MCE), own.mcg[0]),
            0x1a0 => own.misc_enable,
            // IA32_DEBUGCTL: nothing is recorded and branches are not singled out.
            0x1d9 => 0,
            0x200..=0x20f => return when(mtrr, own.mtrr.variable[msr as usize - 0x200]),
            0x277 => return when(cpuid.has(Feature::PAT), own.pat),
            0x2ff => return when(mtrr, own.mtrr.default_type),
            0xda0 => return when(cpuid.has(Feature::XSAVES), own.xss),
            0xc000_0080 => self.efer.0,
            0xc000_0081 => own.star,
            0xc000_0082 => own.lstar,
            0xc000_0083 => own.cstar,
            0xc000_0084 => own.fmask,
            0xc000_0100 => self.segments[Seg::Fs].base,
            0xc000_0101 => self.segments[Seg::Gs].base,
            0xc000_0102 => own.kernel_gs_base,
            0xc000_0103 => return when(has_tsc_aux(cpuid), own.tsc_aux),
            0xc001_0010 => own.syscfg,
            0xc001_0015 => own.hwcr,
            0xc001_1029 => own.de_cfg,
            // What kernels read on every AMD processor without asking CPUID: TOP_MEM and TOM2, NB_CFG, INT_PENDING,
            // MMIO_CONF_BASE, TSEG; LS_CFG, IC_CFG, DC_CFG, TW_CFG, BU_CFG2, EX_CFG. Nothing is configured there.
            0xc001_001a | 0xc001_001d | 0xc001_001f | 0xc001_0055 | 0xc001_0058 | 0xc001_0112 | 0xc001_0113 => 0,
            0xc001_1020..=0xc001_1023 | 0xc001_102a | 0xc001_102c => 0,
            _ => return MsrRead::Platform,
        };
        MsrRead::Value(value)
    }

    /// Writes MSR `msr` as WRMSR at CPL 0 does, if it is the processor's own. The view is up to date afterwards.
    pub fn write_msr(&mut self, cpuid: &CpuidTable, msr: u32, value: u64) -> MsrWrite {
        let canonical = is_canonical(self, value);
        let mtrr = cpuid.has(Feature::MTRR);
        let own = &mut self.msr;
        let taken = if let Some(i) = fixed_range(msr) {
            let taken = mtrr && value.to_le_bytes().iter().all(|kind| is_mtrr_type(u64::from(*kind)));
            if taken {
                own.mtrr.fixed[i] = value;
            }
            taken
        } else {
            match msr {
                0x48 => replace(&mut own.spec_ctrl, value, value & !speculation_control(cpuid) == 0),
                // A barrier for predictions, and a flush of a cache, neither of which is here.
                0x49 => value & !1 == 0 && (cpuid.has(Feature::IBPB) || cpuid.has(Feature::SPEC_CTRL)),
                0x10b => value & !1 == 0 && cpuid.has(Feature::L1D_FLUSH),
                // Asking for the microcode's level begins with writing 0.
                0x8b => value == 0,
                0x174 => replace(&mut own.sysenter_cs, value & 0xffff_ffff, true),
                0x175 => replace(&mut own.sysenter_esp, value, canonical),
                0x176 => replace(&mut own.sysenter_eip, value, canonical),
                0x17a => replace(&mut own.mcg[0], value, cpuid.has(Feature::MCE) && value & !7 == 0),
                0x1a0 => replace(&mut own.misc_enable, value, true),
                0x1d9 => value & !DEBUGCTL_BITS == 0,
                0x200..=0x20f => {
                    let is_mask = msr & 1 != 0;
                    let low = if is_mask { MTRR_MASK_VALID } else { 0xff };
                    let bits = ((1 << crate::paging::PHYSICAL_BITS) - 1) & !0xfff | low;
                    let taken = mtrr && value & !bits == 0 && (is_mask || is_mtrr_type(value & 0xff));
                    replace(&mut own.mtrr.variable[msr as usize - 0x200], value, taken)
                }
                0x277 => {
                    let known = value.to_le_bytes().iter().all(|kind| matches!(kind, 0 | 1 | 4..=7));
                    replace(&mut own.pat, value, known && cpuid.has(Feature::PAT))
                }
                0x2ff => {
                    let taken = mtrr && value & !MTRR_DEF_TYPE_BITS == 0 && is_mtrr_type(value & 0xff);
                    replace(&mut own.mtrr.default_type, value, taken)
                }
                // There is no supervisor state component.
                0xda0 => cpuid.has(Feature::XSAVES) && value == 0,
                0xc000_0080 => return self.write_efer(cpuid, value),
                0xc000_0081 => replace(&mut own.star, value, true),
                0xc000_0082 => replace(&mut own.lstar, value, canonical),
                0xc000_0083 => replace(&mut own.cstar, value, canonical),
                0xc000_0084 => replace(&mut own.fmask, value & 0xffff_ffff, true),
                0xc000_0100 => replace(&mut self.segments[Seg::Fs].base, value, canonical),
                0xc000_0101 => replace(&mut self.segments[Seg::Gs].base, value, canonical),
                0xc000_0102 => replace(&mut own.kernel_gs_base, value, canonical),
                0xc000_0103 => replace(&mut own.tsc_aux, value & 0xffff_ffff, has_tsc_aux(cpuid)),
                0xc001_0010 => replace(&mut own.syscfg, value, value & !SYSCFG_BITS == 0),
                0xc001_0015 => replace(&mut own.hwcr, value, value & !HWCR_BITS == 0),
                0xc001_1029 => replace(&mut own.de_cfg, value & DE_CFG_LFENCE_SERIALISES, true),
                // Switches of silicon that is not here.
                0xc001_001f | 0xc001_0055 | 0xc001_1020..=0xc001_1023 | 0xc001_102a | 0xc001_102c => true,
                0xfe | 0x179 | 0xc001_001a | 0xc001_001d | 0xc001_0058 | 0xc001_0112 | 0xc001_0113 => false,
                _ => return MsrWrite::Platform,
            }
        };
        self.refresh();
        if taken { MsrWrite::Done } else { MsrWrite::Refused }
    }

    /// Writes EFER (APM Vol. 2, Extended Feature Enable Register): LMA is read-only, LME fixed while paging is on.
    fn write_efer(&mut self, cpuid: &CpuidTable, value: u64) -> MsrWrite {
        let changed = self.efer.0 ^ value;
        if value & !cpuid.efer() != 0 || self.cr0.any(Cr0::PG) && changed & Efer::LME != 0 {
            return MsrWrite::Refused;
        }
        self.efer.0 = value & !Efer::LMA | self.efer.0 & Efer::LMA;
        self.refresh();
        if changed & Efer::NXE != 0 {
            MsrWrite::Flush
        } else {
            MsrWrite::Done
        }
    }
}

fn has_tsc_aux(cpuid: &CpuidTable) -> bool {
    cpuid.has(Feature::RDTSCP) || cpuid.has(Feature::RDPID)
}

/// Stores `value` if it is `taken`, which it returns.
fn replace(register: &mut u64, value: u64, taken: bool) -> bool {
    if taken {
        *register = value;
    }
    taken
}

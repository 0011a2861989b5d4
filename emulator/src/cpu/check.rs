//! Whether a state is one that a processor can be in.

use super::{Cpu, Cr0, Cr4, Efer, flags, fpu};
use crate::cpuid::CpuidTable;
use crate::paging::PHYSICAL_BITS;

/// A state that no processor can be in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{register} cannot be {value:#x} on this processor")]
pub struct CpuError {
    /// The register.
    pub register: &'static str,
    /// Its value.
    pub value: u64,
}

impl Cpu {
    /// Checks the state of a processor that announces itself as `cpuid` says, for a state that does not come from a
    /// processor but from a file: the bits that cannot be set, and the combinations of modes that there are not.
    ///
    /// What software could have put there is not questioned, however odd it is; executing it is then a fault like any other.
    ///
    /// # Errors
    /// [`CpuError`] naming the first register that is wrong.
    pub fn check(&self, cpuid: &CpuidTable) -> Result<(), CpuError> {
        let (cr0, cr4, efer) = (self.cr0, self.cr4, self.efer);
        let ia32e = efer.any(Efer::LMA);
        let refuse = |register, value| Err(CpuError { register, value });
        let wrong_cr0 = cr0.0 & !Cr0::DEFINED != 0
            || !cr0.any(Cr0::ET)
            || cr0.any(Cr0::PG) && !cr0.any(Cr0::PE)
            || cr0.any(Cr0::NW) && !cr0.any(Cr0::CD);
        if wrong_cr0 {
            return refuse("CR0", cr0.0);
        }
        if efer.0 & !cpuid.efer() != 0 || ia32e != (cr0.any(Cr0::PG) && efer.any(Efer::LME)) {
            return refuse("EFER", efer.0);
        }
        if cr4.0 & !cpuid.cr4() != 0 || ia32e && !cr4.any(Cr4::PAE) || !ia32e && cr4.any(Cr4::PCIDE) {
            return refuse("CR4", cr4.0);
        }
        if ia32e && self.cr3 >> PHYSICAL_BITS != 0 {
            return refuse("CR3", self.cr3);
        }
        // x87 cannot be taken out, even where there is no XSAVE and so no XCR0.
        let wrong_xcr0 = self.xcr0 & !(cpuid.xcr0() | fpu::X87) != 0
            || self.xcr0 & fpu::X87 == 0
            || self.xcr0 & fpu::AVX != 0 && self.xcr0 & fpu::SSE == 0
            || self.xcr0 & fpu::AVX512 != 0 && self.xcr0 & (fpu::AVX | fpu::AVX512) != fpu::AVX | fpu::AVX512;
        if wrong_xcr0 {
            return refuse("XCR0", self.xcr0);
        }
        if self.flags.any(flags::VM) && (ia32e || !cr0.any(Cr0::PE)) {
            return refuse("RFLAGS", self.flags.bits());
        }
        if self.msr.xss != 0 {
            return refuse("IA32_XSS", self.msr.xss);
        }
        if self.breakpoints & !0xf != 0 {
            return refuse("DR6", self.breakpoints.into());
        }
        if self.fpu.mxcsr & !fpu::MXCSR_MASK != 0 {
            return refuse("MXCSR", self.fpu.mxcsr.into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpuid::{CpuidEntry, CpuidRegisters};

    /// A processor with PAE, long mode and SMAP, and the x87 and SSE components.
    fn cpuid() -> CpuidTable {
        let entry = |leaf, eax, ebx, edx| CpuidEntry {
            leaf,
            subleaf: None,
            registers: CpuidRegisters { eax, ebx, ecx: 0, edx },
        };
        CpuidTable::new(vec![
            entry(1, 0, 0, 1 << 6),
            entry(7, 0, 1 << 20, 0),
            entry(0xd, 3, 0, 0),
            entry(0x8000_0001, 0, 0, 1 << 29),
        ])
    }

    fn long_mode() -> Cpu {
        let mut cpu = Cpu::reset();
        cpu.cr0.0 |= Cr0::PE | Cr0::PG;
        cpu.cr4.0 |= Cr4::PAE;
        cpu.efer.0 |= Efer::LME | Efer::LMA;
        cpu
    }

    fn refused(start: Cpu, change: impl FnOnce(&mut Cpu)) -> Option<&'static str> {
        let mut cpu = start;
        change(&mut cpu);
        cpu.check(&cpuid()).err().map(|error| error.register)
    }

    #[test]
    fn a_processor_after_reset_and_one_in_long_mode_are_sound() {
        assert_eq!(Cpu::reset().check(&CpuidTable::default()), Ok(()));
        assert_eq!(refused(Cpu::reset(), |_| ()), None);
        assert_eq!(refused(long_mode(), |_| ()), None);
    }

    #[test]
    fn reserved_bits_and_what_is_not_announced_are_refused() {
        assert_eq!(refused(Cpu::reset(), |cpu| cpu.cr0.0 |= 1 << 32), Some("CR0"));
        assert_eq!(refused(Cpu::reset(), |cpu| cpu.cr4.0 |= Cr4::LA57), Some("CR4"));
        assert_eq!(refused(Cpu::reset(), |cpu| cpu.efer.0 |= Efer::SCE), Some("EFER"));
        assert_eq!(refused(Cpu::reset(), |cpu| cpu.xcr0 |= fpu::AVX), Some("XCR0"));
        assert_eq!(refused(Cpu::reset(), |cpu| cpu.xcr0 = 0), Some("XCR0"));
        assert_eq!(refused(Cpu::reset(), |cpu| cpu.msr.xss = 1 << 11), Some("IA32_XSS"));
        assert_eq!(refused(Cpu::reset(), |cpu| cpu.fpu.mxcsr |= 1 << 16), Some("MXCSR"));
        assert_eq!(refused(long_mode(), |cpu| cpu.cr3 = 1 << 52), Some("CR3"));
    }

    #[test]
    fn modes_that_there_are_not_are_refused() {
        assert_eq!(refused(Cpu::reset(), |cpu| cpu.cr0.0 |= Cr0::PG), Some("CR0"));
        assert_eq!(refused(long_mode(), |cpu| cpu.cr0.0 &= !Cr0::PG), Some("EFER"));
        assert_eq!(refused(long_mode(), |cpu| cpu.efer.0 &= !Efer::LMA), Some("EFER"));
        assert_eq!(refused(long_mode(), |cpu| cpu.cr4.0 = 0), Some("CR4"));
        assert_eq!(
            refused(long_mode(), |cpu| cpu.flags.set_bits(flags::VM)),
            Some("RFLAGS")
        );
    }
}

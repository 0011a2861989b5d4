//! What follows from control registers, EFER and segments, computed once per change instead of once per instruction.

use super::{Cpu, Cr0, Cr4, Efer, Seg, flags};

/// The operating mode (SDM Vol. 3, Modes of Operation).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Real-address mode.
    #[default]
    Real,
    /// Virtual-8086 mode.
    Virtual8086,
    /// Protected mode.
    Protected,
    /// Compatibility mode, of IA-32e mode.
    Compatibility,
    /// 64-bit mode, of IA-32e mode.
    Long,
}

/// The default operand and address size of the code segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
#[repr(u8)]
pub enum CodeSize {
    /// 16 bits.
    #[default]
    Bits16,
    /// 32 bits.
    Bits32,
    /// 64 bits.
    Bits64,
}

impl CodeSize {
    /// 16, 32 or 64.
    pub fn bits(self) -> u32 {
        16 << self as u32
    }
}

/// Derived state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct View {
    /// Operating mode.
    pub mode: Mode,
    /// Code size.
    pub code: CodeSize,
    /// Current privilege level.
    pub cpl: u8,
    /// RIP's valid bits.
    pub ip_mask: u64,
    /// RSP's valid bits for implicit stack references.
    pub stack_mask: u64,
    /// Segment bases by number as the flat 64-bit addressing adds them: zero but for FS and GS.
    pub(crate) flat_base: [u64; 8],
    /// The set of translations that holds for data accesses at this privilege; see the TLB.
    pub(crate) context: u8,
    /// Everything about the CPU that decoded code or its address translation depends on, but for the address.
    pub(crate) code_context: u8,
}

/// Translations for user accesses.
pub(crate) const CONTEXT_USER: u8 = 0;
/// Translations for supervisor accesses.
pub(crate) const CONTEXT_SUPERVISOR: u8 = 1;
/// Translations for supervisor accesses while SMAP keeps them off user pages.
pub(crate) const CONTEXT_SMAP: u8 = 2;
/// User accesses whose alignment is checked: never any translations, so that the careful way checks.
pub(crate) const CONTEXT_ALIGNED: u8 = 3;

impl View {
    pub(super) fn of(cpu: &Cpu) -> View {
        let protected = cpu.cr0.any(Cr0::PE);
        let v8086 = protected && cpu.flags.any(flags::VM);
        let cs = cpu.segments[Seg::Cs].attributes;
        let ss = cpu.segments[Seg::Ss].attributes;
        let mode = match (protected, v8086, cpu.efer.any(Efer::LMA), cs.is_long()) {
            (false, ..) => Mode::Real,
            (_, true, ..) => Mode::Virtual8086,
            (_, _, true, true) => Mode::Long,
            (_, _, true, false) => Mode::Compatibility,
            _ => Mode::Protected,
        };
        let code = match mode {
            Mode::Long => CodeSize::Bits64,
            _ if cs.is_big() => CodeSize::Bits32,
            _ => CodeSize::Bits16,
        };
        let cpl = match mode {
            Mode::Real => 0,
            Mode::Virtual8086 => 3,
            // SS.DPL is the CPL (SDM Vol. 3, 24.4.1 of the VMCS guest area says so plainly).
            _ => ss.dpl(),
        };
        let mut flat_base = [0; 8];
        for seg in [Seg::Fs, Seg::Gs] {
            flat_base[seg as usize] = cpu.segments[seg].base;
        }
        let context = match cpl {
            3 if cpu.cr0.any(Cr0::AM) && cpu.flags.any(flags::AC) => CONTEXT_ALIGNED,
            3 => CONTEXT_USER,
            _ if cpu.cr4.any(Cr4::SMAP) && !cpu.flags.any(flags::AC) => CONTEXT_SMAP,
            _ => CONTEXT_SUPERVISOR,
        };
        let ip_mask = match code {
            CodeSize::Bits64 => u64::MAX,
            CodeSize::Bits32 => 0xffff_ffff,
            CodeSize::Bits16 => 0xffff,
        };
        let stack_mask = match mode {
            Mode::Long => u64::MAX,
            _ if ss.is_big() => 0xffff_ffff,
            _ => 0xffff,
        };
        let code_context = code as u8 | u8::from(cpl == 3) << 2 | (mode as u8) << 3;
        View {
            mode,
            code,
            cpl,
            ip_mask,
            stack_mask,
            flat_base,
            context,
            code_context,
        }
    }

    /// IA-32e mode: 64-bit or compatibility.
    pub fn is_ia32e(&self) -> bool {
        matches!(self.mode, Mode::Long | Mode::Compatibility)
    }

    /// 64-bit mode.
    #[inline(always)]
    pub fn is_long(&self) -> bool {
        self.mode == Mode::Long
    }

    /// Misaligned accesses fault.
    #[inline]
    pub(crate) fn checks_alignment(&self) -> bool {
        self.context == CONTEXT_ALIGNED
    }

    /// Protected mode with segment descriptors: neither real nor virtual-8086 mode.
    pub fn has_descriptors(&self) -> bool {
        !matches!(self.mode, Mode::Real | Mode::Virtual8086)
    }
}

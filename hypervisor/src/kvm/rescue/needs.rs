//! What of the processor an instruction needs, and which instructions run on in software.

use iced_x86::{Code, CpuidFeature, EncodingKind, Instruction, Mnemonic, OpKind, Register};
use iced_x86::{InstructionInfoFactory, OpAccess, UsedMemory};
use reprise_emulator::Elsewhere;

/// Parts of the processor's state, as KVM hands them out: each costs a call or two. General-purpose, system and segment
/// registers and events are not among them, since they come with the exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Parts(u8);

impl Parts {
    /// None of them.
    pub const NONE: Self = Self(0);
    /// x87, MXCSR and vector registers.
    pub const VECTORS: Self = Self(1);
    /// XCR0.
    pub const EXTENDED: Self = Self(2);
    /// Debug registers.
    pub const DEBUG: Self = Self(4);
    /// Model-specific registers, the time-stamp counter among them.
    pub const MSRS: Self = Self(8);
    /// All of them, and what the processor is doing.
    pub const ALL: Self = Self(15);

    /// These and `other`.
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// These without `other`.
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether all of `other` are among them.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// What `instruction` needs.
pub fn needs(instruction: &Instruction) -> Parts {
    let mut parts = Parts::NONE;
    if uses_vectors(instruction) {
        parts = parts.with(Parts::VECTORS);
        let extended = !matches!(
            instruction.code().encoding(),
            EncodingKind::Legacy | EncodingKind::D3NOW
        ) || instruction.cpuid_features().iter().any(is_xsave);
        if extended {
            parts = parts.with(Parts::EXTENDED);
        }
    }
    if uses_msrs(instruction) {
        parts = parts.with(Parts::MSRS);
    }
    let uses = |is: fn(Register) -> bool| (0..instruction.op_count()).any(|i| is(instruction.op_register(i)));
    if uses(Register::is_dr) {
        parts = parts.with(Parts::DEBUG);
    }
    parts
}

fn is_xsave(feature: &CpuidFeature) -> bool {
    use CpuidFeature::{XSAVE, XSAVEC, XSAVEOPT, XSAVES};
    matches!(feature, XSAVE | XSAVEC | XSAVEOPT | XSAVES)
}

/// Whether it may touch x87, MXCSR or vector registers. Where that is not certain, it does.
fn uses_vectors(instruction: &Instruction) -> bool {
    use CpuidFeature::*;
    // It tells of pending x87 exceptions.
    if instruction.mnemonic() == Mnemonic::Wait {
        return true;
    }
    let general = |feature: &CpuidFeature| {
        matches!(
            feature,
            INTEL8086
                | INTEL8086_ONLY
                | INTEL186
                | INTEL286
                | INTEL286_ONLY
                | INTEL386
                | INTEL386_ONLY
                | INTEL486
                | X64
                | CMOV
                | CPUID
                | MSR
                | TSC
                | CX8
                | SEP
                | SYSCALL
                | CMPXCHG16B
                | POPCNT
                | LZCNT
                | BMI1
                | BMI2
                | ADX
                | MOVBE
                | RDTSCP
                | RDPID
                | RDPMC
                | RDRAND
                | RDSEED
                | FSGSBASE
                | INVPCID
                | SMAP
                | MONITOR
                | MULTIBYTENOP
                | PAUSE
                | PREFETCHW
                | CLFSH
                | CLFLUSHOPT
                | CLWB
                | MOVDIRI
                | MOVDIR64B
                | SERIALIZE
                | WBNOINVD
                | CET_IBT
        )
    };
    let features = instruction.cpuid_features();
    // CRC32 comes with SSE4.2, and is none of it.
    let crc32 = instruction.mnemonic() == Mnemonic::Crc32;
    !crc32 && !features.iter().all(general)
}

/// Whether it may touch model-specific registers or the time-stamp counter.
fn uses_msrs(instruction: &Instruction) -> bool {
    use Mnemonic::*;
    matches!(
        instruction.mnemonic(),
        Rdmsr
            | Wrmsr
            | Rdtsc
            | Rdtscp
            | Rdpid
            | Rdpmc
            | Swapgs
            | Syscall
            | Sysret
            | Sysretq
            | Sysenter
            | Sysexit
            | Sysexitq
            | Cpuid
            | Monitor
            | Monitorx
            | Mwait
            | Mwaitx
            | Xsaves
            | Xsaves64
            | Xrstors
            | Xrstors64
            | Wrussd
            | Wrussq
    )
}

/// Software runs on over instructions that need no more than general-purpose registers.
const GENERAL: Elsewhere = Elsewhere::new(1, |instruction| leaves(instruction, Parts::NONE));
/// Software runs on over instructions that need vector registers, too.
const VECTORS: Elsewhere = Elsewhere::new(2, |instruction| leaves(instruction, Parts::VECTORS));
/// Software runs on over instructions that need XCR0 besides.
const EXTENDED: Elsewhere = Elsewhere::new(3, |instruction| {
    leaves(instruction, Parts::VECTORS.with(Parts::EXTENDED))
});

/// Which instructions are left to KVM when software runs on with the parts `loaded`.
pub fn elsewhere(loaded: Parts) -> Elsewhere {
    if loaded.has(Parts::VECTORS.with(Parts::EXTENDED)) {
        EXTENDED
    } else if loaded.has(Parts::VECTORS) {
        VECTORS
    } else {
        GENERAL
    }
}

/// What else must be loaded for software to run on over `instruction`; `None` if it is KVM's, whatever is loaded.
pub fn wants(instruction: &Instruction, loaded: Parts) -> Option<Parts> {
    let later = Parts::VECTORS.with(Parts::EXTENDED);
    let more = needs(instruction).without(loaded);
    (more != Parts::NONE && !leaves(instruction, loaded.with(later))).then_some(more)
}

/// Whether KVM is to execute `instruction` when software runs on with the parts `loaded`.
///
/// That are those whose effects are its own business: system registers, translations, interrupts, ports. And stores by
/// general-purpose instructions but to the stack, since they may be to page tables: a KVM that shadows them learns of
/// guests' stores but not of ours.
fn leaves(instruction: &Instruction, loaded: Parts) -> bool {
    use Mnemonic::{Clac, Cli, Stac};
    let needs = needs(instruction);
    let system = instruction.is_privileged() && !matches!(instruction.mnemonic(), Clac | Cli | Stac);
    if system || !loaded.has(needs) || controls_events(instruction) {
        return true;
    }
    let vectors = needs.has(Parts::VECTORS);
    !vectors && instruction.code() != Code::Cmpxchg16b_m128 && stores_beside_the_stack(instruction)
}

/// Whether it may let interrupts through, or changes rings or code segments.
fn controls_events(instruction: &Instruction) -> bool {
    use Mnemonic::*;
    let far = |kind| matches!(kind, OpKind::FarBranch16 | OpKind::FarBranch32);
    matches!(
        instruction.mnemonic(),
        Sti | Popf
            | Popfd
            | Popfq
            | Iret
            | Iretd
            | Iretq
            | Retf
            | Int
            | Int1
            | Int3
            | Into
            | Vmcall
            | Vmmcall
            | Vmgexit
            | Monitor
            | Mwait
            | Xbegin
            | In
            | Out
            | Insb
            | Insw
            | Insd
            | Outsb
            | Outsw
            | Outsd
            | Hlt
            | Wrpkru
    ) || instruction.op_kinds().any(far)
        || instruction.is_call_far_indirect()
        || instruction.is_jmp_far_indirect()
        || (0..instruction.op_count()).any(|i| {
            let register = instruction.op_register(i);
            register.is_segment_register() || register.is_cr() || register.is_dr()
        })
}

fn stores_beside_the_stack(instruction: &Instruction) -> bool {
    let mut factory = InstructionInfoFactory::new();
    let stack = |memory: &UsedMemory| memory.base().full_register() == Register::RSP;
    let stores = |memory: &UsedMemory| {
        matches!(
            memory.access(),
            OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
        )
    };
    let info = factory.info(instruction);
    info.used_memory().iter().any(|memory| stores(memory) && !stack(memory))
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions};

    use super::*;

    fn decoded(bytes: &[u8]) -> Instruction {
        Decoder::new(64, bytes, DecoderOptions::NONE).decode()
    }

    #[test]
    fn an_instruction_is_given_what_it_touches_and_no_more() {
        let both = Parts::VECTORS.with(Parts::EXTENDED);
        for (bytes, parts) in [
            (&[0xf0, 0x48, 0x0f, 0xc7, 0x0b][..], Parts::NONE), // lock cmpxchg16b [rbx]
            (&[0xf3, 0x0f, 0xb8, 0xc3], Parts::NONE),           // popcnt eax, ebx
            (&[0xf2, 0x0f, 0x38, 0xf1, 0xc3], Parts::NONE),     // crc32 eax, ebx
            (&[0xc4, 0xe2, 0xe3, 0xf5, 0xc1], Parts::NONE),     // pdep rax, rbx, rcx
            (&[0x0f, 0x01, 0xca], Parts::NONE),                 // clac
            (&[0xd9, 0x03], Parts::VECTORS),                    // fld dword [rbx]
            (&[0x9b], Parts::VECTORS),                          // fwait
            (&[0x0f, 0x77], Parts::VECTORS),                    // emms
            (&[0x0f, 0x6e, 0xc3], Parts::VECTORS),              // movd mm0, ebx
            (&[0xf3, 0x0f, 0x58, 0xc1], Parts::VECTORS),        // addss xmm0, xmm1
            (&[0x0f, 0xae, 0x03], Parts::VECTORS),              // fxsave [rbx]
            (&[0xc5, 0xfe, 0x6f, 0x03], both),                  // vmovdqu ymm0, [rbx]
            (&[0x0f, 0xae, 0x23], both),                        // xsave [rbx]
            (&[0x0f, 0x01, 0xd0], both),                        // xgetbv
            (&[0x0f, 0x01, 0xf9], Parts::MSRS),                 // rdtscp
            (&[0x0f, 0x21, 0xf8], Parts::DEBUG),                // mov rax, dr7
        ] {
            assert_eq!(needs(&decoded(bytes)), parts, "{:?}", decoded(bytes).code());
        }
    }

    #[test]
    fn kvm_keeps_what_only_it_can_do() {
        let both = Parts::VECTORS.with(Parts::EXTENDED);
        for (bytes, left) in [
            (&[0x0f, 0x22, 0xd8][..], true),          // mov cr3, rax
            (&[0x0f, 0x01, 0x3b], true),              // invlpg [rbx]
            (&[0xfb], true),                          // sti
            (&[0x9d], true),                          // popf
            (&[0x48, 0xcf], true),                    // iretq
            (&[0xf4], true),                          // hlt
            (&[0xec], true),                          // in al, dx
            (&[0x0f, 0x31], true),                    // rdtsc
            (&[0x48, 0x89, 0x03], true),              // mov [rbx], rax
            (&[0xf3, 0x48, 0xab], true),              // rep stosq
            (&[0xf0, 0x48, 0x0f, 0xb1, 0x0b], true),  // lock cmpxchg [rbx], rcx
            (&[0x8e, 0xd8], true),                    // mov ds, eax
            (&[0xcd, 0x80], true),                    // int 0x80
            (&[0x48, 0x89, 0x44, 0x24, 8], false),    // mov [rsp+8], rax
            (&[0x50], false),                         // push rax
            (&[0xe8, 0, 0, 0, 0], false),             // call
            (&[0xc3], false),                         // ret
            (&[0x48, 0x8b, 0x03], false),             // mov rax, [rbx]
            (&[0xfa], false),                         // cli
            (&[0x0f, 0x01, 0xcb], false),             // stac
            (&[0x0f, 0x11, 0x03], false),             // movups [rbx], xmm0
            (&[0xf0, 0x48, 0x0f, 0xc7, 0x0b], false), // lock cmpxchg16b [rbx]
        ] {
            let instruction = decoded(bytes);
            assert_eq!(leaves(&instruction, both), left, "{:?}", instruction.code());
        }
        assert!(
            leaves(&decoded(&[0x0f, 0x11, 0x03]), Parts::NONE),
            "its registers are not there"
        );
    }

    #[test]
    fn what_is_not_loaded_yet_is_loaded_for_what_software_can_run_on_over() {
        let both = Parts::VECTORS.with(Parts::EXTENDED);
        let addition = decoded(&[0x66, 0x0f, 0xd4, 0x03]);
        let wide = decoded(&[0xc5, 0xfe, 0x6f, 0x03]);
        assert_eq!(wants(&addition, Parts::DEBUG), Some(Parts::VECTORS));
        assert_eq!(
            wants(&addition, Parts::VECTORS),
            None,
            "it is not for this that it is left"
        );
        assert_eq!(wants(&wide, Parts::NONE), Some(both));
        assert_eq!(wants(&wide, Parts::VECTORS), Some(Parts::EXTENDED));
        // rdtsc, xsetbv, out
        for own in [&[0x0f, 0x31][..], &[0x0f, 0x01, 0xd1], &[0xe6, 0x80]] {
            assert_eq!(wants(&decoded(own), Parts::NONE), None, "{own:x?}");
        }
    }
}

//! The feature bits that are announced, by the manuals' names.

/// Leaf 1 ECX.
pub const LEAF_1_ECX: u32 = 1 << 3      // MONITOR
    | 1 << 13                           // CMPXCHG16B
    | 1 << 21                           // x2APIC
    | 1 << 24                           // TSC-deadline
    | 1 << 26                           // XSAVE
    | 1 << 30                           // RDRAND
    | 1 << 31; // there is a hypervisor

/// Leaf 1 EDX.
pub const LEAF_1_EDX: u32 = COMMON_EDX
    | 1 << 11                           // SYSENTER
    | 1 << 19                           // CLFLUSH
    | 1 << 25                           // SSE
    | 1 << 26; // SSE2

/// Leaf 1 EDX: several logical processors in the package.
pub const LEAF_1_EDX_HTT: u32 = 1 << 28;

/// What leaf 1 EDX and leaf 0x8000_0001 EDX share.
const COMMON_EDX: u32 = 1 << 0          // FPU
    | 1 << 2                            // debugging extensions
    | 1 << 3                            // 4 MiB pages
    | 1 << 4                            // time-stamp counter
    | 1 << 5                            // RDMSR, WRMSR
    | 1 << 6                            // PAE
    | 1 << 7                            // machine check exception
    | 1 << 8                            // CMPXCHG8B
    | 1 << 9                            // APIC
    | 1 << 12                           // MTRR
    | 1 << 13                           // global pages
    | 1 << 14                           // machine check architecture
    | 1 << 15                           // CMOV
    | 1 << 16                           // PAT
    | 1 << 17                           // PSE-36
    | 1 << 23                           // MMX
    | 1 << 24; // FXSAVE, FXRSTOR

/// Leaf 7 EBX.
pub const LEAF_7_EBX: u32 = 1 << 0      // FSGSBASE
    | 1 << 1                            // IA32_TSC_ADJUST
    | 1 << 7                            // SMEP
    | 1 << 9                            // enhanced REP MOVSB, STOSB
    | 1 << 10                           // INVPCID
    | 1 << 18                           // RDSEED
    | 1 << 20; // SMAP

/// Leaf 7 EDX.
pub const LEAF_7_EDX: u32 = 1 << 4; // fast short REP MOVSB

/// Leaf 0x4000_0001 EAX: KVM's features.
pub const KVM_EAX: u32 = 1 << 1         // port accesses need no delay
    | 1 << 3                            // kvmclock at MSRs 0x4b56_4d00 and 0x4b56_4d01
    | 1 << 24; // the counters of all vCPUs agree

/// Leaf 0x8000_0001 ECX.
pub const EXTENDED_1_ECX: u32 = 1 << 0  // LAHF, SAHF in 64-bit mode
    | 1 << 22; // topology extensions: leaves 0x8000_001d and 0x8000_001e

/// Leaf 0x8000_0001 ECX: what leaf 1 calls threads are cores.
pub const EXTENDED_1_ECX_CMP_LEGACY: u32 = 1 << 1;

/// Leaf 0x8000_0001 EDX.
pub const EXTENDED_1_EDX: u32 = COMMON_EDX
    | 1 << 11                           // SYSCALL, SYSRET
    | 1 << 20                           // no-execute pages
    | 1 << 26                           // 1 GiB pages
    | 1 << 27                           // RDTSCP
    | 1 << 29; // long mode

/// Leaf 0x8000_0007 EDX: the time-stamp counter never changes its rate, and never stops.
pub const INVARIANT_TSC: u32 = 1 << 8;

/// Leaf 0x8000_0008 EBX.
pub const EXTENDED_8_EBX: u32 = 1 << 2  // FXSAVE, XSAVE always handle the error pointers
    | 1 << 26                           // no speculative store bypass
    | 1 << 29; // no branch type confusion

/// Leaf 0x8000_0021 EAX.
pub const EXTENDED_21_EAX: u32 = 1 << 0 // no nested data breakpoints
    | 1 << 2                            // LFENCE always serialises
    | 1 << 6                            // a null selector clears the base
    | 1 << 8                            // automatic IBRS: EFER.AIBRSE can be set
    | 1 << 29; // no speculative return stack overflow

/// Leaf 0x8000_0021 ECX.
pub const EXTENDED_21_ECX: u32 = 1 << 1 // no transient scheduler attack on the store queue
    | 1 << 2; // nor on the first-level data cache

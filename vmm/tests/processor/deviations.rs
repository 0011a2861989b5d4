//! Where QEMU's TCG and Bochs do something else than the manuals say.

/// A scene in which somebody differs.
pub struct Deviation {
    pub image: &'static str,
    pub scene: &'static str,
    /// What the manual says, and where; then what QEMU 7.2 or Bochs 2.7 does.
    #[expect(dead_code, reason = "it is for the reader")]
    pub manual: &'static str,
}

const fn deviation(image: &'static str, scene: &'static str, manual: &'static str) -> Deviation {
    Deviation { image, scene, manual }
}

const NO_LIMITS: &str = "SDM Vol. 3, Limit Checking; TCG checks no segment limits for data";

const LIMIT_OF_TARGET: &str =
    "SDM Vol. 2, CALL and INT n: an entry beyond the target's limit is #GP(0); TCG goes there";

const WRITES: &str =
    "SDM Vol. 3, Page-Fault Exception: W/R is what the access was, and an exchange writes; TCG: it reads first";

const RESERVED: &str = "SDM Vol. 3, Page-Fault Exception: with RSVD, P is set too; not by TCG";

const NEW_TASK: &str = "SDM Vol. 3, Exception Conditions Checked During a Task Switch: the exception is the new task's; TCG: at the old one's EIP";

const NO_SELECTOR: &str = "SDM Vol. 2, INT n and CALL: a stack pointer of the TSS that is not canonical is #SS(0); Bochs: with the old selector";

const NULL_STACK: &str =
    "SDM Vol. 2, IRET: a null SS at level 0 has RPL 0, and is for 64-bit code; Bochs and TCG take others";

const NOT_ENABLED: &str = "SDM Vol. 3, Debug Status Register: a condition that is met need not be told where no breakpoint is enabled; Bochs and TCG do";

const NO_VME: &str =
    "SDM Vol. 3, Virtual-8086 Mode Extensions and Protected-Mode Virtual Interrupts; TCG has half of them";

const INT1: &str = "SDM Vol. 2, INT n/INTO/INT3/INT1: F1 is a #DB; TCG: #UD, and limits are not checked";

const CANONICAL: &str = "SDM Vol. 1, Canonical Addressing: #GP(0), #SS(0) on the stack, before the jump; TCG: #GP always, behind it, or not at all";

const LOAD_OF_SS: &str = "SDM Vol. 3, Masking Exceptions and Interrupts When Switching Stacks: a #DB waits for the next instruction; TCG tells it at once";

const LEVEL_FIRST: &str = "SDM Vol. 2, MOV to and from debug registers: #GP(0) at another level than 0, which processors look at before the number; Bochs and TCG: #UD";

/// Bochs's.
pub const BOCHS: &[Deviation] = &[
    deviation("debug", "debug registers that there are not, at level 3", LEVEL_FIRST),
    deviation(
        "segments",
        "IRET outwards, SS",
        "SDM Vol. 2, IRET: an SS that is not present is #SS(selector); Bochs: #NP",
    ),
    deviation(
        "tasks",
        "segments that a task cannot have: CS",
        "SDM Vol. 3, Exception Conditions Checked During a Task Switch: the DPL of CS is looked at before SS; Bochs: SS first",
    ),
    deviation(
        "tasks_on_pages",
        "task state on pages",
        "which of several bytes that are not there is named is nobody's rule; Bochs: the last of the TSS",
    ),
    deviation(
        "virtual86",
        "IRETD that does not enter it",
        "SDM Vol. 2, IRET: an EIP beyond the limit is #GP(0); Bochs cuts it off",
    ),
    deviation(
        "virtual86",
        "what there is not",
        "SDM Vol. 2, BEXTR: no VEX prefix in virtual-8086 mode, so LES with a register: #UD; Bochs executes it",
    ),
    deviation("long", "interrupt stack table", NO_SELECTOR),
    deviation("long", "gates that may not be used", NO_SELECTOR),
    deviation("long", "call gates", NO_SELECTOR),
    deviation("long", "IRETQ", NULL_STACK),
    deviation(
        "long",
        "SYSCALL and SYSRET",
        "APM Vol. 3, SYSCALL: there is one in compatibility mode, to CSTAR; Bochs's Intel has none",
    ),
    deviation(
        "debug",
        "registers",
        "SDM Vol. 3, Debug Control Register: bits 15, 14 and 12 are reserved, and 11 is without RTM; Bochs keeps 11",
    ),
    deviation("debug", "breakpoints on instructions", NOT_ENABLED),
    deviation(
        "debug",
        "breakpoints on data",
        "SDM Vol. 3, Instruction-Breakpoint Exception Condition: between iterations RF is pushed as 1; Bochs: 0",
    ),
    deviation(
        "debug",
        "general detect",
        "SDM Vol. 2, MOV to and from debug registers: at level 3 it is #GP(0), whatever GD says; Bochs: #DB",
    ),
    deviation(
        "debug",
        "breakpoints on what SS is loaded from, and an interrupt behind it",
        "SDM Vol. 3, Masking Exceptions and Interrupts When Switching Stacks: they wait for the next instruction, which INT n is; Bochs \
         forgets them",
    ),
];

/// QEMU's. That TCG pushes no RF is taken care of elsewhere.
pub const QEMU: &[Deviation] = &[
    deviation("debug", "debug registers that there are not, at level 3", LEVEL_FIRST),
    deviation(
        "segments",
        "RET far outwards, SS",
        "SDM Vol. 2, RET: an SS that is not present is #SS(selector); TCG: #NP",
    ),
    deviation(
        "segments",
        "IRET outwards, SS",
        "SDM Vol. 2, IRET: an SS that is not present is #SS(selector); TCG: #NP",
    ),
    deviation("segments", "limits, expand-up data, 32 bits", NO_LIMITS),
    deviation("segments", "limits, expand-up data, read-only", NO_LIMITS),
    deviation("segments", "limits, expand-up data, 16 bits", NO_LIMITS),
    deviation("segments", "limits, expand-up data, in pages", NO_LIMITS),
    deviation("segments", "limits, expand-down data, 32 bits", NO_LIMITS),
    deviation("segments", "limits, expand-down data, 16 bits", NO_LIMITS),
    deviation("segments", "limits, expand-down data, in pages", NO_LIMITS),
    deviation("segments", "limits, expand-down data, in pages, 16 bits", NO_LIMITS),
    deviation("segments", "limits, code, readable", NO_LIMITS),
    deviation(
        "segments",
        "a null segment register",
        "SDM Vol. 3, Segment Selectors: using a null one is #GP(0); TCG does not check",
    ),
    deviation(
        "segments",
        "writing to code",
        "SDM Vol. 3, Type Checking: #GP(0); TCG does not check",
    ),
    deviation(
        "segments",
        "reading execute-only code",
        "SDM Vol. 3, Type Checking: #GP(0); TCG does not check",
    ),
    deviation(
        "segments",
        "a jump beyond the limit",
        "SDM Vol. 3, Limit Checking: fetching is checked too; not by TCG",
    ),
    deviation(
        "segments",
        "the accessed bit",
        "SDM Vol. 3, Code- and Data-Segment Descriptor Types: set by loading CS too; not by TCG",
    ),
    deviation(
        "transfers",
        "call gate from level 3 to conforming code",
        "SDM Vol. 3, Accessing a Code Segment Through a Call Gate: no change of CPL, which CS shows; TCG: RPL 0",
    ),
    deviation("transfers", "gates that may not be used", LIMIT_OF_TARGET),
    deviation(
        "transfers",
        "stacks that a call gate cannot switch to",
        "SDM Vol. 2, CALL: an SS that is not present is #SS(selector); TCG: #TS",
    ),
    deviation("transfers", "interrupts whose gate may not be used", LIMIT_OF_TARGET),
    deviation(
        "transfers",
        "exceptions whose gate may not be used",
        "SDM Vol. 3, Error Code: EXT is set in the error code of what arises in delivering an exception; not by TCG",
    ),
    deviation(
        "transfers",
        "INT3, INTO, INT1, BOUND at level 3",
        "SDM Vol. 2, INT n/INTO/INT3/INT1: F1 is a #DB without a check of the gate's DPL; TCG: #UD",
    ),
    deviation(
        "transfers",
        "model-specific registers",
        "SDM Vol. 2, RDMSR and WRMSR: reserved bits, types and addresses are #GP(0); TCG takes them all",
    ),
    deviation("paging", "two levels, level 3 exchanges", WRITES),
    deviation("paging", "three levels, level 3 exchanges", WRITES),
    deviation("paging", "the address of the fault", WRITES),
    deviation("paging", "reserved bits of a 4 MiB page", RESERVED),
    deviation("paging", "reserved bits of three levels", RESERVED),
    deviation("paging", "no execution", RESERVED),
    deviation("tasks_on_pages", "an instruction pointer beyond the limit", NEW_TASK),
    deviation(
        "virtual86",
        "IRETD that does not enter it",
        "SDM Vol. 2, IRET: VM is taken at level 0 alone, and an EIP beyond the limit is #GP(0); TCG does neither",
    ),
    deviation("virtual86", "segments", NO_LIMITS),
    deviation("virtual86", "interrupts without the extensions", INT1),
    deviation("virtual86", "extensions: the virtual interrupt flag", NO_VME),
    deviation("virtual86", "extensions: redirected interrupts", NO_VME),
    deviation("virtual86", "a waiting virtual interrupt at level 3", NO_VME),
    deviation("virtual86", "a task in virtual-8086 mode", NO_VME),
    deviation(
        "long",
        "interrupt stack table",
        "SDM Vol. 3, Stack Switching in IA-32e Mode: SS is null where the level changes; TCG: on every interrupt stack",
    ),
    deviation(
        "long",
        "gates that may not be used",
        "SDM Vol. 3, Error Code: bits 15:3 are the vector; TCG: twice that, and checks no target",
    ),
    deviation("long", "addresses that are not canonical", CANONICAL),
    deviation("long", "IRETQ", NULL_STACK),
    deviation(
        "long",
        "SYSCALL and SYSRET",
        "APM Vol. 3, SYSCALL: R11 and the flags that remain are those of the caller; TCG loses some, and takes other bits back",
    ),
    deviation("long", "SWAPGS and the bases of FS and GS", CANONICAL),
    deviation(
        "long",
        "call gates",
        "SDM Vol. 3, Accessing a Code Segment Through a Call Gate: CS has the CPL as RPL, and the target is canonical; not in TCG",
    ),
    deviation(
        "long",
        "far transfers",
        "SDM Vol. 3, 64-Bit Mode Code Segments: L and D together are #GP; TCG goes there",
    ),
    deviation(
        "long",
        "descriptors of 16 bytes",
        "SDM Vol. 2, LLDT and LTR: what is null, not canonical, or has a type above is #GP; not in TCG",
    ),
    deviation(
        "long",
        "what there is not in 64-bit code",
        "SDM Vol. 2, LOCK: #UD with MOV; TCG executes it",
    ),
    deviation("real", "real mode: exceptions", NO_LIMITS),
    deviation("real", "unreal mode", NO_LIMITS),
    deviation(
        "debug",
        "registers",
        "SDM Vol. 3, Debug Registers: reserved bits keep their values; TCG stores them",
    ),
    deviation(
        "debug",
        "single steps and what holds them up",
        "SDM Vol. 3, Masking Exceptions and Interrupts When Switching Stacks: STI holds up no single step; in TCG it does",
    ),
    deviation("debug", "INT1", INT1),
    deviation("debug", "breakpoints on instructions", NOT_ENABLED),
    deviation(
        "debug",
        "breakpoints on data",
        "SDM Vol. 3, Debug Address Registers: low bits are masked by the length, and loads are no stores; not in TCG",
    ),
    deviation(
        "debug",
        "general detect",
        "SDM Vol. 3, Debug Control Register: GD is a #DB; TCG has none",
    ),
    deviation(
        "debug",
        "debug registers that there are not, at level 3",
        "SDM Vol. 2, MOV to and from debug registers: DR4 with CR4.DE is #UD; TCG: #GP(0) at level 3",
    ),
    deviation("debug", "breakpoints on what SS is loaded from", LOAD_OF_SS),
    deviation(
        "debug",
        "breakpoints on what SS is loaded from, and an interrupt behind it",
        LOAD_OF_SS,
    ),
    deviation("extended", "five levels", CANONICAL),
    deviation(
        "extended",
        "protection keys: accesses",
        "SDM Vol. 3, Page-Fault Exception: W/R is what the access was, and an exchange writes; TCG: it reads first",
    ),
];

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

/// Bochs's.
pub const BOCHS: &[Deviation] = &[deviation(
    "segments",
    "IRET outwards, SS",
    "SDM Vol. 2, IRET: an SS that is not present is #SS(selector); Bochs: #NP",
)];

/// QEMU's. That TCG pushes no RF is taken care of elsewhere.
pub const QEMU: &[Deviation] = &[
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
];

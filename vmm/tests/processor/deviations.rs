//! Where QEMU's TCG does something else than the manuals say.

/// A scene in which QEMU differs.
pub struct Deviation {
    pub image: &'static str,
    pub scene: &'static str,
    /// What the manual says, and where; then what QEMU 7.2 does.
    #[expect(dead_code, reason = "it is for the reader")]
    pub manual: &'static str,
}

const fn deviation(image: &'static str, scene: &'static str, manual: &'static str) -> Deviation {
    Deviation { image, scene, manual }
}

const NO_LIMITS: &str = "SDM Vol. 3, Limit Checking; TCG checks no segment limits for data";

/// All of them. That TCG pushes no RF is taken care of elsewhere.
pub const DEVIATIONS: &[Deviation] = &[
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
];

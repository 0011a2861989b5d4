//! The tables on the crate's front page say what the code does. `REPRISE_BLESS=1` writes the first anew.

use std::fmt::Write;
use std::path::Path;

use iced_x86::{Code, CpuidFeature};
use reprise_emulator::Model;

/// A row: what it is called, which encodings it counts, and what others execute of them.
struct Family {
    name: &'static str,
    features: &'static [CpuidFeature],
    /// Xen, KVM, OpenVMM, cloud-hypervisor.
    others: [&'static str; 4],
}

const fn family(name: &'static str, features: &'static [CpuidFeature], others: [&'static str; 4]) -> Family {
    Family { name, features, others }
}

/// The first that names any of an encoding's features counts it.
const FAMILIES: &[Family] = {
    use CpuidFeature::*;
    &[
        family(
            "XSAVE, FXSAVE",
            &[XSAVE, XSAVEC, XSAVEOPT, XSAVES, FXSR],
            ["FXSAVE", "FXSAVE", "no", "no"],
        ),
        family(
            "AVX-512 F, BW, DQ, VL, CD",
            &[AVX512F, AVX512BW, AVX512DQ, AVX512CD, AVX512VL],
            ["yes", "no", "no", "no"],
        ),
        family(
            "AES, PCLMULQDQ, SHA, GFNI",
            &[AES, PCLMULQDQ, SHA, GFNI, VAES, VPCLMULQDQ],
            ["yes", "no", "no", "no"],
        ),
        family("FMA, F16C", &[FMA, F16C], ["yes", "no", "no", "no"]),
        family("AVX, AVX2", &[AVX, AVX2], ["yes", "moves", "no", "no"]),
        family(
            "SSE3, SSSE3, SSE4.1, SSE4.2",
            &[SSE3, SSSE3, SSE4_1, SSE4_2],
            ["yes", "MOVNTDQA", "no", "no"],
        ),
        family("SSE, SSE2", &[SSE, SSE2], ["yes", "moves", "moves", "no"]),
        family("MMX", &[MMX], ["yes", "moves", "no", "no"]),
        family(
            "x87",
            &[FPU, FPU287, FPU287XL_ONLY, FPU387],
            ["yes", "control", "no", "no"],
        ),
        family(
            "BMI1, BMI2, ADX, LZCNT, POPCNT",
            &[BMI1, BMI2, ADX, LZCNT, POPCNT],
            ["yes", "no", "no", "no"],
        ),
        family(
            "MOVBE, MOVDIRI, MOVDIR64B, RDPID",
            &[MOVBE, MOVDIRI, MOVDIR64B, RDPID],
            ["yes", "MOVBE, RDPID", "MOVDIRI, MOVDIR64B", "no"],
        ),
        family("CMPXCHG16B", &[CMPXCHG16B], ["yes", "no", "yes", "no"]),
        family(
            "integer, control, string, system",
            &[
                INTEL8086,
                INTEL8086_ONLY,
                INTEL186,
                INTEL286,
                INTEL286_ONLY,
                INTEL386,
                INTEL386_ONLY,
                INTEL486,
                X64,
                CMOV,
                CX8,
                CPUID,
                MSR,
                TSC,
                SEP,
                SYSCALL,
            ],
            ["all but gates", "most", "with memory operands", "40 forms"],
        ),
    ]
};

/// What is no matter of encodings: by which test it is known.
const MODES: &[(&str, &str, [&str; 4])] = &[
    (
        "real and unreal mode, virtual-8086 mode",
        "`system::modes`",
        ["yes", "yes", "real mode", "no"],
    ),
    (
        "protected mode of 16 and 32 bits, 64-bit mode",
        "`system::modes`",
        ["yes", "yes", "yes", "64 bits"],
    ),
    (
        "exceptions and interrupts through gates",
        "`system::delivery`",
        ["no", "real mode", "no", "no"],
    ),
    (
        "call gates, stack switches, IRET",
        "`system::transfers`",
        ["IRET in real mode", "IRET in real mode", "no", "no"],
    ),
    (
        "task switches, task gates",
        "`system::tasks`",
        ["beside it", "yes", "no", "no"],
    ),
];

/// Where the facts about others come from.
const SOURCES: &str = "
Looked up in Xen's `x86_emulate.c` (001bd91ad864) and `blk.c` (5a33ea2800c1), beside which `hvm_task_switch` serves the exits that
processors make for task switches; `arch/x86/kvm/emulate.c` of Linux 6.12, its tables as of 5cfc7e0f5e5e, and what November 2025 has
brought (moves of AVX and MOVNTDQA: ebec25438f3d, c57d9bafbd0b); OpenVMM's `vm/x86/x86emu` (01b995383f87); and cloud-hypervisor's
`arch/x86/emulator` (297236a7c0b4).
";

fn table() -> String {
    let model = Model::new();
    let mut counts = vec![(0, 0); FAMILIES.len()];
    for code in Code::values().filter(|code| code.op_code().is_instruction()) {
        let features = code.cpuid_features();
        let row = FAMILIES
            .iter()
            .position(|family| features.iter().any(|feature| family.features.contains(feature)));
        // Those of a later extension are not the family's.
        let known = |feature: &CpuidFeature| FAMILIES.iter().any(|family| family.features.contains(feature));
        let Some(row) = row.filter(|_| features.iter().all(known)) else {
            continue;
        };
        counts[row].0 += usize::from(model.supports(code));
        counts[row].1 += 1;
    }
    let mut text = String::from("| | here | Xen | KVM | OpenVMM | cloud-hypervisor |\n|---|---|---|---|---|---|\n");
    for (family, (executed, all)) in FAMILIES.iter().zip(&counts).rev() {
        let here = match executed == all {
            true => format!("all {all} encodings"),
            false => format!("{executed} of {all} encodings"),
        };
        writeln!(text, "| {} | {here} | {} |", family.name, family.others.join(" | ")).expect("a String takes all");
    }
    for (what, test, others) in MODES {
        writeln!(text, "| {what} | {test} | {} |", others.join(" | ")).expect("a String takes all");
    }
    text.push_str(SOURCES);
    text
}

#[test]
fn the_front_page_says_what_is_executed() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/executed.md");
    let table = table();
    if std::env::var_os("REPRISE_BLESS").is_some() {
        std::fs::write(&path, &table).expect("the sources can be written");
    }
    let page = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(page, table, "{} is old: REPRISE_BLESS=1", path.display());
}

/// The text of all Rust sources under `folder`.
fn sources(folder: &Path, text: &mut String) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&std::fs::read_to_string(&path).expect("text"));
        }
    }
}

#[test]
fn each_row_of_the_order_of_faults_names_tests_that_there_are() {
    let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut text = String::new();
    for folder in ["src", "tests", "../vmm/tests/processor"] {
        sources(&crate_folder.join(folder), &mut text);
    }
    let table = std::fs::read_to_string(crate_folder.join("src/faults.md")).expect("text");
    let rows = table.lines().filter(|line| line.starts_with("| ")).skip(1);
    let mut names = 0;
    for row in rows {
        let proofs = row.trim_end_matches(" |").rsplit('|').next().expect("a column");
        let before = names;
        for name in proofs.split('`').skip(1).step_by(2) {
            let head = format!("fn {name}()");
            let found = text
                .match_indices(&head)
                .any(|(at, _)| text[..at].trim_end().ends_with("#[test]"));
            assert!(found, "{name}");
            names += 1;
        }
        assert!(names > before, "{row}");
    }
    assert!(names > 40, "{names}");
}

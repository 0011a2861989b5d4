//! Which instructions are compared: every encoding that the emulator executes and this processor has, by family.

use std::collections::BTreeMap;

use iced_x86::{Code, CpuidFeature, EncodingKind, FlowControl, Mnemonic, OpCodeOperandKind};
use reprise_emulator::Model;

/// One encoding.
#[derive(Debug, Clone, Copy)]
pub struct Form {
    /// The encoding.
    pub code: Code,
    /// Index in [`Forms::families`].
    pub family: usize,
}

/// What is compared and what is not.
pub struct Forms {
    /// Names.
    pub families: Vec<String>,
    /// Encodings that can be executed in 64-bit code.
    pub long: Vec<Form>,
    /// Those of 32-bit code.
    pub narrow: Vec<Form>,
    /// Those of 16-bit code.
    pub short: Vec<Form>,
    /// Encodings of this processor that the emulator does not execute, by family.
    pub missing: BTreeMap<String, Vec<Code>>,
    /// Encodings that the emulator executes and this processor does not, by family.
    pub foreign: BTreeMap<String, usize>,
}

impl Forms {
    /// The encodings that `model` has and whose family's name contains `filter`.
    pub fn new(model: &Model, filter: &str) -> Forms {
        let mut forms = Forms {
            families: Vec::new(),
            long: Vec::new(),
            narrow: Vec::new(),
            short: Vec::new(),
            missing: BTreeMap::new(),
            foreign: BTreeMap::new(),
        };
        for code in Code::values() {
            let op_code = code.op_code();
            if !op_code.is_instruction() || op_code.fwait() || excluded(code.mnemonic()).is_some() {
                continue;
            }
            let there = code.cpuid_features().iter().all(|feature| host_has(*feature));
            let name = family(code);
            match (there, model.supports(code)) {
                (true, true) if name.contains(filter) || code.mnemonic().matches(filter) => {}
                (true, false) => {
                    forms.missing.entry(name).or_default().push(code);
                    continue;
                }
                (false, true) => {
                    *forms.foreign.entry(name).or_default() += 1;
                    continue;
                }
                _ => continue,
            }
            let form = Form {
                code,
                family: forms.family(&name),
            };
            if op_code.mode64() {
                forms.long.push(form);
            }
            if op_code.mode32() {
                forms.narrow.push(form);
            }
            if op_code.mode16() {
                forms.short.push(form);
            }
        }
        forms
    }

    /// The encodings of code of so many bits.
    pub fn of(&self, bits: u32) -> &[Form] {
        match bits {
            64 => &self.long,
            32 => &self.narrow,
            _ => &self.short,
        }
    }

    /// The number of a family, which is made if there is none of that name.
    pub fn family(&mut self, name: &str) -> usize {
        if let Some(family) = self.families.iter().position(|known| known == name) {
            return family;
        }
        self.families.push(name.to_owned());
        self.families.len() - 1
    }
}

/// A mnemonic is what somebody asked for.
trait Matches {
    fn matches(&self, filter: &str) -> bool;
}

impl Matches for Mnemonic {
    fn matches(&self, filter: &str) -> bool {
        format!("{self:?}").eq_ignore_ascii_case(filter)
    }
}

/// Why instructions are not compared, if there is a reason.
pub fn excluded(mnemonic: Mnemonic) -> Option<&'static str> {
    use Mnemonic::*;
    Some(match mnemonic {
        Syscall => "enters the kernel, which answers",
        Cpuid | Rdpid => "tells the machine, not the instruction",
        Rdtsc | Rdtscp | Rdpmc | Rdpru => "reads a clock or a counter",
        Rdrand | Rdseed => "is random",
        Vmcall | Vmmcall | Vmgexit => "the hypervisor answers, or rewrites it",
        Sgdt | Sidt | Sldt | Smsw | Str => "Linux answers in place of the processor (UMIP)",
        Monitorx | Mwaitx => "waits",
        Int1 => "comes back from some hypervisors with the wrong RIP",
        Invlpgb | Tlbsync | Pvalidate | Psmash | Rmpadjust | Rmpupdate | Rmpquery | Mcommit | Skinit => {
            "this processor has it or not, depending on who runs the virtual machine"
        }
        _ => return None,
    })
}

/// The reasons, with the instructions that they hold for.
pub fn exclusions() -> BTreeMap<&'static str, Vec<String>> {
    let mut reasons: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for mnemonic in Mnemonic::values() {
        if let Some(reason) = excluded(mnemonic) {
            reasons
                .entry(reason)
                .or_default()
                .push(format!("{mnemonic:?}").to_lowercase());
        }
    }
    reasons
}

/// The family that an encoding is counted in.
pub fn family(code: Code) -> String {
    use CpuidFeature::*;
    let op_code = code.op_code();
    let features = code.cpuid_features();
    let has = |wanted: &[CpuidFeature]| features.iter().any(|feature| wanted.contains(feature));
    if op_code.is_privileged() || op_code.must_be_cpl0() {
        return "privileged".to_owned();
    }
    let width = if op_code.op_kinds().iter().any(|kind| is_wide(*kind)) {
        " 256"
    } else {
        ""
    };
    if op_code.encoding() == EncodingKind::EVEX {
        return "avx-512".to_owned();
    }
    let name = match features {
        [] => "integer",
        _ if has(&[FPU, FPU287, FPU287XL_ONLY, FPU387, FPU387SL_ONLY]) => "x87",
        _ if has(&[XSAVE, XSAVEC, XSAVEOPT, XSAVES, FXSR]) => "xsave",
        [feature, ..] if is_base(*feature) => base_family(code),
        _ => {
            let names: Vec<String> = features
                .iter()
                .map(|feature| format!("{feature:?}").to_lowercase())
                .collect();
            return names.join("+") + width;
        }
    };
    name.to_owned()
}

fn is_wide(kind: OpCodeOperandKind) -> bool {
    use OpCodeOperandKind::*;
    matches!(
        kind,
        ymm_or_mem | ymm_reg | ymm_rm | ymm_vvvv | ymm_is4 | mem_vsib32y | mem_vsib64y
    )
}

/// Instructions of every processor with 64-bit mode.
fn is_base(feature: CpuidFeature) -> bool {
    use CpuidFeature::*;
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
            | CX8
            | CMPXCHG16B
            | MULTIBYTENOP
            | PAUSE
            | CMOV
    )
}

fn base_family(code: Code) -> &'static str {
    use Mnemonic::*;
    let op_code = code.op_code();
    match code.mnemonic() {
        _ if op_code.is_input_output() => "input and output",
        _ if code.is_string_instruction() => "string",
        Aaa | Aad | Aam | Aas | Daa | Das => "decimal",
        Bt | Bts | Btr | Btc | Bsf | Bsr => "bit",
        Rol | Ror | Rcl | Rcr | Shl | Sal | Shr | Sar | Shld | Shrd => "shift",
        Mul | Imul | Div | Idiv => "multiplication and division",
        Cmpxchg | Cmpxchg8b | Cmpxchg16b | Xadd | Xchg => "exchange",
        Lar | Lsl | Verr | Verw | Arpl | Lds | Les | Lfs | Lgs | Lss => "segment",
        Mov if op_code.op_kinds().contains(&OpCodeOperandKind::seg_reg) => "segment",
        _ if code.flow_control() != FlowControl::Next => "control",
        _ if op_code.is_stack_instruction() => "stack",
        _ => "integer",
    }
}

/// Whether this processor has a feature.
pub fn host_has(feature: CpuidFeature) -> bool {
    use CpuidFeature::*;
    macro_rules! has {
        ($name:tt) => {
            std::arch::is_x86_feature_detected!($name)
        };
    }
    match feature {
        _ if is_base(feature) => true,
        FPU | FPU287 | FPU287XL_ONLY | FPU387 | CPUID | MSR | TSC | SEP | SYSCALL | MMX | FXSR | SSE | SSE2 | CLFSH => {
            true
        }
        // Hints that are no operations where they mean nothing.
        CET_IBT | CLDEMOTE => true,
        RDPMC | INVPCID | MONITOR | VMX | SVM | SMAP => true,
        PREFETCHW => bit(0x8000_0001, 2, 8),
        RDTSCP => bit(0x8000_0001, 3, 27),
        FSGSBASE => bit(7, 1, 0),
        CLFLUSHOPT => bit(7, 1, 23),
        CLWB => bit(7, 1, 24),
        RDPID => bit(7, 2, 22),
        CLZERO => bit(0x8000_0008, 1, 0),
        RDPRU => bit(0x8000_0008, 1, 4),
        MCOMMIT => bit(0x8000_0008, 1, 8),
        WBNOINVD => bit(0x8000_0008, 1, 9),
        MONITORX => bit(0x8000_0001, 2, 29),
        MOVDIRI => bit(7, 2, 27),
        MOVDIR64B => bit(7, 2, 28),
        PKU => bit(7, 2, 4),
        SERIALIZE => bit(7, 3, 14),
        WAITPKG => bit(7, 2, 5),
        SSE3 => has!("sse3"),
        SSSE3 => has!("ssse3"),
        SSE4_1 => has!("sse4.1"),
        SSE4_2 => has!("sse4.2"),
        SSE4A => has!("sse4a"),
        AES => has!("aes"),
        PCLMULQDQ => has!("pclmulqdq"),
        SHA => has!("sha"),
        GFNI => has!("gfni"),
        AVX => has!("avx"),
        AVX2 => has!("avx2"),
        FMA => has!("fma"),
        F16C => has!("f16c"),
        VAES => has!("vaes"),
        VPCLMULQDQ => has!("vpclmulqdq"),
        AVX512F => has!("avx512f"),
        BMI1 => has!("bmi1"),
        BMI2 => has!("bmi2"),
        ADX => has!("adx"),
        LZCNT => has!("lzcnt"),
        MOVBE => has!("movbe"),
        POPCNT => has!("popcnt"),
        RDRAND => has!("rdrand"),
        RDSEED => has!("rdseed"),
        XSAVE => has!("xsave"),
        XSAVEC => has!("xsavec"),
        XSAVEOPT => has!("xsaveopt"),
        XSAVES => has!("xsaves"),
        _ => false,
    }
}

/// Features that CPUID does not tell of, or of which it is not certain what it tells users.
pub fn is_unknown(feature: CpuidFeature) -> bool {
    use CpuidFeature::*;
    matches!(
        feature,
        SEV_ES | SEV_SNP | SKINIT | SKINIT_or_SVM | INVLPGB | SMM | TDX | SMX | CET_SS | WBNOINVD | UDBG
    )
}

/// A bit of CPUID, subleaf 0: EAX is register 0, then EBX, ECX, EDX.
fn bit(leaf: u32, register: usize, bit: u32) -> bool {
    let answer = core::arch::x86_64::__cpuid_count(leaf, 0);
    [answer.eax, answer.ebx, answer.ecx, answer.edx][register] >> bit & 1 != 0
}

/// The processor is one of those whose undefined flags the emulator models: AMD's family 25.
pub fn is_modelled() -> bool {
    let vendor = core::arch::x86_64::__cpuid(0);
    let version = core::arch::x86_64::__cpuid(1).eax;
    let family = (version >> 8 & 0xf) + (version >> 20 & 0xff);
    (vendor.ebx, vendor.edx, vendor.ecx) == (0x6874_7541, 0x6974_6e65, 0x444d_4163) && family == 25
}

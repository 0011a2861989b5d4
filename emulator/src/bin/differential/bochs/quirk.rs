//! Where Bochs 2.7 does something else than the manuals say, and what is therefore not compared with it.

use iced_x86::{Code, Instruction, Mnemonic, RoundingControl};

use super::case::Case;
use super::outcome::Outcome;

/// Flags of MXCSR: invalid operation, denormal operand, overflow, underflow, precision. Their masks are 7 bits higher.
const IE: u32 = 1 << 0;
const DE: u32 = 1 << 1;
const OE: u32 = 1 << 3;
const UE: u32 = 1 << 4;
const PE: u32 = 1 << 5;
/// Mask bits of MXCSR.
const MASKS: u32 = 0x1f80;
/// Rounding control of MXCSR.
const RC: u32 = 3 << 13;
/// Flush to zero.
const FTZ: u32 = 1 << 15;
/// Denormals are zeros.
const DAZ: u32 = 1 << 6;

/// Reasons for what is not compared, though both sides execute it.
pub const REASONS: &[(&str, &str)] = &[
    ("shifts of quadwords by 64", "do nothing in Bochs"),
    (
        "gathers and scatters with ZMM16 to ZMM31 as indices",
        "are #UD in Bochs",
    ),
    (
        "gathers and scatters that fault behind an element",
        "may do so before or after they clear the upper part",
    ),
    (
        "VGATHERQPS and VPGATHERQD with 512 bits of indices",
        "leave the upper half of their destination in Bochs",
    ),
    (
        "instructions on general or opmask registers with EVEX.X or EVEX.R'",
        "make Bochs write beyond the general registers, and need some of what is there itself",
    ),
    (
        "FMA of a zero and a denormal",
        "raises no denormal exception in Bochs, nor always an underflow",
    ),
    (
        "flushing to zero with {sae} and unmasked underflow",
        "does not happen in Bochs, though all exceptions count as masked (SDM Vol. 1, Static Rounding)",
    ),
    (
        "CR2 of a vector that lies in two pages",
        "is any of its elements' addresses in Bochs",
    ),
    (
        "EVEX.W where it is ignored (SDM Vol. 2, instruction tables)",
        "is #UD for some instructions in Bochs",
    ),
    (
        "VBROADCASTF32X4 and its like, VEXPAND, VPEXPAND, VPMOVSX, VPMOVZX and conversions to wider elements under an opmask",
        "load what the opmask leaves out in Bochs (SDM Vol. 2, exception types E4, E5 and E11)",
    ),
    (
        "VBROADCAST and VPBROADCAST from memory under an opmask",
        "ask bit 0 alone in Bochs whether to load, or load nothing (VPBROADCASTB of 64 elements)",
    ),
    (
        "VMOVDDUP of 128 bits from memory under an opmask",
        "loads as many bytes as it writes in Bochs (SDM Vol. 2, MOVDDUP: m64)",
    ),
    (
        "elements under an opmask that lie behind the end of 32-bit addresses",
        "do not wrap around in Bochs, as those of VMASKMOV do on processors",
    ),
    (
        "compressed displacements of VPEXTR and VPINSR",
        "are multiplied by something else in Bochs (SDM Vol. 2, Compressed Displacement)",
    ),
    (
        "VRNDSCALE and VREDUCE with {sae}",
        "round as EVEX.L'L says in Bochs, which is the vector length's there",
    ),
    (
        "conversions to unsigned integers",
        "forget other elements' flags in Bochs when one is invalid",
    ),
    (
        "conversions of unsigned integers",
        "forget in Bochs the lowest bits of those with the highest bit set, and so rounding and precision exception",
    ),
    (
        "conversions to single precision and VSCALEF with unmasked overflow or underflow",
        "are inexact in Bochs where a denormal or infinity would be, though a handler gets neither (SDM Vol. 1, Numeric \
         Underflow Exception; processors agree)",
    ),
    ("VCVTPH2PS with {sae}", "raises exceptions in Bochs"),
    (
        "shifts of words by an immediate under an opmask",
        "load what the opmask leaves out in Bochs (SDM Vol. 2, PSRLW: exception type E4.nb)",
    ),
    (
        "VGETMANT of denormals",
        "leaves the interval in Bochs, which has its exponent one too high (SDM Vol. 2, VGETMANTPD)",
    ),
    (
        "VSCALEF with denormals",
        "heeds neither DAZ nor flushing to zero in Bochs, and raises a denormal exception for its second (SDM Vol. 2, VSCALEFPD)",
    ),
    (
        "VSCALEF with unmasked underflow",
        "leaves a denormal that is scaled by less than 2 as it is in Bochs, without the exception for its being tiny",
    ),
    (
        "VSCALEF of a power of two by a huge negative exponent",
        "is exactly zero in Bochs, in whichever direction it rounds and without underflow (SDM Vol. 2, VSCALEFPD)",
    ),
    ("VDBPSADBW with EVEX.W", "is no #UD in Bochs"),
    (
        "EVEX.b with an operand in memory that is not broadcast, and a compressed displacement",
        "ends Bochs with a failed assertion",
    ),
    (
        "VEXTRACTF32X4 and its like to memory under an opmask",
        "suppress faults in Bochs (SDM Vol. 2, exception type E6NF)",
    ),
    (
        "VRANGE of a denormal beside a quiet NaN",
        "raises a denormal exception in Bochs (SDM Vol. 2, VRANGEPD)",
    ),
    (
        "the signs of VRANGE of magnitudes that are the same",
        "are the second operand's in Bochs (SDM Vol. 2, VRANGEPD: the lesser is the negative one)",
    ),
    (
        "VREDUCE of denormals and flushing to zero",
        "raises denormal and underflow exceptions in Bochs, which SDM Vol. 2, VREDUCEPD, does not list, and flushes",
    ),
    (
        "truncation of what is between -1 and 0 to an unsigned integer",
        "is invalid in Bochs, and 0 according to SDM Vol. 2, VCVTTPD2UQQ",
    ),
];

/// Why an instruction is not compared at all, if there is a reason.
pub fn excluded(mnemonic: Mnemonic) -> Option<&'static str> {
    use Mnemonic::*;
    Some(match mnemonic {
        Rcpps | Rcpss | Rsqrtps | Rsqrtss | Vrcpps | Vrcpss | Vrsqrtps | Vrsqrtss | Vrcp14ps | Vrcp14pd | Vrcp14ss
        | Vrcp14sd | Vrsqrt14ps | Vrsqrt14pd | Vrsqrt14ss | Vrsqrt14sd => {
            "approximates, each processor in its own way; Bochs loses the leading bit of reciprocals that are denormal"
        }
        Gf2p8affineqb | Gf2p8affineinvqb | Vgf2p8affineqb | Vgf2p8affineinvqb => {
            "has the wrong parity in Bochs, which FIPS 197's S-box shows"
        }
        Vcvtps2ph => {
            "takes exact denormals for inexact in Bochs, and neither {sae} nor the opmask suppresses its exceptions"
        }
        Vpconflictd | Vpconflictq => "overwrites its source as it goes in Bochs",
        Vpbroadcastmb2q | Vpbroadcastmw2d => "leaves the upper part of its destination in Bochs",
        _ => return None,
    })
}

/// Changes the state such that the comparison makes sense; false if that is not possible.
pub fn limit(instruction: &Instruction, case: &mut Case) -> bool {
    use Mnemonic::*;
    let Some(prefix) = prefix(&case.code) else { return true };
    let mnemonic = instruction.mnemonic();
    let has_memory = case.code[prefix + 5] < 0xc0;
    if matches!(mnemonic, Vpextrb | Vpextrw | Vpinsrb | Vpinsrw) && has_memory {
        return false;
    }
    let rounds = instruction.rounding_control() != RoundingControl::None;
    if instruction.suppress_all_exceptions() && !rounds {
        case.mxcsr = case.mxcsr & !RC | u32::from(case.code[prefix + 3] >> 5 & 3) << 13;
    }
    if (instruction.suppress_all_exceptions() || rounds) && case.mxcsr & FTZ != 0 {
        case.mxcsr |= MASKS;
    }
    case.mxcsr |= flags(instruction) << 7;
    let name = name(instruction);
    if name.starts_with("Vgetmant") {
        // So that it tells whether there was one.
        case.mxcsr &= !DE;
    } else if name.starts_with("Vscalef") {
        case.mxcsr &= !(DAZ | FTZ);
    } else if name.starts_with("Vreduce") {
        case.mxcsr &= !FTZ;
    }
    if instruction.is_vsib() && instruction.memory_index().number() >= 16 {
        return false;
    }
    if matches!(
        instruction.code(),
        Code::EVEX_Vgatherqps_ymm_k1_vm64z | Code::EVEX_Vpgatherqd_ymm_k1_vm64z
    ) {
        return false;
    }
    let has_immediate = has_immediate(instruction);
    if matches!(mnemonic, Vpsrlq | Vpsllq | Vpsraq) && has_immediate && instruction.immediate8() == 64 {
        return false;
    }
    let broadcasts = name.starts_with("Vbroadcast") || name.starts_with("Vpbroadcast");
    if broadcasts && has_memory && instruction.has_op_mask() {
        if instruction.code() == Code::EVEX_Vpbroadcastb_zmm_k1z_xmmm8 {
            return false;
        }
        case.k[instruction.op_mask().number()] |= 1;
    }
    true
}

/// What is not compared of MXCSR.
pub fn flags(instruction: &Instruction) -> u32 {
    let name = name(instruction);
    if name.starts_with("Vfm") || name.starts_with("Vfnm") {
        // With bit 3 of the immediate it is not to tell of precision, but Bochs's subtraction does.
        let silent = if instruction.immediate8() & 8 != 0 { PE } else { 0 };
        return DE | UE | silent;
    }
    if name.starts_with("Vreduce") {
        return DE | UE;
    }
    if ["Vscalef", "Vrange"].iter().any(|start| name.starts_with(start)) {
        return DE;
    }
    if is_unsigned(&name) { IE | PE } else { 0 }
}

/// A difference of which Bochs is the cause, for one of [`REASONS`].
pub fn forgives(case: &Case, expected: &Outcome, found: &Outcome) -> bool {
    const UD: u64 = 6;
    const MEMORY: [u64; 3] = [12, 13, 14];
    const XM: u64 = 19;
    let instruction = case.instruction();
    let Some(prefix) = prefix(&case.code) else { return false };
    if instruction.is_vsib() && MEMORY.contains(&expected.vector) && expected.vector == found.vector {
        return true;
    }
    let name = name(&instruction);
    let has_w = case.code[prefix + 2] & 0x80 != 0;
    let is_ignored = instruction.op_code().is_wig() || name.starts_with("Vextractps");
    if expected.vector == UD && has_w && is_ignored {
        return true;
    }
    let is_dbpsadbw = case.code[prefix + 1] & 7 == 3 && case.code[prefix + 4] == 0x42;
    if found.vector == UD && has_w && is_dbpsadbw {
        return true;
    }
    let loads_all = ["Vexpand", "Vpexpand", "Vpmovsx", "Vpmovzx", "Vbroadcast"];
    let loads_all = loads_all.iter().any(|start| name.starts_with(start)) || is_widening(&name);
    let loads_more = loads_all || instruction.code() == Code::EVEX_Vmovddup_xmm_k1z_xmmm64;
    if MEMORY.contains(&expected.vector) && found.is_done() && loads_more && instruction.has_op_mask() {
        return true;
    }
    let shifts_words = ["Vpsrlw", "Vpsraw", "Vpsllw"].contains(&name.as_str()) && has_immediate(&instruction);
    if MEMORY.contains(&expected.vector) && found.is_done() && shifts_words && instruction.has_op_mask() {
        return true;
    }
    let is_narrow = case.code[..prefix].contains(&0x67);
    let faults = MEMORY.contains(&expected.vector) || MEMORY.contains(&found.vector);
    if is_narrow && faults && instruction.has_op_mask() {
        return true;
    }
    let extracts = name.starts_with("Vextract") && instruction.has_op_mask();
    if extracts && MEMORY.contains(&found.vector) && expected.is_done() {
        return true;
    }
    let is_tiny_trapped = case.mxcsr & UE << 7 == 0 && name.starts_with("Vscalef");
    if is_tiny_trapped && found.vector == XM && expected.is_done() {
        return true;
    }
    let scales = ["Vcvtsd2ss", "Vcvtpd2ps"].contains(&name.as_str()) || name.starts_with("Vscalef");
    let unmasked = expected.mxcsr & u64::from(!case.mxcsr >> 7 & (OE | UE)) != 0;
    if scales && unmasked && expected.vector == found.vector && expected.mxcsr ^ found.mxcsr == u64::from(PE) {
        return true;
    }
    if name.starts_with("Vscalef") && is_lost_power(&name, expected, found) {
        return true;
    }
    let chooses_magnitude = name.starts_with("Vrange") && instruction.immediate8() & 0xe == 0x6;
    if chooses_magnitude && is_same_but_for_signs(&name, expected, found) {
        return true;
    }
    let silent = instruction.suppress_all_exceptions();
    if silent && (name == "Vcvtph2ps" || name.starts_with("Vgetmant")) {
        return true;
    }
    if name.starts_with("Vgetmant") && (expected.mxcsr | found.mxcsr) & u64::from(DE) != 0 {
        return true;
    }
    let truncates = name.starts_with("Vcvtt") && is_unsigned(&name);
    let loses_bits = ["Vcvtudq2", "Vcvtuqq2", "Vcvtusi2"]
        .iter()
        .any(|start| name.starts_with(start));
    truncates && (expected.mxcsr & u64::from(IE) != 0 || instruction.suppress_all_exceptions()) || loses_bits
}

/// Elements of Bochs are zero where the least denormal is due, if they are not the same, and underflow is not told.
fn is_lost_power(name: &str, expected: &Outcome, found: &Outcome) -> bool {
    let size = if name.ends_with('s') { 4 } else { 8 };
    let elements = expected.vectors.chunks(size).zip(found.vectors.chunks(size));
    let is_least = |bochs: &[u8], ours: &[u8]| {
        let top = bochs[size - 1];
        let is_zero = bochs[..size - 1].iter().all(|byte| *byte == 0) && top & 0x7f == 0;
        is_zero && ours[0] == 1 && ours[size - 1] == top && ours[1..size - 1].iter().all(|byte| *byte == 0)
    };
    let untold = found.mxcsr & !expected.mxcsr;
    expected.vector == found.vector
        && expected.mxcsr & !found.mxcsr == 0
        && untold & !u64::from(UE | PE) == 0
        && elements
            .into_iter()
            .all(|(bochs, ours)| bochs == ours || is_least(bochs, ours))
}

/// All elements have the same magnitude.
fn is_same_but_for_signs(name: &str, expected: &Outcome, found: &Outcome) -> bool {
    let size = if name.ends_with('s') { 4 } else { 8 };
    let signs = |(i, byte): (usize, &u8)| if i % size == size - 1 { byte & 0x7f } else { *byte };
    let magnitudes = |outcome: &Outcome| outcome.vectors.iter().enumerate().map(signs).collect::<Vec<_>>();
    expected.vector == found.vector && expected.mxcsr == found.mxcsr && magnitudes(expected) == magnitudes(found)
}

fn has_immediate(instruction: &Instruction) -> bool {
    (0..instruction.op_count()).any(|i| instruction.op_kind(i) == iced_x86::OpKind::Immediate8)
}

fn name(instruction: &Instruction) -> String {
    format!("{:?}", instruction.mnemonic())
}

/// A conversion to elements twice as wide.
fn is_widening(name: &str) -> bool {
    let from = [
        "Vcvtph2ps",
        "Vcvtdq2pd",
        "Vcvtudq2pd",
        "Vcvtps2pd",
        "Vcvtps2qq",
        "Vcvtps2uqq",
    ];
    from.contains(&name) || ["Vcvttps2qq", "Vcvttps2uqq"].contains(&name)
}

/// A conversion to unsigned integers.
fn is_unsigned(name: &str) -> bool {
    name.starts_with("Vcvt") && ["2udq", "2uqq", "2usi"].iter().any(|end| name.ends_with(end))
}

/// Where the EVEX prefix is.
fn prefix(bytes: &[u8]) -> Option<usize> {
    bytes.iter().take(4).position(|byte| *byte == 0x62)
}

/// Not to be tried: see [`REASONS`].
pub fn harms(instruction: &Instruction, bytes: &[u8]) -> bool {
    let Some(prefix) = prefix(bytes) else { return false };
    if instruction.is_invalid() && bytes[prefix + 1] & 0x10 == 0 {
        return true;
    }
    let has_displacement = bytes[prefix + 5] & 0xc0 == 0x40;
    if has_displacement && bytes[prefix + 3] & 0x10 != 0 && !instruction.is_broadcast() {
        return true;
    }
    let has_x = bytes[prefix + 1] & 0x40 == 0;
    let is_register = bytes[prefix + 5] >= 0xc0;
    let has_others = (0..instruction.op_count()).any(|i| {
        let register = instruction.op_register(i);
        register.is_gpr() || register.is_k()
    });
    has_x && is_register && (has_others || instruction.is_invalid())
}

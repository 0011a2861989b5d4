//! Operands of several parts: which fault comes first, and which parts cannot fault. The order is that of AMD's family 25.

use reprise_emulator::Cpu;
use reprise_emulator::cpu::Cr4;

use crate::world::{compatibility_mode, long_mode};

rows! { the_first_field_faults_before_a_later_one_is_beyond_the_limit in compatibility_mode(), ".code32\n";
    "BOUND's lower bound": "bound eax, [ebx]", ebx = 0xffff_fffa => fault = (14, Some(0));
    "BOUND's lower bound itself": "bound eax, [ebx]", ebx = 0xffff_fffd => fault = (13, Some(0));
    "the offset that LDS loads": ".byte 0xc5, 0x03", ebx = 0xffff_fffb => fault = (14, Some(0));
    "the offset that LSS loads": ".byte 0x0f, 0xb2, 0x03", ebx = 0xffff_fffb => fault = (14, Some(0));
    "the offset of a far jump": ".byte 0xff, 0x2b", ebx = 0xffff_fffb => fault = (14, Some(0));
    "the offset of a far call": ".byte 0xff, 0x1b", ebx = 0xffff_fffb => fault = (14, Some(0));
    "the control word of FLDENV": "fldenv [ebx]", ebx = 0xffff_fff0 => fault = (14, Some(0));
    "the control word of FLDENV itself": "fldenv [ebx]", ebx = 0xffff_fffe => fault = (13, Some(0));
    "the control word of FNSTENV": "fnstenv [ebx]", ebx = 0xffff_fff0 => fault = (14, Some(2));
    "the control word of FRSTOR with 16 bits": ".byte 0x66, 0xdd, 0x23", ebx = 0xffff_fffe => fault = (14, Some(0));
    "the control word of FNSAVE": "fnsave [ebx]", ebx = 0xffff_ffa0 => fault = (14, Some(2));
    "the significand that FLD loads": ".byte 0xdb, 0x2b", ebx = 0xffff_fff8 => fault = (14, Some(0));
    "the significand that FLD loads itself": ".byte 0xdb, 0x2b", ebx = 0xffff_fff9 => fault = (13, Some(0));
    "the significand that FSTP stores": ".byte 0xdb, 0x3b", ebx = 0xffff_fff8 => fault = (14, Some(2));
    "the low digits that FBLD loads": ".byte 0xdf, 0x23", ebx = 0xffff_fff8 => fault = (14, Some(0));
    "the low digits that FBSTP stores": ".byte 0xdf, 0x33", ebx = 0xffff_fff8 => fault = (14, Some(2));
    "the low digits that FBSTP stores themselves": ".byte 0xdf, 0x33", ebx = 0xffff_fff9 => fault = (13, Some(0));
}

rows! { fxsave_goes_around_the_end_of_the_address_size in compatibility_mode(), ".code32\n";
    "its last byte is there, and its first is not": ".byte 0x0f, 0xae, 0x03", ebx = 0xffff_fff0 => fault = (14, Some(2));
    "so it is for FXRSTOR": ".byte 0x0f, 0xae, 0x0b", ebx = 0xffff_fff0 => fault = (14, Some(0));
    "what is not aligned is #GP": ".byte 0x0f, 0xae, 0x03", ebx = 0xffff_fff8 => fault = (13, Some(0));
    "both ends are there": ".byte 0x67, 0x0f, 0xae, 0x07", bx = 0xfff0 => ;
}

rows! { maskmovdqu_looks_at_one_quadword_after_the_other in compatibility_mode(), ".code32\n";
    "the first is not there before the second is beyond the limit": "maskmovdqu xmm0, xmm1", edi = 0xffff_fff6
        => fault = (14, Some(2));
    "the first is beyond the limit": "maskmovdqu xmm0, xmm1", edi = 0xffff_fffa => fault = (13, Some(0));
}

rows! { movsxd;
    "to 16 bits reads 32": ".byte 0x66, 0x63, 0x03", rbx = 0x7fff_ffff_fffe => fault = (13, Some(0));
    "and keeps 16": ".byte 0x66, 0x63, 0x03", rax = 0, m = 0x1234_8765u32 => rax = 0x8765;
}

/// With `elements` of XMM1 selected.
fn selecting(elements: u64) -> Cpu {
    let mut cpu = compatibility_mode();
    cpu.cr4.0 |= Cr4::OSXSAVE;
    cpu.xcr0 = 7;
    let sign = |i: u64| (elements >> i & 1) << 31;
    cpu.fpu.vectors[1] = [sign(0) | sign(1) << 32, sign(2) | sign(3) << 32, 0, 0, 0, 0, 0, 0];
    cpu.refresh();
    cpu
}

rows! { masked_elements_are_looked_at_one_by_one in selecting(0b11), ".code32\n";
    "the first is not there before the second is beyond the limit": "vpmaskmovd xmm0, xmm1, [ebx]", ebx = 0xffff_fff9
        => fault = (14, Some(0));
    "so it is for stores": "vpmaskmovd [ebx], xmm1, xmm0", ebx = 0xffff_fff9 => fault = (14, Some(2));
}

rows! { a_masked_element_alone_is_beyond_the_limit in selecting(0b10), ".code32\n";
    "the second is beyond the limit": "vpmaskmovd xmm0, xmm1, [ebx]", ebx = 0xffff_fff9 => fault = (13, Some(0));
}

fn with_opmasks() -> Cpu {
    let mut cpu = long_mode();
    cpu.cr4.0 |= Cr4::OSXSAVE;
    cpu.xcr0 = 0xe7;
    cpu.refresh();
    cpu
}

rows! { an_opmask_suppresses_faults_but_for_class_e6nf in with_opmasks(), "";
    // vpmovdb [rbx]{k1}, zmm0
    "nothing selected, nothing stored": ".byte 0x62, 0xf2, 0x7e, 0x49, 0x31, 0x03", rbx = 0x20_0000_0000 => ;
    // vextractf32x4 [rbx]{k1}, zmm0, 1
    "VEXTRACTF32X4 faults all the same": ".byte 0x62, 0xf3, 0x7d, 0x49, 0x19, 0x03, 1", rbx = 0x20_0000_0000
        => fault = (14, Some(2));
    // vextracti64x4 [rbx]{k1}, zmm0, 1
    "VEXTRACTI64X4 faults all the same": ".byte 0x62, 0xf3, 0xfd, 0x49, 0x3b, 0x03, 1", rbx = 0x20_0000_0000
        => fault = (14, Some(2));
}

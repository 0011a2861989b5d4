//! MOV and its kin, XCHG, LEA, CMOVcc, SETcc, sign extensions, flags by themselves (SDM Vol. 2).

use crate::world::{D, M, STACK};

rows! { moves;
    "a byte load keeps the rest of the register": "mov al, [rbx]", rax = u64::MAX, m = 0u8 => rax = u64::MAX << 8;
    "a word load keeps the rest, too": "mov ax, [rbx]", rax = u64::MAX, m = 0u16 => rax = u64::MAX << 16;
    "a 32-bit load clears the upper half": "mov eax, [rbx]", rax = u64::MAX, m = 7u32 => rax = 7;
    "a store has the operand's width": "mov [rbx], ecx", rcx = 0x1122_3344_5566_7788, m = u64::MAX => m = 0xffff_ffff_5566_7788u64;
    "an immediate is sign-extended to 64 bits": "mov qword ptr [rbx], -2", m = 0u64 => m = -2i64 as u64;
    "a register takes 64 bits of immediate": "mov rcx, 0x1122334455667788", rcx = 0 => rcx = 0x1122_3344_5566_7788;
    "AH is stored as a byte": "mov [rbx], ah", ah = 0x12, m = 0u8 => m = 0x12u8;
    "base, scaled index and displacement add up": "mov eax, [rbx + rcx * 8 + 16]", rcx = 2, m_at = (32, 9u32) => rax = 9;
    "a negative index wraps": "mov eax, [rbx + rcx]", rcx = -4i64 as u64, rbx = M + 4, m = 9u32 => rax = 9;
    "a 32-bit address drops the upper halves": "mov eax, [ebx]", rbx = 0xffff_ffff_0000_0000 | M, m = 9u32 => rax = 9;
    "an offset of 64 bits": "movabs eax, [0x20000]", m = 9u32 => rax = 9;
    "FS adds its base": "mov eax, fs:[rbx]", m = 9u32 => rax = 9;
    "a load that crosses a page": "mov rax, [rbx + 0xffc]", m_at = (0xffc, 0x89ab_cdefu32) => rax = 0x89ab_cdef;
    "a non-canonical address is #GP": "mov al, [rbx]", rbx = 1 << 62 => fault = (13, Some(0));
    "a non-canonical address of the stack is #SS": "mov al, [rbp]", rbp = 1 << 62 => fault = (12, Some(0));
    "a prefix of SS makes no stack of it": ".byte 0x36, 0x8a, 0x03", rbx = 1 << 62 => fault = (13, Some(0));
    "nor a prefix of DS something else": ".byte 0x3e, 0x8a, 0x45, 0x00", rbp = 1 << 62 => fault = (12, Some(0));
    "a page that is not there is #PF": "mov al, [rbx]", rbx = 0x20_0000_0000 => fault = (14, Some(0));
    "MOVNTI stores": "movnti [rbx], rcx", rcx = 9, m = 0u64 => m = 9u64;
}

rows! { extensions;
    "MOVZX of a byte": "movzx eax, byte ptr [rbx]", rax = u64::MAX, m = 0x80u8 => rax = 0x80;
    "MOVSX of a byte to 16 bits": "movsx ax, byte ptr [rbx]", rax = 0, m = 0x80u8 => rax = 0xff80;
    "MOVSX of a word to 64 bits": "movsx rax, word ptr [rbx]", m = 0x8000u16 => rax = -0x8000i64 as u64;
    "MOVSXD": "movsxd rax, dword ptr [rbx]", m = 0x8000_0000u32 => rax = 0xffff_ffff_8000_0000;
    "MOVZX of a high byte": "movzx ecx, ah", ah = 0x99 => rcx = 0x99;
    "CBW": "cbw", ax = 0x0080 => ax = 0xff80;
    "CWDE": "cwde", ax = 0x8000 => rax = 0xffff_8000;
    "CDQE": "cdqe", eax = 0x8000_0000 => rax = 0xffff_ffff_8000_0000;
    "CWD": "cwd", ax = 0x8000 => dx = 0xffff;
    "CDQ": "cdq", eax = 0x7fff_ffff => edx = 0;
    "CQO": "cqo", rax = 1 << 63 => rdx = u64::MAX;
}

rows! { lea;
    "LEA adds and does not load": "lea rax, [rbx + rcx * 4 - 1]", rbx = 1 << 62, rcx = 2 => rax = (1 << 62) + 7;
    "a 32-bit result is truncated": "lea eax, [rbx]", rbx = u64::MAX => rax = 0xffff_ffff;
    "a 16-bit result keeps the rest": "lea ax, [rbx]", rax = 0, rbx = u64::MAX => rax = 0xffff;
    "a 32-bit address is truncated": "lea rax, [ebx + ecx]", ebx = 0xffff_ffff, ecx = 2 => rax = 1;
    "a segment's base does not count": "lea rax, fs:[rbx]", rbx = 5 => rax = 5;
    "relative to the next instruction": "lea rax, [rip + 0x10]", rax = 0 => rax = crate::world::CODE + 7 + 0x10;
}

rows! { exchanges;
    "XCHG with memory": "xchg [rbx], rcx", rcx = 1, m = 2u64 => rcx = 2, m = 1u64;
    "XCHG of bytes": "xchg [rbx], ch", ch = 1, m = 2u8 => ch = 2, m = 1u8;
    "XCHG of registers at 32 bits clears both upper halves": "xchg ecx, edx", rcx = u64::MAX, rdx = 1 => rcx = 1, rdx = 0xffff_ffff;
    "XCHG with the accumulator": "xchg r8, rax", rax = 1, r8 = 2 => rax = 2, r8 = 1;
    "NOP is no XCHG: the upper half stays": "nop", rax = u64::MAX => ;
    "BSWAP of 32 bits": "bswap ecx", rcx = 0xffff_ffff_1122_3344 => rcx = 0x4433_2211;
    "BSWAP of 64 bits": "bswap r8", r8 = 0x1122_3344_5566_7788 => r8 = 0x8877_6655_4433_2211;
    "XLAT looks AL up": "xlatb", rax = 0xff05, m_at = (5, 0x77u8) => al = 0x77;
}

rows! { conditions;
    "CMOV moves": "cmovb rax, [rbx]", rax = 1, m = 2u64, f = CF => rax = 2;
    "CMOV that does not move clears the upper half": "cmovb eax, [rbx]", rax = u64::MAX, m = 2u32, f = 0 => rax = 0xffff_ffff;
    "CMOV that does not move still loads": "cmove eax, [rbx]", rbx = 1 << 62, f = 0 => fault = (13, Some(0));
    "CMOV of 16 bits keeps the rest": "cmovne cx, [rbx]", rcx = 0, m = 0xffffu16, f = 0 => rcx = 0xffff;
    "greater": "setg byte ptr [rbx]", m = 0xffu8, f = SF | OF => m = 1u8;
    "not greater, since equal": "setg cl", f = ZF => cl = 0;
    "less": "setl cl", f = OF => cl = 1;
    "less or equal": "setle cl", f = ZF => cl = 1;
    "above": "seta cl", f = 0 => cl = 1;
    "not above, since below": "seta cl", f = CF => cl = 0;
    "parity even": "setp ch", f = PF => ch = 1;
    "overflow": "seto [rbx]", m = 0u8, f = OF => m = 1u8;
    "no sign": "setns cl", f = SF => cl = 0;
}

rows! { flags;
    "CLC": "clc", => f = 0;
    "STC": "stc", => f = CF;
    "CMC sets": "cmc", f = 0 => f = CF;
    "CMC clears": "cmc", f = CF => f = 0;
    "STD": "std", => f = DF;
    "CLD": "cld", f = DF => f = 0;
    "LAHF gives all but OF, and the bit that is always one": "lahf", f = SF | ZF | AF | PF | CF => ah = 0xd7;
    "SAHF takes all but OF": "sahf", ah = 0xff => f = SF | ZF | AF | PF | CF;
}

rows! { hints;
    "PREFETCHNTA of nowhere does nothing": "prefetchnta [rbx]", rbx = 1 << 62 => ;
    "PREFETCHW does nothing": "prefetchw [rbx]", rbx = 1 << 62 => ;
    "a long NOP does nothing": "nop dword ptr [rbx + rax]", rbx = 1 << 62 => ;
    "ENDBR64 does nothing": "endbr64", rax = 0 => ;
    "RDSSPQ without shadow stacks does nothing": "rdsspq rax", rax = 5 => ;
    "PAUSE does nothing": "pause", rax = 0 => ;
    "fences do nothing to registers": "mfence", rax = 0 => ;
    "CLFLUSH of nowhere is #GP": "clflush [rbx]", rbx = 1 << 62 => fault = (13, Some(0));
}

/// The other registers mean what the rows above take them to mean.
#[test]
fn the_registers_of_a_row_point_at_its_pages() {
    let cpu = crate::world::long_mode();
    assert_eq!([3, 6, 7, 4].map(|register| cpu.gpr.get(register)), [M, M, D, STACK]);
}

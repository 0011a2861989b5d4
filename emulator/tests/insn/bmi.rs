//! BMI1 and BMI2 (SDM Vol. 2).

use crate::world::D;

rows! { bmi1;
    "ANDN inverts the first source": "andn eax, ecx, [rbx]", ecx = 0xf0, m = 0xffu32 => rax = 0x0f, f = 0;
    "ANDN of itself is zero": "andn rax, rcx, rcx", rcx = 5 => rax = 0, f = ZF;
    "BEXTR takes start and length": "bextr eax, [rbx], ecx", ecx = 0x0804, m = 0x12345u32 => rax = 0x34, f = 0;
    "BEXTR of no bits": "bextr rax, [rbx], rcx", rcx = 0x0004, m = u64::MAX => rax = 0, f = ZF;
    "BEXTR from beyond the operand": "bextr rax, [rbx], rcx", rcx = 0xff_40, m = u64::MAX => rax = 0, f = ZF;
    "BLSI leaves the lowest bit, and carries if there is one": "blsi eax, [rbx]", m = 0x60u32 => rax = 0x20, f = CF;
    "BLSI of nothing": "blsi rax, [rbx]", m = 0u64 => rax = 0, f = ZF;
    "BLSMSK masks up to the lowest bit": "blsmsk eax, [rbx]", m = 0x60u32 => rax = 0x3f, f = 0;
    "BLSMSK of nothing is all ones, and carries": "blsmsk rax, [rbx]", m = 0u64 => rax = u64::MAX, f = CF | SF;
    "BLSR drops the lowest bit": "blsr eax, [rbx]", m = 0x60u32 => rax = 0x40, f = 0;
}

rows! { bmi2;
    "BZHI keeps the low bits": "bzhi eax, [rbx], ecx", ecx = 4, m = 0xffu32 => rax = 0x0f, f = 0;
    "BZHI looks at eight bits of its index": "bzhi rax, [rbx], rcx", rcx = 0x101, m = 3u64 => rax = 1, f = 0;
    "BZHI from beyond the operand changes nothing, and carries": "bzhi eax, [rbx], ecx", ecx = 32, m = 3u32 => rax = 3, f = CF;
    "MULX multiplies with RDX, and no flags": "mulx rcx, rax, [rbx]", rdx = u64::MAX, m = 2u64 => rcx = 1, rax = u64::MAX - 1;
    "of one destination MULX leaves the high half": "mulx eax, eax, [rbx]", edx = 0x8000_0000, m = 6u32 => rax = 3;
    "PDEP scatters low bits to a mask": "pdep eax, ecx, [rbx]", ecx = 0b101, m = 0xf0u32 => rax = 0x50;
    "PEXT collects them": "pext rax, rcx, [rbx]", rcx = 0x50, m = 0xf0u64 => rax = 0b101;
    "RORX rotates by an immediate": "rorx eax, [rbx], 4", m = 0x1234_5678u32 => rax = 0x8123_4567;
    "SARX keeps the sign": "sarx eax, [rbx], ecx", ecx = 36, m = 0x8000_0000u32 => rax = 0xf800_0000;
    "SHLX": "shlx rax, [rbx], rcx", rcx = 65, m = 3u64 => rax = 6;
    "SHRX": "shrx eax, [rbx + rcx * 4], ecx", ecx = 1, m_at = (4, 6u32) => rax = 3;
    "a 32-bit address": "shrx eax, [ebx], ecx", ecx = 1, m = 6u32 => rax = 3;
    "far away": "shlx rax, [rdi + 8], rcx", rdi = D, rcx = 1, d_at = (8, 3u64) => rax = 6;
}

rows! { protected_mode in crate::world::protected_mode(), ".code32\n";
    "ANDN in 32-bit code": "andn eax, ecx, [ebx]", ecx = 0xf0, m = 0xffu32 => rax = 0x0f, f = 0;
}

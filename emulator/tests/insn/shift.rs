//! Shifts and rotates (SDM Vol. 2). What the manual leaves undefined is in `native`.

rows! { shifts;
    "SHL by one: the sign goes to the carry": "shl byte ptr [rbx], 1", m = 0x81u8 => m = 0x02u8, f = CF | OF;
    "SHL by CL": "shl qword ptr [rbx], cl", cl = 63, m = 1u64 => m = 1u64 << 63, f = SF | PF;
    "a count is taken modulo 32": "shl eax, cl", eax = 1, cl = 33 => eax = 2, f = 0;
    "and modulo 64 at 64 bits": "shr rax, cl", rax = 2, cl = 65 => rax = 1, f = 0;
    "SHR by one overflows if the sign was set": "shr eax, 1", eax = 0x8000_0000 => eax = 0x4000_0000, f = OF | PF;
    "SAR fills with the sign": "sar word ptr [rbx], 4", m = 0x8008u16 => m = 0xf800u16, f = CF | SF | PF;
    "SAR by more than the width leaves only signs": "sar byte ptr [rbx], 31", m = 0x80u8 => m = 0xffu8, f = CF | SF | PF;
    "SHL by more than the width leaves nothing": "shl byte ptr [rbx], 9", m = 0xffu8 => m = 0u8, f = ZF | PF;
    "a count of zero changes no flag": "shl dword ptr [rbx], 32", m = 5u32 => ;
    "a count of zero in CL changes no flag": "sar rax, cl", rax = 5, cl = 64 => ;
    "a count of zero clears the upper half": "shr eax, cl", rax = u64::MAX, cl = 0 => rax = 0xffff_ffff;
}

rows! { rotates;
    "ROL carries the bit that comes in": "rol byte ptr [rbx], 1", m = 0x80u8 => m = 0x01u8, f = CF | OF;
    "ROL by a whole turn still sets the carry": "rol byte ptr [rbx], 8", m = 0x01u8 => m = 0x01u8, f = CF;
    "ROR carries the sign": "ror eax, 1", eax = 1 => eax = 0x8000_0000, f = CF | OF;
    "RCL takes the carry in": "rcl byte ptr [rbx], 1", m = 0x80u8, f = CF => m = 0x01u8, f = CF | OF;
    "RCL by nine is a whole turn of nine bits": "rcl byte ptr [rbx], 9", m = 0x55u8, f = CF => m = 0x55u8, f = CF;
    "RCR takes the carry in at the top": "rcr rax, 1", rax = 1, f = CF => rax = 1 << 63, f = CF | OF;
    "RCR by CL": "rcr word ptr [rbx], cl", cl = 4, m = 0x000fu16, f = 0 => m = 0xe000u16, f = CF;
}

rows! { double_shifts;
    "SHLD fills from the source's top": "shld dword ptr [rbx], ecx, 8", ecx = 0xab00_0000, m = 0x0012_3456u32 => m = 0x1234_56abu32, f = 0;
    "SHRD fills from the source's bottom": "shrd [rbx], rcx, cl", rcx = 8, m = 0x100u64 => m = 0x0800_0000_0000_0001u64, f = 0;
    "SHLD by one overflows if the sign changes": "shld ax, dx, 1", ax = 0x4000, dx = 0x8000 => ax = 0x8001, f = OF | SF;
    "a count of zero changes nothing": "shld [rbx], ecx, cl", ecx = 32, m = 5u32 => ;
}

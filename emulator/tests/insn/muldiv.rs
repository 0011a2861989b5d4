//! MUL, IMUL, DIV, IDIV (SDM Vol. 2).

rows! { multiplication;
    "bytes multiply into AX": "mul byte ptr [rbx]", ax = 0xffff, m = 0xffu8 => ax = 0xfe01, f = CF | OF;
    "a product that fits has no carry": "mul dword ptr [rbx]", rax = 3, rdx = u64::MAX, m = 5u32 => rax = 15, rdx = 0, f = 0;
    "64 bits multiply into 128": "mul qword ptr [rbx]", rax = u64::MAX, m = u64::MAX => rax = 1, rdx = u64::MAX - 1, f = CF | OF;
    "IMUL is signed": "imul word ptr [rbx]", ax = 0xffff, m = 0xffffu16 => ax = 1, dx = 0, f = 0;
    "IMUL carries if the upper half is more than signs": "imul byte ptr [rbx]", al = 0x40, m = 2u8 => ax = 0x80, f = CF | OF;
    "two operands": "imul eax, [rbx]", eax = -3i64 as u64, m = 7u32 => eax = -21i64 as u64, f = 0;
    "two operands lose the upper half": "imul rax, [rbx]", rax = 1 << 62, m = 4u64 => rax = 0, f = CF | OF;
    "three operands": "imul cx, [rbx], -2", m = 0x4000u16 => cx = 0x8000, f = 0;
    "three operands with a wide immediate": "imul rcx, [rbx], 0x10000", m = 1u64 => rcx = 0x1_0000, f = 0;
}

rows! { division;
    "AX by a byte": "div byte ptr [rbx]", ax = 0x0105, m = 0x10u8 => al = 0x10, ah = 5, f = 0;
    "128 bits by 64": "div qword ptr [rbx]", rdx = 1, rax = 0, m = 2u64 => rax = 1 << 63, rdx = 0, f = 0;
    "a 32-bit quotient clears upper halves": "div dword ptr [rbx]", rax = u64::MAX << 32 | 7, rdx = u64::MAX << 32, m = 2u32 => rax = 3, rdx = 1, f = 0;
    "by zero is #DE": "div word ptr [rbx]", m = 0u16 => fault = (0, None);
    "a quotient too wide is #DE": "div byte ptr [rbx]", ax = 0x1000, m = 0x10u8 => fault = (0, None);
    "a 128-bit quotient too wide is #DE": "div qword ptr [rbx]", rdx = 2, rax = 0, m = 2u64 => fault = (0, None);
    "IDIV rounds to zero and the remainder has the dividend's sign": "idiv byte ptr [rbx]", ax = -7i64 as u64, m = 2u8 => al = -3i64 as u64, ah = -1i64 as u64, f = 0;
    "the smallest by -1 is #DE": "idiv dword ptr [rbx]", edx = u64::MAX, eax = 0x8000_0000, m = -1i32 as u32 => fault = (0, None);
    "the smallest of 128 bits by -1 is #DE": "idiv qword ptr [rbx]", rdx = 1 << 63, rax = 0, m = u64::MAX => fault = (0, None);
    "a quotient of -128 fits a byte": "idiv byte ptr [rbx]", ax = -128i64 as u64, m = 1u8 => al = 0x80, ah = 0, f = 0;
    "IDIV by zero is #DE": "idiv qword ptr [rbx]", m = 0u64 => fault = (0, None);
}

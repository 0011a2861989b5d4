//! ADD to CMP, INC and DEC, NEG and NOT, XADD, CMPXCHG, CMPXCHG8B/16B (SDM Vol. 2).

rows! { add;
    "one and one is two": "add al, [rbx]", al = 1, m = 1u8 => al = 2, f = 0;
    "a carry out of bit 3 is AF": "add al, [rbx]", al = 0x0f, m = 1u8 => al = 0x10, f = AF;
    "a byte that wraps is zero with a carry": "add al, [rbx]", al = 0xff, m = 1u8 => al = 0, f = CF | PF | AF | ZF;
    "crossing into the sign overflows": "add ax, [rbx]", ax = 0x7fff, m = 1u16 => ax = 0x8000, f = OF | SF | AF | PF;
    "a 32-bit result clears the upper half": "add eax, [rbx]", rax = u64::MAX, m = 2u32 => rax = 1, f = CF | AF;
    "64 bits carry out of the top": "add rax, [rbx]", rax = 1 << 63, m = 1u64 << 63 => rax = 0, f = OF | CF | ZF | PF;
    "memory is a destination": "add [rbx], ecx", ecx = 5, m = 6u32 => m = 11u32, f = 0;
    "a byte immediate is sign-extended": "add qword ptr [rbx], -1", m = 1u64 => m = 0u64, f = CF | AF | ZF | PF;
    "a locked addition is the same addition": "lock add [rbx], cx", cx = 0x8000, m = 0x8000u16 => m = 0u16, f = OF | CF | ZF | PF;
    "the high byte of a register is an operand": "add ah, bh", ah = 1, bh = 2 => ah = 3, f = PF;
    "an operand that crosses a page is one operand": "add [rbx + 0xffe], cl", cl = 2, m_at = (0xffe, 0xfeu8) => m_at = (0xffe, 0u8), f = CF | AF | ZF | PF;
}

rows! { adc;
    "a carry alone ripples through a byte": "adc al, [rbx]", al = 0xff, m = 0u8, f = CF => al = 0, f = CF | PF | AF | ZF;
    "without a carry it is an addition": "adc al, [rbx]", al = 0xff, m = 0u8, f = 0 => al = 0xff, f = SF | PF;
    "all ones and a carry leave all ones": "adc rax, [rbx]", rax = u64::MAX, m = u64::MAX, f = CF => rax = u64::MAX, f = SF | PF | AF | CF;
    "a carry can be what overflows": "adc al, [rbx]", al = 0x7f, m = 0u8, f = CF => al = 0x80, f = AF | SF | OF;
    "memory takes the carry, too": "lock adc dword ptr [rbx], 0", m = 0xffff_ffffu32, f = CF => m = 0u32, f = CF | PF | AF | ZF;
}

rows! { sub_sbb_cmp;
    "equals leave zero": "sub eax, [rbx]", eax = 7, m = 7u32 => eax = 0, f = ZF | PF;
    "a smaller number borrows": "sub al, [rbx]", al = 0, m = 1u8 => al = 0xff, f = CF | AF | SF | PF;
    "the most negative number less one overflows": "sub ax, 1", ax = 0x8000 => ax = 0x7fff, f = OF | AF | PF;
    "a borrow is subtracted as well": "sbb rax, [rbx]", rax = 5, m = 4u64, f = CF => rax = 0, f = ZF | PF;
    "a borrow and all ones borrow again": "sbb al, [rbx]", al = 0, m = 0xffu8, f = CF => al = 0, f = CF | AF | ZF | PF;
    "SBB of a register with itself spreads the carry": "sbb eax, eax", f = CF => eax = 0xffff_ffff, f = CF | AF | SF | PF;
    "CMP leaves its operands": "cmp [rbx], rcx", rcx = 1, m = 0u64 => f = CF | AF | SF | PF;
    "CMP with an immediate does not write": "cmp byte ptr [rbx], 0x80", m = 0x7fu8 => f = CF | SF | PF | OF;
    "CMP from memory": "cmp cx, [rbx]", cx = 3, m = 3u16 => f = ZF | PF;
}

rows! { logic;
    "AND clears carry and overflow": "and eax, [rbx]", eax = 0xff00, m = 0x0ff0u32 => eax = 0x0f00, f = PF;
    "OR sets the sign": "or [rbx], cl", cl = 0x80, m = 0x01u8 => m = 0x81u8, f = SF | PF;
    "XOR with itself is zero": "xor r8, r8", r8 = 5 => r8 = 0, f = ZF | PF;
    "XOR of memory, locked": "lock xor qword ptr [rbx], -1", m = 0u64 => m = u64::MAX, f = SF | PF;
    "TEST is an AND that nobody keeps": "test [rbx], al", al = 0x80, m = 0xffu8 => f = SF;
    "TEST with an immediate sign-extends it": "test rax, -0x80000000", rax = 1 << 40 => f = PF;
}

rows! { increment;
    "INC keeps the carry": "inc byte ptr [rbx]", m = 0xffu8 => m = 0u8, f = ZF | AF | PF;
    "INC overflows from the largest": "inc eax", eax = 0x7fff_ffff => eax = 0x8000_0000, f = OF | SF | AF | PF;
    "DEC keeps the carry": "dec rcx", rcx = 0 => rcx = u64::MAX, f = SF | AF | PF;
    "DEC overflows from the smallest, locked": "lock dec word ptr [rbx]", m = 0x8000u16 => m = 0x7fffu16, f = OF | AF | PF;
    "NEG of zero does not carry": "neg dword ptr [rbx]", m = 0u32 => m = 0u32, f = ZF | PF;
    "NEG of the smallest overflows": "neg al", al = 0x80 => al = 0x80, f = CF | OF | SF;
    "NOT changes no flag": "lock not qword ptr [rbx]", m = 0u64 => m = u64::MAX;
}

rows! { exchange_and_add;
    "the register takes the old value": "xadd [rbx], ecx", rcx = u64::MAX, m = 2u32 => ecx = 2, m = 1u32, f = CF | AF;
    "locked": "lock xadd [rbx], rcx", rcx = 1, m = u64::MAX => rcx = u64::MAX, m = 0u64, f = CF | AF | ZF | PF;
    "a register added to itself is doubled": "xadd cl, cl", cl = 0x41 => cl = 0x82, f = SF | OF | PF;
    "between registers": "xadd cx, dx", cx = 1, dx = 2 => cx = 3, dx = 1, f = PF;
}

rows! { compare_and_exchange;
    "equal: the destination is replaced": "lock cmpxchg [rbx], rcx", rax = 5, rcx = 9, m = 5u64 => m = 9u64, f = ZF | PF;
    "different: the accumulator learns it": "lock cmpxchg [rbx], ecx", rax = u64::MAX, ecx = 9, m = 5u32 => eax = 5, f = SF | PF;
    "without LOCK it is the same": "cmpxchg [rbx], cl", al = 1, cl = 2, m = 0u8 => al = 0, f = 0;
    "an equal 32-bit accumulator keeps its upper half": "cmpxchg [rbx], ecx", rax = 7 << 32, ecx = 1, m = 0u32 => m = 1u32, f = ZF | PF;
    "a register that differs keeps its upper half": "cmpxchg edx, ecx", rdx = 3 << 32 | 1, eax = 2, ecx = 1 => eax = 1, f = 0;
    "8 bytes, equal": "lock cmpxchg8b [rbx]", edx = 1, eax = 2, ecx = 3, rbx = crate::world::M, m = 1u64 << 32 | 2 => m = 3u64 << 32 | crate::world::M, f = ZF;
    "8 bytes, different": "cmpxchg8b [rbx]", rdx = 0, rax = 0, m = 7u64 << 32 | 6 => edx = 7, eax = 6, f = 0;
    "16 bytes, equal": "lock cmpxchg16b [rbx]", rdx = 1, rax = 2, rcx = 3, m = 1u128 << 64 | 2 => m = 3u128 << 64 | u128::from(crate::world::M), f = ZF;
    "16 bytes, different": "lock cmpxchg16b [rbx]", rdx = 1, rax = 2, rcx = 3, m = 1u128 << 64 | 3 => rax = 3, f = 0;
    "16 bytes that are not aligned are #GP": "cmpxchg16b [rbx + 8]", rdx = 1 => fault = (13, Some(0));
}

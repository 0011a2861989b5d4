//! MOVS, STOS, LODS, SCAS, CMPS, INS, OUTS, with REP and without (SDM Vol. 2).

use crate::world::{D, M};

rows! { once;
    "MOVSB": "movsb", m = 7u8, d = 0u8, f = 0 => d = 7u8, rsi = M + 1, rdi = D + 1;
    "MOVSQ downwards": "movsq", m = 7u64, d = 0u64, f = DF => d = 7u64, rsi = M - 8, rdi = D - 8;
    "STOSD": "stosd", eax = 9, d = 0u32, f = 0 => d = 9u32, rdi = D + 4;
    "LODSW": "lodsw", rax = 0, m = 0x1234u16, f = 0 => ax = 0x1234, rsi = M + 2;
    "SCASB compares the accumulator with memory": "scasb", al = 5, d = 6u8, f = 0 => rdi = D + 1, f = CF | AF | SF | PF;
    "CMPSD compares source with destination": "cmpsd", m = 6u32, d = 5u32, f = 0 => rsi = M + 4, rdi = D + 4, f = 0;
    "32-bit addresses clear upper halves": "movsb [edi], [esi]", m = 7u8, rsi = 7 << 32 | M, f = 0 => d = 7u8, rsi = M + 1, rdi = D + 1;
    "a source beyond memory is #PF and nothing moves": "movsb", rsi = 0x20_0000_0000, f = 0 => fault = (14, Some(0));
}

rows! { repeated;
    "REP MOVSB": "rep movsb", rcx = 3, m = [1, 2, 3, 4], f = 0 => d = [1, 2, 3], rcx = 0, rsi = M + 3, rdi = D + 3;
    "REP MOVSQ over a page's end": "rep movsq", rcx = 2, rsi = M + 0xff0, m_at = (0xff0, 5u128 << 64 | 6), f = 0
        => d = 5u128 << 64 | 6, rcx = 0, rsi = M + 0x1000, rdi = D + 16;
    "a destination one byte above the source repeats it": "rep movsb", rcx = 4, rdi = M + 1, m = [1, 2, 3, 4, 5, 6], f = 0
        => m = [1, 1, 1, 1, 1, 6], rcx = 0, rsi = M + 4, rdi = M + 5;
    "a destination one byte above, by words": "rep movsw", rcx = 2, rdi = M + 1, m = [1, 2, 3, 4, 5, 6], f = 0
        => m = [1, 1, 2, 2, 4, 6], rcx = 0, rsi = M + 4, rdi = M + 5;
    "downwards": "rep movsb", rcx = 2, rsi = M + 1, rdi = D + 1, m = [1, 2, 3], f = DF => d = [1, 2], rcx = 0, rsi = M - 1, rdi = D - 1;
    "a count of zero does nothing, not even fault": "rep movsb", rcx = 0, rsi = 1 << 62, f = 0 => ;
    "REP STOSD": "rep stosd", rcx = 3, eax = 0x0102_0304, f = 0 => d = [4, 3, 2, 1, 4, 3, 2, 1, 4, 3, 2, 1], rcx = 0, rdi = D + 12;
    "REP STOSB of zeros": "rep stosb", rcx = 3, al = 0, d = [1, 1, 1, 1], f = 0 => d = [0, 0, 0], rcx = 0, rdi = D + 3;
    "a count in ECX": "rep stosb [edi], al", rcx = 7 << 32 | 2, al = 5, f = 0 => d = [5, 5], rcx = 0, rdi = D + 2;
    "REPNE SCASB finds": "repne scasb", rcx = 9, al = 0, d = [1, 2, 0, 3], f = 0 => rcx = 6, rdi = D + 3, f = ZF | PF;
    "REPE CMPSB stops at the difference": "repe cmpsb", rcx = 9, m = [1, 2, 3], d = [1, 2, 4], f = 0 => rcx = 6, rsi = M + 3, rdi = D + 3, f = CF | AF | SF | PF;
    "REPE CMPSB of nothing keeps the flags": "repe cmpsb", rcx = 0, f = 0 => ;
    "REP LODSB leaves the last": "rep lodsb", rcx = 3, m = [1, 2, 3], f = 0 => al = 3, rcx = 0, rsi = M + 3;
}

rows! { ports;
    "INSB": "insb", dx = 0x42, d = 0u8, f = 0 => d = 0x42u8, rdi = D + 1;
    "REP INSW": "rep insw", dx = 0x42, rcx = 2, f = 0 => d = [0x42, 0x42, 0x42, 0x42], rcx = 0, rdi = D + 4;
    "OUTSD": "outsd", dx = 0x42, m = 7u32, f = 0 => rsi = M + 4;
    "REP OUTSB": "rep outsb", dx = 0x42, rcx = 3, f = 0 => rcx = 0, rsi = M + 3;
}

//! MOVDIRI and MOVDIR64B (SDM Vol. 2).

use crate::world::{D, M};

/// A line that no two bytes of are equal.
const LINE: [u8; 64] = {
    let mut line = [0; 64];
    let mut i = 0;
    while i < 64 {
        line[i] = i as u8 + 1;
        i += 1;
    }
    line
};

rows! { direct_stores;
    "MOVDIRI stores": "movdiri [rbx], ecx", ecx = 0x1234_5678 => m = 0x1234_5678u32;
    "MOVDIRI stores a quadword": "movdiri [rbx + 8], rcx", rcx = 0x1234_5678_9abc_def0 => m_at = (8, 0x1234_5678_9abc_def0u64);
    "MOVDIR64B moves a line": "movdir64b rdi, [rbx + 3]", m_at = (3, LINE) => d = LINE;
    "a line onto itself": "movdir64b rdi, [rbx + 32]", rdi = M + 64, m_at = (32, LINE) => m_at = (64, LINE);
    "32-bit addresses": "movdir64b edi, [ebx]", rdi = D | 1 << 32, m = LINE => d = LINE;
    "the destination must be aligned": "movdir64b rdi, [rbx]", rdi = D + 32, m = LINE => fault = (13, Some(0));
    "and must be canonical": "movdir64b rdi, [rbx]", rdi = 1 << 62, m = LINE => fault = (13, Some(0));
}

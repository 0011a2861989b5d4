//! BT, BTS, BTR, BTC, BSF, BSR, POPCNT, TZCNT, LZCNT (SDM Vol. 2).

use crate::world::M;

rows! { bit_tests;
    "BT copies the bit to the carry": "bt dword ptr [rbx], 5", m = 0x20u32 => f = CF;
    "an immediate is taken modulo the width": "bt dword ptr [rbx], 37", m = 0x20u32 => f = CF;
    "BTS": "bts qword ptr [rbx], 63", m = 0u64 => m = 1u64 << 63, f = 0;
    "BTR, locked": "lock btr word ptr [rbx], 15", m = 0x8001u16 => m = 1u16, f = CF;
    "BTC": "btc [rbx], ecx", ecx = 3, m = 8u32 => m = 0u32, f = CF;
    "a register's offset reaches beyond the operand": "lock bts [rbx], ecx", ecx = 100, m_at = (12, 0u32) => m_at = (12, 0x10u32), f = 0;
    "a negative offset reaches before it": "btr [rbx], rcx", rbx = M + 8, rcx = -1i64 as u64, m = 1u64 << 63 => m = 0u64, f = CF;
    "a 32-bit offset is signed": "bt [rbx], ecx", rbx = M + 4, rcx = 0xffff_ffff, m = 1u32 << 31 => f = CF;
    "a register's bit": "bts rax, rcx", rax = 0, rcx = 64 + 4 => rax = 16, f = 0;
    "BT leaves the upper half": "bt eax, 0", rax = u64::MAX => f = CF;
}

rows! { scans;
    "BSF finds the lowest": "bsf rax, [rbx]", m = 0x8000_0000_0000_0100u64 => rax = 8, f = 0;
    "BSR finds the highest": "bsr eax, [rbx]", m = 0x0001_0100u32 => rax = 16, f = 0;
    "of zero BSF leaves the destination whole": "bsf eax, [rbx]", rax = u64::MAX, m = 0u32 => f = ZF;
    "of zero BSR leaves the destination whole": "bsr ax, cx", rax = 5, cx = 0 => f = ZF;
    "POPCNT counts": "popcnt rax, [rbx]", m = u64::MAX => rax = 64, f = 0;
    "POPCNT of nothing": "popcnt ax, [rbx]", rax = u64::MAX, m = 0u16 => ax = 0, f = ZF;
    "TZCNT of zero is the width, and carries": "tzcnt ax, [rbx]", m = 0u16 => ax = 16, f = CF;
    "LZCNT counts down from the operand's own top": "lzcnt eax, [rbx]", m = 0x0001_0000u32 => rax = 15, f = 0;
    "LZCNT of the highest bit is zero": "lzcnt rax, [rbx]", m = 1u64 << 63 => rax = 0, f = ZF;
}

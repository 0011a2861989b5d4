//! JMP, CALL, RET, Jcc, LOOP, JCXZ (SDM Vol. 2).

use crate::world::{CODE, STACK, narrow_mode, protected_mode};

rows! { jumps;
    "forwards": ".byte 0xeb, 0x10", => next = 0x12;
    "backwards": ".byte 0xeb, 0x80", => next = 2 - 128;
    "by 32 bits": ".byte 0xe9, 0x00, 0x01, 0x00, 0x00", => next = 0x105;
    "to a register": "jmp rax", rax = CODE + 0x20 => next = 0x20;
    "through memory": "jmp [rbx]", m = CODE + 0x20 => next = 0x20;
    "to where is not canonical is #GP of the jump": "jmp rax", rax = 1 << 62 => fault = (13, Some(0));
    "taken": ".byte 0x74, 0x10", f = ZF => next = 0x12;
    "not taken": ".byte 0x74, 0x10", f = 0 => ;
    "greater, by 32 bits": ".byte 0x0f, 0x8f, 0x10, 0x00, 0x00, 0x00", f = SF | OF => next = 0x16;
    "not greater": ".byte 0x7f, 0x10", f = SF => ;
    "below or equal": ".byte 0x76, 0x10", f = CF => next = 0x12;
}

rows! { calls;
    "pushes the next instruction": ".byte 0xe8, 0x10, 0, 0, 0", => next = 0x15, s = (-8, CODE + 5), rsp = STACK - 8;
    "to a register": "call rax", rax = CODE + 0x20 => next = 0x20, s = (-8, CODE + 2), rsp = STACK - 8;
    "through memory": "call [rbx]", m = CODE + 0x20 => next = 0x20, s = (-8, CODE + 2), rsp = STACK - 8;
    "through RSP reads before it pushes": "call rsp", rsp = CODE + 0x100 => next = 0x100, rsp = CODE + 0xf8;
    "where the return address cannot be pushed is looked at first": "call rax", rax = 1 << 62, rsp = 0x7000_0000 => fault = (14, Some(2));
    "to where is not canonical pushes nothing": "call rax", rax = 1 << 62 => fault = (13, Some(0));
    "RET pops": "ret", s = (0, CODE + 0x20) => next = 0x20, rsp = STACK + 8;
    "RET releases parameters": "ret 0x10", s = (0, CODE + 0x20) => next = 0x20, rsp = STACK + 0x18;
    "RET to where is not canonical pops nothing": "ret", s = (0, 1u64 << 62) => fault = (13, Some(0));
}

rows! { loops;
    "LOOP counts down": ".byte 0xe2, 0x10", rcx = 2 => rcx = 1, next = 0x12;
    "LOOP ends at zero": ".byte 0xe2, 0x10", rcx = 1 => rcx = 0;
    "LOOP from zero wraps": ".byte 0xe2, 0x10", rcx = 0 => rcx = u64::MAX, next = 0x12;
    "LOOP by ECX": ".byte 0x67, 0xe2, 0x10", rcx = 7 << 32 | 1 => rcx = 0;
    "LOOPE ends when not equal": ".byte 0xe1, 0x10", rcx = 5, f = 0 => rcx = 4;
    "LOOPE goes on while equal": ".byte 0xe1, 0x10", rcx = 5, f = ZF => rcx = 4, next = 0x12;
    "LOOPNE goes on while not equal": ".byte 0xe0, 0x10", rcx = 5, f = 0 => rcx = 4, next = 0x12;
    "F2 makes LOOPNE of LOOPE": ".byte 0xf2, 0xe1, 0x10", rcx = 5, f = 0 => rcx = 4, next = 0x13;
    "F3 makes LOOPE of LOOPNE": ".byte 0xf3, 0xe0, 0x10", rcx = 5, f = 0 => rcx = 4;
    "F2 means nothing to LOOP": ".byte 0xf2, 0xe2, 0x10", rcx = 5, f = ZF => rcx = 4, next = 0x13;
    "JRCXZ": ".byte 0xe3, 0x10", rcx = 0 => next = 0x12;
    "JRCXZ looks at all 64 bits": ".byte 0xe3, 0x10", rcx = 1 << 40 => ;
    "JECXZ looks at 32": ".byte 0x67, 0xe3, 0x10", rcx = 1 << 40 => next = 0x13;
}

rows! { in_32_bits in protected_mode(), ".code32\n";
    "CALL pushes four bytes": ".byte 0xe8, 0x10, 0, 0, 0", => next = 0x15, s = (-4, CODE as u32 + 5), esp = STACK - 4;
    "RET pops four bytes": "ret", s = (0, CODE as u32 + 0x20) => next = 0x20, esp = STACK + 4;
    "the upper half of a 64-bit register does not count": "jmp eax", rax = 7 << 32 | (CODE + 0x20) => next = 0x20, rax = 7 << 32 | (CODE + 0x20);
}

rows! { in_16_bits in narrow_mode(), ".code16\n";
    "CALL pushes two bytes": ".byte 0xe8, 0x10, 0", => next = 0x13, s = (-2, (CODE as u16) + 3), sp = 0x7fe;
    "a jump wraps at 64 KiB": ".byte 0xe9, 0x00, 0xff", => next = 0x3 - 0x100;
    "a 32-bit jump beyond the limit is #GP": ".byte 0x66, 0xe9, 0x00, 0x00, 0x01, 0x00", => fault = (13, Some(0));
    "LOOP counts CX": ".byte 0xe2, 0x10", ecx = 0x10001 => ecx = 0x10000;
}

//! PUSH, POP, PUSHA, POPA, PUSHF, ENTER, LEAVE (SDM Vol. 2).

use crate::world::{D, M, STACK, narrow_mode, protected_mode};

rows! { push;
    "eight bytes below": "push rcx", rcx = 7 => rsp = STACK - 8, s = (-8, 7u64);
    "PUSH RSP pushes what it was": "push rsp", rcx = 7 => rsp = STACK - 8, s = (-8, STACK);
    "an immediate is sign-extended": "push -2", rcx = 0 => rsp = STACK - 8, s = (-8, -2i64 as u64);
    "from memory": "push qword ptr [rbx]", m = 9u64 => rsp = STACK - 8, s = (-8, 9u64);
    "16 bits": "push cx", cx = 0x1234 => rsp = STACK - 2, s = (-2, 0x1234u16);
    "a segment register": "push fs", rcx = 0 => rsp = STACK - 8, s = (-8, 0x10u64);
    "flags, without VM and RF": "pushfq", f = 0, rcx = 0 => rsp = STACK - 8, s = (-8, 2u64);
    "a stack that is not canonical is #SS": "push rcx", rsp = 1 << 62 => fault = (12, Some(0));
    "a stack that is not there is #PF": "push rcx", rsp = 0x20_0000_0000 => fault = (14, Some(2));
}

rows! { pop;
    "eight bytes up": "pop rcx", s = (0, 7u64) => rcx = 7, rsp = STACK + 8;
    "POP RSP keeps what it popped": "pop rsp", s = (0, 7u64) => rsp = 7;
    "to memory": "pop qword ptr [rbx]", s = (0, 7u64), m = 0u64 => m = 7u64, rsp = STACK + 8;
    "to memory at the new stack pointer": "pop qword ptr [rsp + 8]", s = (0, 7u64) => s = (16, 7u64), rsp = STACK + 8;
    "16 bits": "pop cx", rcx = 0, s = (0, 0xffffu16) => rcx = 0xffff, rsp = STACK + 2;
}

rows! { frames;
    "LEAVE undoes a frame": "leave", rbp = STACK + 0x10, s = (0x10, 5u64) => rbp = 5, rsp = STACK + 0x18;
    "ENTER without nesting": "enter 0x20, 0", rbp = 5 => s = (-8, 5u64), rbp = STACK - 8, rsp = STACK - 0x28;
    "ENTER copies the enclosing frame pointers": "enter 0x10, 3", rbp = STACK + 0x100, s = (0xf8, 1u64), s = (0xf0, 2u64)
        => s = (-8, STACK + 0x100), s = (-16, 1u64), s = (-24, 2u64), s = (-32, STACK - 8), rbp = STACK - 8, rsp = STACK - 0x30;
    "ENTER to where there is no stack faults": "enter 0, 0", rsp = 0x20_0000_0000 => fault = (14, Some(2));
}

rows! { in_32_bits in protected_mode(), ".code32\n";
    "four bytes": "push ecx", ecx = 7 => s = (-4, 7u32), esp = STACK - 4;
    "a segment register is zero-extended": "push ds", s = (-4, u32::MAX) => s = (-4, 0x10u32), esp = STACK - 4;
    "PUSHA pushes eight, and SP as it was": "pushad", eax = 1, ecx = 2, edx = 3, ebp = 4
        => s = (-4, 1u32), s = (-8, 2u32), s = (-12, 3u32), s = (-16, M as u32), s = (-20, STACK as u32), s = (-24, 4u32), s = (-28, M as u32), s = (-32, D as u32), esp = STACK - 32;
    "POPA skips the stack pointer": "popad", s = (0, 1u128 << 96 | 2), s = (16, 3u128 << 96)
        => edi = 2, esi = 0, ebp = 0, ebx = 0, edx = 0, ecx = 0, eax = 3, esp = STACK + 32;
    "16 bits on a 32-bit stack": "push cx", cx = 7 => s = (-2, 7u16), esp = STACK - 2;
}

rows! { in_16_bits in narrow_mode(), ".code16\n";
    "two bytes": "push cx", cx = 7 => s = (-2, 7u16), sp = 0x7fe;
    "PUSHA": "pusha", ax = 1, cx = 2, dx = 3, bx = 4, bp = 5, si = 6, di = 7
        => s = (-16, 0x0001_0002_0003_0004_0800_0005_0006_0007u128), sp = 0x7f0;
}

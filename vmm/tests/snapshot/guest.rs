//! A guest that answers each byte with the byte and two counts: one that it keeps in a register, one in its memory.

use std::path::Path;

use iced_x86::code_asm::*;

use crate::code::{COM1, assemble, debug_exit, image, print};

/// It fills this much memory, in bytes, when it gets an `f`.
pub const FILL: i32 = 8 << 20;

/// Writes an image of it. It says `!` when it is ready, and ends the machine with status 1 when it gets a `q`.
pub fn write(path: &Path) {
    const COUNT: u64 = 0x30_0000;
    const FILLED: i32 = 0x40_0000;
    let code = assemble(|a| {
        a.xor(ebx, ebx)?;
        print(a, "!")?;
        let [mut next, mut echo, mut fill, mut quit] = [(); 4].map(|()| a.create_label());
        a.set_label(&mut next)?;
        a.mov(dx, COM1 + 5)?;
        a.in_(al, dx)?;
        a.test(al, 1)?;
        a.je(next)?;
        a.mov(dx, COM1)?;
        a.in_(al, dx)?;
        a.cmp(al, i32::from(b'q'))?;
        a.je(quit)?;
        a.cmp(al, i32::from(b'f'))?;
        a.je(fill)?;
        a.set_label(&mut echo)?;
        a.inc(ebx)?;
        a.inc(dword_ptr(COUNT))?;
        a.out(dx, al)?;
        a.mov(eax, ebx)?;
        a.add(al, i32::from(b'0'))?;
        a.out(dx, al)?;
        a.mov(eax, dword_ptr(COUNT))?;
        a.add(al, i32::from(b'0'))?;
        a.out(dx, al)?;
        a.jmp(next)?;
        a.set_label(&mut fill)?;
        a.mov(edi, FILLED)?;
        a.mov(ecx, FILL / 4)?;
        a.mov(esi, eax)?;
        a.mov(eax, 0x5a5a_5a5a)?;
        a.cld()?;
        a.rep().stosd()?;
        a.mov(eax, esi)?;
        a.jmp(echo)?;
        a.set_label(&mut quit)?;
        debug_exit(a, 0)
    });
    std::fs::write(path, image(&code)).unwrap();
}

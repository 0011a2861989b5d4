//! The way to 64-bit mode.

use iced_x86::code_asm::*;

/// Tables of four levels, the first below the others: the lowest 4 GiB by pages of 2 MiB.
const PML4: i32 = 0x34_0000;
const PDPT: i32 = 0x34_1000;
const DIRECTORIES: i32 = 0x34_2000;
const GDT: i32 = 0x34_8000;
const GDTR: i32 = 0x34_8100;
/// A code segment with L, and a data segment.
const CODE_SELECTOR: i32 = 8;
const DATA_SELECTOR: i32 = 16;
/// Present and writable; and a page rather than a table.
const TABLE: i32 = 0x3;
const PAGE: i32 = 0x83;
const EFER: u32 = 0xc000_0080;

/// Goes on in 64-bit mode with the code that `write` writes. EDI keeps its value, zero-extended.
pub fn enter(
    a: &mut CodeAssembler,
    write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Result<(), IcedError> {
    let mut long = CodeAssembler::new(64)?;
    // Its upper half is undefined after a change of mode (SDM Vol. 1, General-Purpose Registers in 64-Bit Mode).
    long.mov(edi, edi)?;
    write(&mut long)?;
    // It has no addresses of its own but those that are relative.
    let code = long.assemble(0)?;

    let [mut begin, mut next] = [(); 2].map(|()| a.create_label());
    a.mov(dword_ptr(PML4), PDPT | TABLE)?;
    for gib in 0..4 {
        a.mov(dword_ptr(PDPT + 8 * gib), (DIRECTORIES + 0x1000 * gib) | TABLE)?;
    }
    a.mov(ecx, DIRECTORIES)?;
    a.mov(eax, PAGE)?;
    a.set_label(&mut next)?;
    a.mov(dword_ptr(ecx), eax)?;
    a.add(ecx, 8)?;
    // Past the last page this wraps around.
    a.add(eax, 1 << 21)?;
    a.cmp(ecx, DIRECTORIES + 0x4000)?;
    a.jne(next)?;
    for (selector, low, high) in [
        (CODE_SELECTOR, 0xffff, 0x00af_9b00),
        (DATA_SELECTOR, 0xffff, 0x00cf_9300),
    ] {
        a.mov(dword_ptr(GDT + selector), low)?;
        a.mov(dword_ptr(GDT + selector + 4), high)?;
    }
    a.mov(word_ptr(GDTR), DATA_SELECTOR + 7)?;
    a.mov(dword_ptr(GDTR + 2), GDT)?;
    a.lgdt(ptr(GDTR))?;
    a.mov(eax, cr4)?;
    a.or(eax, 1 << 5)?;
    a.mov(cr4, eax)?;
    a.mov(eax, PML4)?;
    a.mov(cr3, eax)?;
    a.mov(ecx, EFER)?;
    a.rdmsr()?;
    a.or(eax, 1 << 8)?;
    a.wrmsr()?;
    a.mov(eax, cr0)?;
    a.or(eax, i32::MIN)?;
    a.mov(cr0, eax)?;
    for segment in [ds, es, ss] {
        a.mov(ax, DATA_SELECTOR)?;
        a.mov(segment, ax)?;
    }
    // Pushes where the code is, which follows.
    a.call(begin)?;
    a.db(&code)?;
    a.set_label(&mut begin)?;
    a.pop(eax)?;
    a.push(CODE_SELECTOR)?;
    a.push(eax)?;
    a.retf()
}

//! Guests of a few instructions that use the example device.

use iced_x86::code_asm::*;

use crate::code::{COM1, assemble, print};
use crate::second::{self, STACK, SVR};

const IDT: i32 = 0x30_0000;
const IDTR: i32 = 0x30_1000;
const GDT: i32 = 0x30_2000;
const GDTR: i32 = 0x30_1010;
/// A flat code segment.
const CODE_SELECTOR: i32 = 8;
/// Where the device is to greet.
const GREETING: i32 = 0x31_0000;
const VECTOR: i32 = 0x41;
/// Vendor and device of the example.
const ID: i32 = 0x00fe_1b36;
/// "RPRS", as the first register reads.
const RPRS: i32 = i32::from_le_bytes(*b"RPRS");

/// Looks for the device, makes it a bus master, enables its MSI-X, and has EDI point to BAR 0.
pub fn find(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let [mut next, mut found] = [(); 2].map(|()| a.create_label());
    let config = |a: &mut CodeAssembler, register: i32| -> Result<(), IcedError> {
        a.mov(dx, 0xcf8)?;
        a.mov(eax, ebp)?;
        a.add(eax, register)?;
        a.out(dx, eax)?;
        a.mov(dx, 0xcfc)
    };
    a.mov(esp, STACK)?;
    a.mov(ebp, i32::MIN)?;
    a.set_label(&mut next)?;
    config(a, 0)?;
    a.in_(eax, dx)?;
    a.cmp(eax, ID)?;
    a.je(found)?;
    a.add(ebp, 1 << 11)?;
    a.jmp(next)?;
    a.set_label(&mut found)?;
    config(a, 4)?;
    a.mov(ax, 6)?;
    a.out(dx, ax)?;
    config(a, 0x40)?;
    a.mov(dx, 0xcfe)?;
    a.mov(ax, 0x8000)?;
    a.out(dx, ax)?;
    config(a, 0x10)?;
    a.in_(eax, dx)?;
    a.and(eax, !0xf)?;
    a.mov(edi, eax)
}

/// Prints what the device's registers say, then its greeting when it interrupts.
pub fn greeted() -> Vec<u8> {
    assemble(|a| {
        let [mut wait, mut install, mut again, mut halt] = [(); 4].map(|()| a.create_label());
        find(a)?;
        a.mov(ebx, dword_ptr(edi))?;
        a.mov(dx, COM1)?;
        for _ in 0..4 {
            a.mov(al, bl)?;
            a.out(dx, al)?;
            a.shr(ebx, 8)?;
        }
        a.mov(dword_ptr(edi + 4), i32::from(b'!'))?;
        a.mov(eax, dword_ptr(edi + 4))?;
        a.out(dx, al)?;

        a.mov(dword_ptr(edi + 0x800), 0xfee0_0000_u32 as i32)?;
        a.mov(dword_ptr(edi + 0x804), 0)?;
        a.mov(dword_ptr(edi + 0x808), VECTOR)?;
        a.mov(dword_ptr(edi + 0x80c), 0)?;
        a.mov(dword_ptr(SVR), 0x1ff)?;
        a.mov(al, 0xff)?;
        a.out(0x21, al)?;
        a.out(0xa1, al)?;
        // Pushes where the handler is, which follows.
        a.call(install)?;
        a.mov(esi, GREETING)?;
        a.mov(ecx, 26)?;
        a.mov(dx, COM1)?;
        a.set_label(&mut again)?;
        a.outsb()?;
        a.loop_(again)?;
        print(a, ".")?;
        a.set_label(&mut halt)?;
        a.hlt()?;
        a.jmp(halt)?;
        a.set_label(&mut install)?;
        a.pop(eax)?;
        a.mov(dword_ptr(GDT + CODE_SELECTOR), 0xffff)?;
        a.mov(dword_ptr(GDT + CODE_SELECTOR + 4), 0x00cf_9b00)?;
        a.mov(word_ptr(GDTR), CODE_SELECTOR + 7)?;
        a.mov(dword_ptr(GDTR + 2), GDT)?;
        a.lgdt(ptr(GDTR))?;
        a.mov(ecx, IDT + 8 * VECTOR)?;
        a.mov(word_ptr(ecx), ax)?;
        a.shr(eax, 16)?;
        a.mov(word_ptr(ecx + 6), ax)?;
        a.mov(word_ptr(ecx + 2), CODE_SELECTOR)?;
        a.mov(word_ptr(ecx + 4), 0x8e00)?;
        a.mov(word_ptr(IDTR), 0x7ff)?;
        a.mov(dword_ptr(IDTR + 2), IDT)?;
        a.lidt(ptr(IDTR))?;

        a.mov(dword_ptr(edi + 8), GREETING)?;
        a.mov(dword_ptr(edi + 0xc), 0)?;
        a.mov(dword_ptr(edi + 0x10), 1)?;
        a.sti()?;
        a.set_label(&mut wait)?;
        a.hlt()?;
        a.jmp(wait)
    })
}

/// The second vCPU sends back what it receives; the first reads the device without end, and prints `R` when it is there and `o`
/// when its registers read as ones, whenever that changes.
pub fn watched() -> Vec<u8> {
    let mut stub = CodeAssembler::new(16).unwrap();
    let echo = |a: &mut CodeAssembler| -> Result<(), IcedError> {
        let mut next = a.create_label();
        a.set_label(&mut next)?;
        a.mov(dx, COM1 + 5)?;
        a.in_(al, dx)?;
        a.test(al, 1)?;
        a.je(next)?;
        a.mov(dx, COM1)?;
        a.in_(al, dx)?;
        a.out(dx, al)?;
        a.jmp(next)
    };
    echo(&mut stub).unwrap();
    let stub = stub.assemble(0).unwrap();
    assemble(|a| {
        let [mut read, mut there, mut tell] = [(); 3].map(|()| a.create_label());
        second::place(a, &stub)?;
        second::start(a)?;
        find(a)?;
        a.mov(bl, 0)?;
        a.set_label(&mut read)?;
        a.mov(eax, dword_ptr(edi))?;
        a.cmp(eax, RPRS)?;
        a.mov(al, i32::from(b'R'))?;
        a.je(there)?;
        a.mov(al, i32::from(b'o'))?;
        a.set_label(&mut there)?;
        a.cmp(al, bl)?;
        a.jne(tell)?;
        a.jmp(read)?;
        a.set_label(&mut tell)?;
        a.mov(bl, al)?;
        a.mov(dx, COM1)?;
        a.out(dx, al)?;
        a.jmp(read)
    })
}

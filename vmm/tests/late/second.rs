//! A guest's second vCPU: where its code is put, and what starts it.

use iced_x86::code_asm::*;

/// The first vCPU's stack.
pub const STACK: i32 = 0x7000;
/// Where the second vCPU begins, in real mode.
const STUB: i32 = 0x8000;
/// The local APIC's interrupt command register and spurious-interrupt vector register (SDM Vol. 3, Local APIC Register
/// Address Map).
const ICR: i32 = 0xfee0_0300_u32 as i32;
pub const SVR: i32 = 0xfee0_00f0_u32 as i32;

/// Gives the first vCPU a stack and its local APIC, and puts `stub`, 16-bit code, where the second one will begin.
pub fn place(a: &mut CodeAssembler, stub: &[u8]) -> Result<(), IcedError> {
    let mut begin = a.create_label();
    a.mov(esp, STACK)?;
    // Pushes where the stub is.
    a.call(begin)?;
    a.db(stub)?;
    a.set_label(&mut begin)?;
    a.pop(esi)?;
    a.cld()?;
    a.mov(edi, STUB)?;
    a.mov(ecx, i32::try_from(stub.len()).unwrap())?;
    a.rep().movsb()?;
    a.mov(dword_ptr(SVR), 0x1ff)
}

/// Sends INIT and a start-up IPI to the local APIC 1.
pub fn start(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(dword_ptr(ICR + 0x10), 1 << 24)?;
    a.mov(dword_ptr(ICR), 0x4500)?;
    a.mov(dword_ptr(ICR), 0x4600 | STUB >> 12)
}

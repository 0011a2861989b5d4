//! Guests of a few instructions: assembled, and put into an image that boots.

use iced_x86::code_asm::*;

/// Where the code lies; it is entered through PVH, in flat 32-bit protected mode.
pub const CODE: u64 = 0x20_0000;
pub const COM1: i32 = 0x3f8;

/// An ELF image of the code, with a PVH note.
pub fn image(code: &[u8]) -> Vec<u8> {
    let mut image = Vec::new();
    image.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    image.extend([2_u16, 62].iter().flat_map(|half| half.to_le_bytes()));
    image.extend(1_u32.to_le_bytes());
    image.extend([CODE, 64, 0].iter().flat_map(|word| word.to_le_bytes()));
    image.extend(0_u32.to_le_bytes());
    image.extend([64_u16, 56, 2, 0, 0, 0].iter().flat_map(|half| half.to_le_bytes()));
    let content = 64 + 2 * 56;
    let mut header = |kind: u32, offset: u64, size: u64| {
        image.extend([kind, 7].iter().flat_map(|word| word.to_le_bytes()));
        image.extend(
            [offset, CODE, CODE, size, size, 4]
                .iter()
                .flat_map(|word| word.to_le_bytes()),
        );
    };
    let length = code.len() as u64;
    header(1, content, length);
    header(4, content + length, 20);
    image.extend(code);
    image.extend([4_u32, 4, 18].iter().flat_map(|word| word.to_le_bytes()));
    image.extend(b"Xen\0");
    image.extend(u32::try_from(CODE).unwrap().to_le_bytes());
    image
}

pub fn assemble(write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(32).unwrap();
    write(&mut assembler).unwrap();
    assembler.assemble(CODE).unwrap()
}

pub fn print(a: &mut CodeAssembler, text: &str) -> Result<(), IcedError> {
    a.mov(dx, COM1)?;
    for byte in text.bytes() {
        a.mov(al, i32::from(byte))?;
        a.out(dx, al)?;
    }
    Ok(())
}

pub fn debug_exit(a: &mut CodeAssembler, code: i32) -> Result<(), IcedError> {
    a.mov(al, code)?;
    a.out(0xf4, al)?;
    a.hlt()
}

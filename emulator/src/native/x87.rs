//! x87 instructions on the host.
//!
//! The guest's x87 state is loaded as a whole (FRSTOR), one instruction is executed, and the state is taken out again
//! (FNSAVE, which also leaves x87 as Rust wants it). An unmasked exception does what it does to the registers, and is
//! never reported here: it would be by the next waiting instruction, and FNSAVE does not wait.
//!
//! This module is unsafe because x87 instructions are only to be had as assembly.
#![allow(unsafe_code, reason = "x87 instructions take inline assembly")]

use core::arch::asm;

use super::sse::{Arithmetic, Element};

/// The state as FNSAVE stores it in 64-bit mode: environment of 28 bytes, then ST(0) to ST(7).
pub type Image = [u8; 108];

/// A memory operand; ten bytes are the longest.
pub type Operand = [u8; 16];

/// Masks what is pending already: the instruction would report it, to us.
fn defuse(image: &mut Image) {
    let control = u16::from_le_bytes([image[0], image[1]]);
    let status = u16::from_le_bytes([image[4], image[5]]);
    if status & !control & 0x3f != 0 {
        image[0] |= 0x3f;
    }
}

/// Executes an instruction without memory operand on the state.
macro_rules! execute {
    ($image:ident, $flags:ident, $i:literal) => {{
        let mut ax = u64::from($flags) << 8;
        // SAFETY: an x87 instruction between registers; the state is 108 bytes, and FNSAVE leaves x87 initialised.
        unsafe {
            asm!(
                "frstor [{image}]",
                "sahf",
                concat!(".byte {opcode}, {modrm} + ", $i),
                "lahf",
                "fnsave [{image}]",
                image = in(reg) $image.as_mut_ptr(),
                opcode = const OPCODE,
                modrm = const MODRM,
                inout("rax") ax,
                out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
                out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
                options(nostack),
            );
        }
        (ax >> 8) as u8
    }};
}

/// Executes the instruction with opcode bytes `OPCODE` and `MODRM`, a form without operands.
pub fn plain<const OPCODE: u8, const MODRM: u8>(image: &mut Image) {
    const { assert!(OPCODE >= 0xd8 && OPCODE <= 0xdf && MODRM >= 0xc0) };
    defuse(image);
    let flags = 0u8;
    let _: u8 = execute!(image, flags, "0");
}

/// Executes the instruction with opcode bytes `OPCODE` and `MODRM` + `i`, a form with operand ST(i), with the status flags
/// of `flags` (as LAHF has them); gives the flags after it.
pub fn register<const OPCODE: u8, const MODRM: u8>(image: &mut Image, i: u8, flags: u8) -> u8 {
    const { assert!(OPCODE >= 0xd8 && OPCODE <= 0xdf && MODRM >= 0xc0 && MODRM & 7 == 0) };
    defuse(image);
    match i & 7 {
        0 => execute!(image, flags, "0"),
        1 => execute!(image, flags, "1"),
        2 => execute!(image, flags, "2"),
        3 => execute!(image, flags, "3"),
        4 => execute!(image, flags, "4"),
        5 => execute!(image, flags, "5"),
        6 => execute!(image, flags, "6"),
        _ => execute!(image, flags, "7"),
    }
}

/// Executes the instruction with opcode byte `OPCODE` and reg field `DIGIT`, a form with a memory operand.
pub fn memory<const OPCODE: u8, const DIGIT: u8>(image: &mut Image, operand: &mut Operand) {
    // D9 /4 to /7 and DD /4, /6 and /7 are environments, whole states and control words.
    const { assert!(OPCODE >= 0xd8 && OPCODE <= 0xdf && DIGIT < 8) };
    const { assert!((OPCODE != 0xd9 && OPCODE != 0xdd) || DIGIT < 4) };
    defuse(image);
    // SAFETY: an x87 instruction on an operand of at most ten bytes, which RAX points at with room for 16; the state is 108
    // bytes, and FNSAVE leaves x87 initialised.
    unsafe {
        asm!(
            "frstor [{image}]",
            ".byte {opcode}, {digit} << 3",
            "fnsave [{image}]",
            image = in(reg) image.as_mut_ptr(),
            opcode = const OPCODE,
            digit = const DIGIT,
            in("rax") operand.as_mut_ptr(),
            out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
            out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
            options(nostack),
        );
    }
}

/// x87 control word: everything masked, single precision, round to nearest.
const SINGLE: u16 = 0x007f;
/// The same with double precision.
const DOUBLE: u16 = 0x027f;
/// Precision exception, in the status word.
const PE: u16 = 1 << 5;

/// Whether `a` and `b` give a result that is inexact when rounded to the element's precision, but with an exponent of 15
/// bits: more than any result of such operands needs.
///
/// The rounding direction does not matter for that.
pub fn is_inexact(arithmetic: Arithmetic, element: Element, a: f64, b: f64) -> bool {
    let control = match element {
        Element::Single => SINGLE,
        Element::Double => DOUBLE,
    };
    let mut status: u16;
    macro_rules! compute {
        ($instruction:literal) => {
            // SAFETY: the operands outlive the block, all exceptions are masked, and FNINIT leaves x87 as Rust wants it.
            unsafe {
                asm!(
                    "fninit",
                    "fldcw [{control}]",
                    "fld qword ptr [{a}]",
                    concat!($instruction, " qword ptr [{b}]"),
                    "fnstsw ax",
                    "fninit",
                    control = in(reg) &raw const control,
                    a = in(reg) &raw const a,
                    b = in(reg) &raw const b,
                    out("ax") status,
                    out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
                    out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
                    options(nostack),
                );
            }
        };
    }
    match arithmetic {
        Arithmetic::Add => compute!("fadd"),
        Arithmetic::Sub => compute!("fsub"),
        Arithmetic::Mul => compute!("fmul"),
        Arithmetic::Div => compute!("fdiv"),
    }
    status & PE != 0
}

//! x87 arithmetic on the host.
//!
//! This module is unsafe because x87 instructions are only to be had as assembly.
#![allow(unsafe_code, reason = "x87 instructions take inline assembly")]

use core::arch::asm;

use super::sse::{Arithmetic, Element};

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

//! Instructions with a VEX or EVEX prefix on vector registers: AVX, AVX2, AVX-512.
//!
//! # Purpose
//! Two thousand encodings differ in vector length, operands, broadcast and masking, but have only some hundred meanings.
//! A meaning is a [`Kernel`]: it computes on [`Lanes`], which hold all operands, and knows neither how long the vector is
//! nor where its operands come from. All else is the work of a few shells, which are told by the decoder library what the
//! encoding's operands are (see [`form`]).
//!
//! # How an instruction is added
//! A [`Row`](form::Row) in the table of its family: the mnemonic, the size of an element, the kernel. All encodings of the
//! mnemonic, VEX and EVEX, get the functions for it. What differs from `destination = kernel(first source, last source)`
//! element by element is said with the row's methods: see [`form::Row`].
//! * A kernel finds the old destination in `a`, the first source in `b` and the last source, that which may be in memory or
//!   is the only one, in `c`; it leaves the result in `a`. Only the first `bytes` bytes mean anything; the shell clears the
//!   others, keeps or clears elements that are not selected, and does the same with opmasks.
//! * Operations of 16 bytes that the SSE forms use become kernels by [`kernel::packed`], [`kernel::immediate`] and
//!   [`kernel::count`].
//! * Floating point: `mxcsr` has the rounding that holds, from the instruction or from MXCSR, and on instructions that
//!   suppress exceptions all masks set. The kernel adds to `raised` the flags of the elements in `active`, and of no
//!   others; the shell raises them, and leaves the destination if one is unmasked.
//! * Elements that are not selected are not read from memory, so that they cannot fault; in `c` they are zero.
//!
//! # Order of checks
//! #UD, then #NM, then those of the memory operand (SDM Vol. 2, Instruction Exception Specification).

mod cipher;
mod convert;
mod float;
mod form;
mod gather;
mod integer;
mod kernel;
mod lanes;
mod masked;
mod mov;
mod opmask;
mod packed;
mod permute;
mod resize;
mod shell;

pub(super) use lanes::{Bytes, Kernel, Lanes, chunk};

use iced_x86::Code;

use crate::access::Access;
use crate::table::Table;

pub(super) fn fill<M: Access>(table: &mut Table<M>) {
    gather::fill(table);
    masked::fill(table);
    mov::fill(table);
    opmask::fill(table);
    for code in Code::values() {
        // Some encodings have functions of their own, for speed.
        if let (Some(number), None) = (form::number(code), table.form(code)) {
            shell::add(table, code, number);
        }
    }
}

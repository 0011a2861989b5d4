//! The instructions, by family. Each is written once, generic over how it reaches memory ([`Access`]).

mod aes;
mod arith;
mod available;
mod bcd;
mod bits;
mod bmi;
mod clmul;
mod condition;
mod control;
mod control_reg;
mod cpuid;
mod direct;
mod far;
mod gfni;
mod interrupt;
mod io;
mod lanes;
mod misc;
mod mmx;
mod mov;
mod msr;
mod muldiv;
mod segment;
mod sha;
mod shift;
mod shuffle;
mod sse4;
mod sse41;
mod sse_float;
mod sse_int;
mod sse_mov;
mod ssse3;
mod stack;
mod string;
mod string_io;
mod strings;
mod syscall;
mod vector;
mod virtual_8086;
mod wide;
mod x87;
mod xsave;

use crate::access::{Access, Outcome};
use crate::cpu::Cpu;
use crate::event::Exception;
use crate::op::Op;
use crate::table::Table;

/// Fills the table with every family.
pub(crate) fn fill<M: Access>(table: &mut Table<M>) {
    arith::fill(table);
    bcd::fill(table);
    bits::fill(table);
    bmi::fill(table);
    control::fill(table);
    control_reg::fill(table);
    cpuid::fill(table);
    direct::fill(table);
    far::fill(table);
    interrupt::fill(table);
    io::fill(table);
    misc::fill(table);
    mmx::fill(table);
    mov::fill(table);
    msr::fill(table);
    muldiv::fill(table);
    segment::fill(table);
    shift::fill(table);
    sse4::fill(table);
    sse_float::fill(table);
    sse_int::fill(table);
    sse_mov::fill(table);
    stack::fill(table);
    string::fill(table);
    string_io::fill(table);
    syscall::fill(table);
    vector::fill(table);
    wide::fill(table);
    x87::fill(table);
    xsave::fill(table);
}

/// The register form of an instruction that has only a memory form: the decoder never gives it.
fn unreachable_form<M>(_: &mut Cpu, _: &mut M, _: &Op<M>) -> Outcome {
    Err(Exception::ud().into())
}

//! The instructions, by family. Each is written once, generic over how it reaches memory ([`Access`]).

mod arith;
mod bits;
mod condition;
mod control;
mod cpuid;
mod io;
mod misc;
mod mov;
mod msr;
mod muldiv;
mod shift;
mod stack;
mod string;
mod syscall;

use crate::access::Access;
use crate::table::Table;

/// Fills the table with every family.
pub(crate) fn fill<M: Access>(table: &mut Table<M>) {
    arith::fill(table);
    bits::fill(table);
    control::fill(table);
    cpuid::fill(table);
    io::fill(table);
    misc::fill(table);
    mov::fill(table);
    msr::fill(table);
    muldiv::fill(table);
    shift::fill(table);
    stack::fill(table);
    string::fill(table);
    syscall::fill(table);
}

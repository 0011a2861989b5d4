//! The instructions, by family. Each is written once, generic over how it reaches memory ([`Access`]).

mod arith;
mod bcd;
mod bits;
mod condition;
mod control;
mod misc;
mod mov;
mod muldiv;
mod shift;
mod stack;
mod string;

use crate::access::Access;
use crate::table::Table;

/// Fills the table with every family.
pub(crate) fn fill<M: Access>(table: &mut Table<M>) {
    arith::fill(table);
    bcd::fill(table);
    bits::fill(table);
    control::fill(table);
    misc::fill(table);
    mov::fill(table);
    muldiv::fill(table);
    shift::fill(table);
    stack::fill(table);
    string::fill(table);
}

//! The instructions, by family. Each is written once, generic over how it reaches memory ([`Access`]).

mod available;
mod mmx;
mod packed;
mod sse_int;
mod sse_mov;
mod x87;
mod xsave;

use crate::access::Access;
use crate::table::Table;

/// Fills the table with every family.
pub(crate) fn fill<M: Access>(table: &mut Table<M>) {
    mmx::fill(table);
    sse_int::fill(table);
    sse_mov::fill(table);
    x87::fill(table);
    xsave::fill(table);
}

//! x87 floating point.
//!
//! Control instructions, which do not compute, are in `control`, what they store in `environment`.

mod control;
mod environment;

use crate::access::Access;
use crate::table::Table;

pub(super) fn fill<M: Access>(table: &mut Table<M>) {
    control::fill(table);
}

//! Consoles, sockets and balloons under hostile drivers.
#![no_main]

#[path = "../../tests/streams/model.rs"]
mod model;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    model::operate(bytes);
});

//! Configurations that nobody in their senses writes.
#![no_main]

#[path = "../../tests/config/model.rs"]
mod model;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    model::read(bytes);
});

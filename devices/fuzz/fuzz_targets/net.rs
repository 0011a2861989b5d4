//! Network cards between hostile drivers and hostile networks.
#![no_main]

#[path = "../../tests/net/model.rs"]
mod model;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    model::operate(bytes);
});

//! The bus against a model that looks at every address by itself.
#![no_main]

#[path = "../../tests/bus/model.rs"]
mod model;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    model::operate(bytes);
});

//! virtio devices under hostile drivers.
#![no_main]

#[path = "../../tests/virtio/model.rs"]
mod model;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    model::operate(bytes);
});

//! A vfio-user client of a process that sends what it likes.
#![no_main]

#[path = "../../tests/vfio_user/model.rs"]
mod model;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    model::operate(bytes);
});

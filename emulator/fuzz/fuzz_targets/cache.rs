//! The replay cache against the plain list that it is.
#![no_main]

#[path = "../../tests/replay/cache.rs"]
mod cache;
#[allow(dead_code)] // Tests use more of it.
#[path = "../../tests/exact/dice.rs"]
mod dice;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    cache::operate(bytes);
});

//! The replay cache against the plain list that it is.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reprise_emulator_fuzz::cache;

fuzz_target!(|bytes: &[u8]| {
    cache::operate(bytes);
});

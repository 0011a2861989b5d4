//! Random code in every mode under the fast way and the careful way at once.
#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use reprise_emulator_fuzz::ways;

thread_local! {
    static WAYS: RefCell<ways::Ways> = RefCell::new(ways::Ways::new());
}

fuzz_target!(|bytes: &[u8]| {
    WAYS.with_borrow_mut(|ways| ways.play(bytes));
});

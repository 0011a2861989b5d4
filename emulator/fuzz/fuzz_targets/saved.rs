//! What was saved of an instruction in flight, damaged and restored.
#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use reprise_emulator_fuzz::saved;

thread_local! {
    static SAVED: RefCell<saved::Saved> = RefCell::new(saved::Saved::new());
}

fuzz_target!(|bytes: &[u8]| {
    SAVED.with_borrow_mut(|saved| saved.damage(bytes));
});

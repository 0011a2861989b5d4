//! Random code under random influence from outside, against the same code left alone.
#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use reprise_emulator_fuzz::duet;

thread_local! {
    static STAGE: RefCell<duet::Stage> = RefCell::new(duet::Stage::new());
}

fuzz_target!(|bytes: &[u8]| {
    STAGE.with_borrow_mut(|stage| stage.play(bytes));
});

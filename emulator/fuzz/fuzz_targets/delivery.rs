//! Events delivered out of random guest states, by gates of every kind and task switches, the fast way and the careful way.
#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use reprise_emulator_fuzz::ways;

thread_local! {
    static WAYS: RefCell<ways::Ways> = RefCell::new(ways::Ways::new());
}

fuzz_target!(|bytes: &[u8]| {
    WAYS.with_borrow_mut(|ways| ways.deliver(bytes));
});

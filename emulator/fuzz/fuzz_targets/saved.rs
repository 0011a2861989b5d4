//! What was saved of an instruction in flight, damaged and restored.
#![no_main]
// The modules are the tests', and the tests use more of them.
#![allow(dead_code)]

#[path = "../../tests/exact/dice.rs"]
mod dice;
#[path = "../../tests/exact/duet.rs"]
mod duet;
#[path = "../../tests/exact/forms.rs"]
mod forms;
#[path = "../../tests/exact/late.rs"]
mod late;
#[path = "../../tests/exact/layout.rs"]
mod layout;
#[path = "../../tests/exact/scene.rs"]
mod scene;
#[path = "../../tests/exact/story.rs"]
mod story;
#[path = "../../tests/exact/world.rs"]
mod world;
#[path = "../../tests/exact/saved.rs"]
mod saved;

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;

thread_local! {
    static SAVED: RefCell<saved::Saved> = RefCell::new(saved::Saved::new());
}

fuzz_target!(|bytes: &[u8]| {
    SAVED.with_borrow_mut(|saved| saved.damage(bytes));
});

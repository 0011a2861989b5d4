//! Damaged page tables, descriptor tables, task state and registers, and events that go through them, the fast way and the careful way.
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
#[path = "../../tests/exact/ways.rs"]
mod ways;
#[path = "../../tests/exact/world.rs"]
mod world;

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;

thread_local! {
    static WAYS: RefCell<ways::Ways> = RefCell::new(ways::Ways::new());
}

fuzz_target!(|bytes: &[u8]| {
    WAYS.with_borrow_mut(|ways| ways.damage(bytes));
});

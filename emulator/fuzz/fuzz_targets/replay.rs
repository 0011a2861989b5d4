//! Random code under random influence from outside, against the same code left alone.
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

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;

thread_local! {
    static STAGE: RefCell<duet::Stage> = RefCell::new(duet::Stage::new());
}

fuzz_target!(|bytes: &[u8]| {
    STAGE.with_borrow_mut(|stage| stage.play(bytes));
});

//! The tests' own modules, which the fuzz targets play with bytes from outside.

#[path = "../../tests/exact/delivery.rs"]
pub mod delivery;
#[path = "../../tests/exact/dice.rs"]
pub mod dice;
#[path = "../../tests/exact/duet.rs"]
pub mod duet;
#[path = "../../tests/exact/forms.rs"]
pub mod forms;
#[path = "../../tests/exact/late.rs"]
pub mod late;
#[path = "../../tests/exact/layout.rs"]
pub mod layout;
#[path = "../../tests/exact/saved.rs"]
pub mod saved;
#[path = "../../tests/exact/scene.rs"]
pub mod scene;
#[path = "../../tests/exact/story.rs"]
pub mod story;
#[path = "../../tests/exact/ways.rs"]
pub mod ways;
#[path = "../../tests/exact/world.rs"]
pub mod world;
#[path = "../../tests/replay/cache.rs"]
pub mod cache;

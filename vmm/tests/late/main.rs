//! Machines whose devices answer late, never, or go away, in this process or in another: the program `reprise`, called over
//! REST, with guests of a few instructions.

mod batches;
#[path = "../code/mod.rs"]
mod code;
mod gone;
mod restarts;
mod second;
mod silent;
#[path = "../tier/mod.rs"]
mod tier;
mod user_device;
mod world;

//! Machines whose devices answer late, never, or go away: the program `reprise`, called over REST, with guests of a few
//! instructions.

mod batches;
#[path = "../code/mod.rs"]
mod code;
mod gone;
mod restarts;
mod silent;
mod world;

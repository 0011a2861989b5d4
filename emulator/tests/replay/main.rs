//! Exact re-execution: an instruction that waits for a device sees, when it goes on, what it saw before, and does what
//! it does once.
//!
//! `batch` is about repeated string instructions, which hand many elements over at once; `seen` and `done` claim what a
//! pass may see and may do, rule by rule; `fetch` is about instruction bytes, `supplied` about those that come with an
//! exit, `outside` about who may end an instruction in flight, `capacity` about the room that there is, `cache` about the list that the cache is; `random`
//! compares random instructions that are answered late, over memory that changes meanwhile, with the same ones answered
//! at once.

mod batch;
mod cache;
mod capacity;
#[path = "../exact/dice.rs"]
mod dice;
mod done;
mod fetch;
mod guest;
mod outside;
mod random;
mod seen;
mod supplied;
#[path = "../tier/mod.rs"]
mod tier;

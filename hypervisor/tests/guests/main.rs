//! The same small guests on every backend, through the traits: what a guest sees does not depend on what runs it.
//!
//! Where there is no KVM the tests say so and run on the soft backend only; `REPRISE_REQUIRE=kvm` makes that a failure.

mod accesses;
#[path = "../backends/mod.rs"]
mod backends;
mod failures;
mod interrupts;
mod kicks;
mod registers;
mod rescues;
mod rings;
mod signals;
mod snapshots;
mod world;

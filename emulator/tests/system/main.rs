//! System instructions, mode switches, exceptions and interrupts (SDM Vol. 3), each with its tables in RAM and in a
//! device that answers late.

mod debug;
mod delivery;
mod extensions;
mod identity;
mod keys;
mod legacy;
mod modes;
mod order;
mod privileged;
mod registers;
mod tasks;
#[path = "../tier/mod.rs"]
mod tier;
mod transfers;
mod world;

//! Machines that are saved and restored: in one process, and by the program `reprise`, which is killed and whose disk is full.

#[path = "../../../hypervisor/tests/backends/mod.rs"]
mod backends;
#[path = "../code/mod.rs"]
mod code;
mod guest;
mod machine;
mod process;
#[path = "../tier/mod.rs"]
mod tier;

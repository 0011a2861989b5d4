//! Whole guests: Debian's kernel, booted through REST or on the command line, used through its serial console.
//!
//! `scripts/guest.sh` makes the guest; without it these tests say that they are skipped, and with `REPRISE_REQUIRE=guest`
//! in the environment they fail instead.

mod boot;
mod console;
mod console_vsock_balloon;
mod disk;
mod guest;
mod hotplug;
mod hypercalls;
mod late;
#[path = "../log/mod.rs"]
mod log;
mod models;
mod net;
mod serve;
mod served;
mod snapshot;
mod translated;
mod wait;

//! A virtual machine monitor: microVMs launched over a REST API, or embedded in another program.
//!
//! # Map
//! - [`config`]: what a VM is made of, one definition for REST, OpenAPI and command line
//! - [`machine`]: a VM built from it, with its vCPU threads and devices
//! - [`boot`] and [`acpi`]: what lies in its memory before it runs
//! - [`console`]: the host's end of its serial port
//! - [`lifecycle`]: created, running, paused, shut down; what the API calls
//! - [`events`]: what happens, one JSON object a line
#![cfg_attr(feature = "api", doc = "- [`api`]: the REST server")]
#![cfg_attr(feature = "cli", doc = "- [`cli`]: the command line of the binary `reprise`")]
//!
//! # A microVM inside another program
//! ```no_run
#![doc = include_str!("../examples/embed.rs")]
//! ```
#![forbid(unsafe_code)]

pub mod acpi;
#[cfg(feature = "api")]
pub mod api;
pub mod boot;
#[cfg(feature = "cli")]
pub mod cli;
pub mod config;
pub mod console;
pub mod events;
pub mod inherited;
pub mod lifecycle;
pub mod machine;
mod vcpu_loop;

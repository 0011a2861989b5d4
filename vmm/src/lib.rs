//! A virtual machine monitor: microVMs launched over a REST API, or embedded in another program.
#![forbid(unsafe_code)]

pub mod config;

//! A virtual machine monitor: microVMs launched over a REST API, or embedded in another program.
//!
//! # Map
//! - [`config`]: what a VM is made of, one definition for REST, OpenAPI and command line
//! - [`machine`]: a VM built from it, with its vCPU threads and devices
//! - [`boot`] and [`acpi`]: what lies in its memory before it runs
//! - [`console`]: the host's end of its serial port
//! - [`lifecycle`]: created, running, paused, shut down; what the API calls
//! - [`snapshot`]: a machine in a folder
//! - [`events`]: what happens, one JSON object a line
#![cfg_attr(feature = "api", doc = "- [`api`]: the REST server")]
#![cfg_attr(feature = "cli", doc = "- [`cli`]: the command line of the binary `reprise`")]
//!
//! # A microVM inside another program
//! ```no_run
//! use reprise_hypervisor::SoftHypervisor;
//! use reprise_vmm::config::VmConfig;
//! use reprise_vmm::machine::{Machine, MachineOptions};
//!
//! let mut config = VmConfig::default();
//! config.payload.kernel = Some("vmlinux".into());
//! config.payload.initramfs = Some("initramfs.cpio.gz".into());
//! config.validate()?;
//! let (tell, ended) = std::sync::mpsc::channel();
//! let on_end = Box::new(move |end| tell.send(end).expect("somebody waits for the end"));
//! let machine = Machine::new(&config, &SoftHypervisor, MachineOptions::default(), on_end)?;
//! machine.start();
//! println!("the machine ended: {:?}", ended.recv()?);
//! machine.stop();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//! `examples/embed.rs` reads the guest's console too.
#![deny(unsafe_code)]

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
mod listen;
pub mod machine;
pub mod profile;
pub mod sandbox;
pub mod snapshot;
mod vcpu_loop;

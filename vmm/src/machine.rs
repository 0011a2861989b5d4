//! PLACEHOLDER for the machine, replaced by the real one when the branches meet: same names, builds nothing.

use std::collections::BTreeMap;

use reprise_hypervisor::Hypervisor;

use crate::config::VmConfig;

/// A virtual machine.
#[derive(Debug)]
pub struct Machine;

/// What is not part of a configuration.
#[derive(Debug, Clone, Default)]
pub struct MachineOptions {
    /// Whether a byte written to port 0xF4 ends the machine.
    pub debug_exit: bool,
}

/// Why a machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineEnd {
    /// The guest powered off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest wrote this byte to the debug-exit port.
    DebugExit(u8),
    /// A triple fault.
    Shutdown,
    /// A vCPU cannot go on.
    Failed(String),
}

/// A machine cannot be built or changed.
#[derive(Debug, thiserror::Error)]
#[error("machines are not built in yet")]
pub struct MachineError;

impl Machine {
    /// Builds a machine.
    ///
    /// # Errors
    /// Always.
    pub fn new(
        _config: &VmConfig,
        _hypervisor: &dyn Hypervisor,
        _options: MachineOptions,
        _on_end: Box<dyn Fn(MachineEnd) + Send + Sync>,
    ) -> Result<Self, MachineError> {
        Err(MachineError)
    }

    /// Starts.
    pub fn start(&self) {}

    /// Pauses.
    ///
    /// # Errors
    /// Never.
    pub fn pause(&self) -> Result<(), MachineError> {
        Ok(())
    }

    /// Resumes.
    pub fn resume(&self) {}

    /// Presses the power button.
    pub fn power_button(&self) {}

    /// Figures by device.
    pub fn counters(&self) -> BTreeMap<String, BTreeMap<String, u64>> {
        BTreeMap::new()
    }

    /// Stops.
    pub fn stop(self) {}
}

//! What the sections have in common: errors, queues, and places of PCI devices.

use std::fmt::Display;

use crate::config::ConfigError;

/// The most queues of a device: one for each vCPU of a large machine.
const MAX_QUEUES: usize = 128;

/// Refuses what cannot be switched on.
pub(super) fn off(field: &str, on: bool) -> Result<(), ConfigError> {
    if on {
        Err(lacking(field, "true", "false"))
    } else {
        Ok(())
    }
}

/// Refuses entries of a section that is not there yet.
pub(super) fn absent(field: &str, count: usize) -> Result<(), ConfigError> {
    match count {
        0 => Ok(()),
        1 => Err(lacking(field, "one", "none")),
        n => Err(lacking(field, n, "none")),
    }
}

/// The error about something that is not there yet.
pub(super) fn lacking(field: &str, asked: impl Display, expected: impl Display) -> ConfigError {
    ConfigError::NotSupported {
        field: field.to_owned(),
        asked: asked.to_string(),
        expected: expected.to_string(),
    }
}

/// The error about a value that makes no machine.
pub(super) fn value(field: &str, value: impl Display, expected: impl Display) -> ConfigError {
    ConfigError::Value {
        field: field.to_owned(),
        value: value.to_string(),
        expected: expected.to_string(),
    }
}

/// The queues of a virtio device.
pub(super) fn queues(at: &str, count: usize, size: u16) -> Result<(), ConfigError> {
    if !(1..=MAX_QUEUES).contains(&count) {
        return Err(value(&format!("{at}.num_queues"), count, format!("1 to {MAX_QUEUES}")));
    }
    if !size.is_power_of_two() || !(4..=1024).contains(&size) {
        let expected = "a power of two from 4 to 1024";
        return Err(value(&format!("{at}.queue_size"), size, expected));
    }
    Ok(())
}

/// Where a PCI device is, and what it is called.
pub(super) fn place(at: &str, segment: u16, id: Option<&str>) -> Result<(), ConfigError> {
    if segment != 0 {
        return Err(lacking(&format!("{at}.pci_segment"), segment, "0"));
    }
    match id {
        Some(id @ ("" | "*")) => Err(value(&format!("{at}.id"), format!("{id:?}"), "a name")),
        _ => Ok(()),
    }
}

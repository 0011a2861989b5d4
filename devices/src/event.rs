//! What a device can ask of the machine as a whole.

use serde::{Deserialize, Serialize};

/// A guest's wish that ends or restarts its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MachineEvent {
    /// Soft-off: ACPI sleep state S5.
    PowerOff,
    /// A reset of the whole machine.
    Reset,
    /// A test in the guest ends with this byte ([`DebugExit`](crate::DebugExit)).
    DebugExit(u8),
}

/// Takes [`MachineEvent`]s. Every `Fn(MachineEvent)` does.
pub trait MachineEvents: Send + Sync {
    /// Notes the event and returns soon: the caller is a vCPU thread amid an access, and the guest runs on until the
    /// machine stops it. No device lock is held.
    fn raise(&self, event: MachineEvent);
}

impl<F: Fn(MachineEvent) + Send + Sync> MachineEvents for F {
    fn raise(&self, event: MachineEvent) {
        self(event);
    }
}

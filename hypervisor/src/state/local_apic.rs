//! What a local APIC remembers (SDM Vol. 3, "Advanced Programmable Interrupt Controller").

use serde::{Deserialize, Serialize};

/// The registers of a local APIC, and what is pending there. Its id is the vCPU's index; the level of LINT0 is the PICs'.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalApicState {
    /// IA32_APIC_BASE.
    pub apic_base: u64,
    /// Task-priority register.
    pub tpr: u8,
    /// Logical destination register of xAPIC mode, bits 31:24.
    pub ldr: u8,
    /// Destination format register.
    pub dfr: u32,
    /// Spurious-interrupt vector register.
    pub svr: u32,
    /// In-service register, vector 0 in bit 0 of the first word.
    pub isr: [u32; 8],
    /// Trigger mode register.
    pub tmr: [u32; 8],
    /// Interrupt request register.
    pub irr: [u32; 8],
    /// Error status register, as the guest reads it.
    pub esr: u32,
    /// Errors since the guest last wrote to the error status register.
    pub errors: u32,
    /// Interrupt command register, both halves.
    pub icr: u64,
    /// Local vector table.
    pub lvt: LocalVectorTable,
    /// The timer.
    pub timer: ApicTimerState,
    /// An NMI is pending.
    pub nmi: bool,
    /// An INIT is pending.
    pub init: bool,
    /// A start-up IPI is pending: its vector.
    pub sipi: Option<u8>,
}

/// The local vector table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalVectorTable {
    /// Timer.
    pub timer: u32,
    /// Thermal sensor.
    pub thermal: u32,
    /// Performance counters.
    pub performance: u32,
    /// LINT0.
    pub lint0: u32,
    /// LINT1.
    pub lint1: u32,
    /// Error.
    pub error: u32,
}

/// The timer but for its entry in the local vector table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApicTimerState {
    /// Divide configuration register.
    pub divide_configuration: u32,
    /// Initial-count register.
    pub initial_count: u32,
    /// When the count reaches 0, in nanoseconds of the machine's clock; `None` if it does not count.
    pub expires_at: Option<u64>,
    /// IA32_TSC_DEADLINE; 0 is disarmed.
    pub tsc_deadline: u64,
}

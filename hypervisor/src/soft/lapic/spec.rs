//! Registers of the local APIC (SDM Vol. 3, "Advanced Programmable Interrupt Controller").
//!
//! A register's number is its xAPIC page offset divided by 16, which is also its x2APIC MSR less 0x800.

/// Local APIC id.
pub const ID: u8 = 0x02;
/// Version; read-only.
pub const VERSION: u8 = 0x03;
/// Task priority.
pub const TPR: u8 = 0x08;
/// Arbitration priority: not there since the Pentium 4, reads 0.
pub const APR: u8 = 0x09;
/// Processor priority; read-only.
pub const PPR: u8 = 0x0a;
/// End of interrupt; write-only.
pub const EOI: u8 = 0x0b;
/// Remote read: not there since the Pentium 4, reads 0.
pub const RRD: u8 = 0x0c;
/// Logical destination.
pub const LDR: u8 = 0x0d;
/// Destination format; xAPIC only.
pub const DFR: u8 = 0x0e;
/// Spurious-interrupt vector, and the software enable.
pub const SVR: u8 = 0x0f;
/// In service, eight registers of 32 vectors.
pub const ISR: u8 = 0x10;
/// Trigger mode, eight registers.
pub const TMR: u8 = 0x18;
/// Requested, eight registers.
pub const IRR: u8 = 0x20;
/// Errors.
pub const ESR: u8 = 0x28;
/// Interrupt command, low half in xAPIC mode; all 64 bits in x2APIC mode.
pub const ICR: u8 = 0x30;
/// Interrupt command, high half; xAPIC only.
pub const ICR_HIGH: u8 = 0x31;
/// Local vector table, first entry: the timer.
pub const LVT_TIMER: u8 = 0x32;
/// Local vector table, last entry: internal errors.
pub const LVT_ERROR: u8 = 0x37;
/// Timer: initial count.
pub const INITIAL_COUNT: u8 = 0x38;
/// Timer: current count; read-only.
pub const CURRENT_COUNT: u8 = 0x39;
/// Timer: divide configuration.
pub const DIVIDE: u8 = 0x3e;
/// Self IPI; x2APIC only.
pub const SELF_IPI: u8 = 0x3f;

/// Version 0x14 (integrated, xAPIC), six entries in the local vector table, EOI broadcasts can be suppressed.
pub const VERSION_VALUE: u32 = 0x0105_0014;

/// Places in the local vector table.
pub mod lvt {
    /// Timer.
    pub const TIMER: usize = 0;
    /// The pin the PIC is wired to.
    pub const LINT0: usize = 3;
    /// The pin that carries NMI.
    pub const LINT1: usize = 4;
    /// Internal errors.
    pub const ERROR: usize = 5;
    /// How many entries there are: timer, thermal sensor, performance counters, LINT0, LINT1, error.
    pub const COUNT: usize = 6;

    /// Masked.
    pub const MASKED: u32 = 1 << 16;
    /// Bits that can be written, entry by entry; the others are read-only or reserved.
    pub const WRITABLE: [u32; COUNT] = [0x7_00ff, 0x1_07ff, 0x1_07ff, 0x1_a7ff, 0x1_a7ff, 0x1_00ff];
    /// Bits that software may carry along unchanged though it cannot write them: delivery status and remote IRR.
    pub const READ_ONLY: [u32; COUNT] = [0x1000, 0x1000, 0x1000, 0x5000, 0x5000, 0x1000];
    /// Delivery mode ExtINT, of bits 10:8.
    pub const EXTINT: u32 = 0b111;
    /// Delivery mode NMI.
    pub const NMI: u32 = 0b100;
    /// Delivery mode fixed.
    pub const FIXED: u32 = 0b000;
}

/// Spurious-interrupt vector register: the APIC is enabled by software.
pub const SVR_ENABLE: u32 = 1 << 8;
/// Spurious-interrupt vector register: an end of interrupt is not broadcast.
pub const SVR_SUPPRESS_EOI_BROADCAST: u32 = 1 << 12;
/// Spurious-interrupt vector register: what can be written.
pub const SVR_WRITABLE: u32 = 0x13ff;

/// Error status: the vector of an interrupt to be sent is below 16.
pub const ERROR_SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
/// Error status: the vector of an interrupt received, or of a local one, is below 16.
pub const ERROR_RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
/// Error status: no such register in the xAPIC page.
pub const ERROR_ILLEGAL_REGISTER: u32 = 1 << 7;

/// IA32_APIC_BASE: the bootstrap processor.
pub const BASE_BSP: u64 = 1 << 8;
/// IA32_APIC_BASE: x2APIC mode.
pub const BASE_X2APIC: u64 = 1 << 10;
/// IA32_APIC_BASE: the APIC is enabled.
pub const BASE_ENABLE: u64 = 1 << 11;
/// IA32_APIC_BASE at reset, without its flags.
pub const BASE_ADDRESS: u64 = 0xfee0_0000;

/// Interrupt command: logical destination mode.
pub const ICR_LOGICAL: u64 = 1 << 11;
/// Interrupt command: assert.
pub const ICR_ASSERT: u64 = 1 << 14;
/// Interrupt command: level-triggered.
pub const ICR_LEVEL: u64 = 1 << 15;
/// Interrupt command, x2APIC: the bits that may be set.
pub const ICR_WRITABLE: u64 = 0xffff_ffff_000c_cfff;
/// Interrupt command: the delivery status, which reads 0 and which software may carry along.
pub const ICR_STATUS: u64 = 1 << 12;

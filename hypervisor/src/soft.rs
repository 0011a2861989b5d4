//! The backend whose CPU is software.

mod alarm;
mod chipset;
mod clock;
mod cpuid;
mod doorbell;
mod ioapic;
mod kvmclock;
mod lapic;
mod message;
mod pic;
mod pit;

//! The backend whose CPU is software.

mod clock;
mod doorbell;
mod ioapic;
mod lapic;
mod message;
mod pic;
mod pit;

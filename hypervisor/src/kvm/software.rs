//! The emulator beside KVM.

use std::sync::Arc;

use reprise_emulator::cpuid::CpuidTable;
use reprise_emulator::{Cpu, Emulator, Host, Model, Ram};

/// A clock that stands while one instruction is executed.
struct Moment(u64);

impl Host for Moment {
    fn tsc(&self) -> u64 {
        self.0
    }

    fn random(&self) -> u64 {
        getrandom::u64().expect("getrandom(2) does not fail on a host that has booted")
    }
}

/// An emulator beside KVM, at the moment `tsc` of the time-stamp counter.
pub fn emulator(cpu: Cpu, ram: &Arc<Ram>, cpuid: &Arc<CpuidTable>, tsc: u64) -> Emulator {
    let model = Arc::new(Model::announcing(cpuid));
    Emulator::new(cpu, Arc::clone(ram), Arc::new(Moment(tsc)), model, Arc::clone(cpuid))
}

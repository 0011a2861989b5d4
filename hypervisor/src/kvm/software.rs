//! The emulator beside KVM: how it is made, and what it asks for.

use std::sync::Arc;

use reprise_emulator::cpuid::CpuidTable;
use reprise_emulator::{Cpu, Direction, Emulator, Host, Model, Ram, Request, Space};

use crate::{Access, IoRequest, RequestId};

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

/// The request as the owner of the vCPU knows it, as `id`.
pub fn to_device(request: &Request, id: RequestId) -> IoRequest {
    IoRequest {
        id,
        space: match request.space {
            Space::Port => crate::Space::Port,
            _ => crate::Space::Memory,
        },
        address: request.address,
        size: request.size,
        access: match request.direction {
            Direction::Read => Access::Read,
            Direction::Write(value) => Access::Write(value),
            Direction::ReadTo { guest, count } => Access::ReadTo { guest, count },
            Direction::WriteFrom { guest, count } => Access::WriteFrom { guest, count },
        },
    }
}

//! An instruction that was in flight when the restored state was taken: it is finished by the emulator, not by KVM.
//!
//! What it has read before is in its record, and KVM takes none. When it has ended, the processor goes back into KVM.

use std::sync::Arc;

use reprise_emulator::cpuid::CpuidTable;
use reprise_emulator::{
    Answer, Cpu, Direction, Emulator, Entry, Error, Exit, Host, InFlight, Model, Ram, Reply, Request, Space,
};

use super::error::{KvmVcpuError, Named};
use super::msrs;
use super::vcpu::KvmVcpu;
use crate::{Access, IoRequest, RequestId, StateError, VcpuError, VmEntry, VmExit};

/// An emulator with an instruction in flight.
pub struct Software {
    emulator: Emulator,
    /// What it waits for, as the vCPU's owner knows it.
    asked: Option<IoRequest>,
}

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

impl Software {
    /// The processor, with its instruction in flight.
    pub fn cpu(&self) -> &Cpu {
        self.emulator.cpu()
    }

    /// The instruction in flight.
    pub fn in_flight(&self) -> Option<InFlight> {
        let in_flight = self.emulator.in_flight()?;
        Some(match self.asked {
            Some(request) => in_flight.renamed(request.id.0),
            None => in_flight,
        })
    }

    /// The device access whose answer is owed.
    pub fn waiting(&self) -> Option<IoRequest> {
        self.asked
    }

    /// What `entry` means to the emulator.
    fn enter(&mut self, entry: VmEntry) -> Result<Entry, VcpuError> {
        let Some(asked) = self.asked else {
            return Ok(Entry::Resume);
        };
        match (entry, self.emulator.waiting_for()) {
            (VmEntry::Answer(answer), Some(own)) if answer.id == asked.id => {
                self.asked = None;
                let reply = Reply::Value(answer.value);
                Ok(Entry::Answer(Answer { id: own.id, reply }))
            }
            _ => Err(VcpuError::AnswerOwed { waiting: asked.id }),
        }
    }
}

impl KvmVcpu {
    /// Has `in_flight`, which `cpu` has begun with, finished before KVM runs.
    ///
    /// # Errors
    /// [`StateError`] if it is no instruction in flight.
    pub(super) fn finish(&mut self, cpu: Cpu, in_flight: &InFlight) -> Result<(), StateError> {
        let mut emulator = emulator(cpu.clone(), &self.machine.ram, &self.cpuid, self.counter());
        emulator.restore(cpu, Some(in_flight))?;
        let asked = emulator
            .waiting_for()
            .map(|request| to_device(&request, RequestId(request.id)));
        self.software = Some(Box::new(Software { emulator, asked }));
        Ok(())
    }

    /// Goes on with the instruction that is finished in software; what it asks for, or `None` if it is done, and KVM goes on.
    ///
    /// # Errors
    /// [`VcpuError`] if it cannot be finished.
    pub(super) fn go_on_in_software(&mut self, entry: VmEntry) -> Result<Option<VmExit>, VcpuError> {
        let Some(mut software) = self.software.take() else {
            return Ok(None);
        };
        let mut entry = match software.enter(entry) {
            Ok(entry) => entry,
            Err(owed) => {
                self.software = Some(software);
                return Err(owed);
            }
        };
        while software.emulator.is_in_flight() || software.emulator.cpu().event.is_some() {
            let rip = software.cpu().rip;
            let exit = software.emulator.run_at_most(entry, 0);
            let exit = exit.map_err(|source: Error| VcpuError::Emulator { rip, source })?;
            let Exit::Request(request) = exit else { break };
            if let Some(reply) = self.answer_in_kernel(&request)? {
                entry = Entry::Answer(Answer { id: request.id, reply });
                continue;
            }
            let request = to_device(&request, self.new_id());
            software.asked = Some(request);
            self.software = Some(software);
            return Ok(Some(VmExit::Io(request)));
        }
        self.replace(software.cpu())?;
        Ok(None)
    }

    /// The answer to a request that is not for a device.
    fn answer_in_kernel(&self, request: &Request) -> Result<Option<Reply>, KvmVcpuError> {
        let clock = |source| KvmVcpuError::Clock {
            source: Box::new(source),
        };
        Ok(match (request.space, request.direction) {
            (Space::Memory, _) => None,
            (Space::Port, Direction::Read) => {
                let value = self.machine.read_ports(request.address as u16, request.size);
                value.map_err(clock)?.map(Reply::Value)
            }
            (Space::Port, Direction::Write(value)) => {
                let taken = self.machine.write_ports(request.address as u16, request.size, value);
                taken.map_err(clock)?.then_some(Reply::Value(0))
            }
            (Space::Port, _) => None,
            (Space::Msr, Direction::Write(value)) => {
                Some(match msrs::set(&self.fd, &[(request.address as u32, value)]) {
                    Ok(()) => Reply::Value(0),
                    Err(_) => Reply::Refused,
                })
            }
            (Space::Msr, _) => Some(match msrs::get(&self.fd, &[request.address as u32]).as_deref() {
                Ok([value]) => Reply::Value(*value),
                _ => Reply::Refused,
            }),
            (Space::TaskPriority, direction) => {
                let mut system = self.fd.get_sregs().of_vcpu("KVM_GET_SREGS")?;
                if let Direction::Write(value) = direction {
                    system.cr8 = value & 0xf;
                    self.fd.set_sregs(&system).of_vcpu("KVM_SET_SREGS")?;
                }
                Some(Reply::Value(system.cr8))
            }
            (Space::Hypercall, _) => Some(Reply::Refused),
        })
    }
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

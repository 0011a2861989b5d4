//! This crate's own vCPUs use a [`Rescuer`] as another program would, and besides save it with an instruction in flight.

use std::sync::Arc;

use reprise_emulator::{Cpu, InFlight, InFlightError};

use super::super::error::{KvmError, KvmVcpuError};
use super::super::failure::EmulationFailure;
use super::super::vcpu::KvmVcpu;
use super::needs::Parts;
use super::{Rescued, Rescuer};
use crate::{Access, Answer, IoRequest, RequestId, Space, StateError, VcpuError, VmEntry, VmExit};

impl Rescuer {
    /// Has `in_flight`, which `cpu` has begun with, finished before KVM runs. The processor goes back as a whole then.
    ///
    /// # Errors
    /// [`InFlightError`]; nothing has changed then.
    fn adopt(&mut self, cpu: Cpu, in_flight: &InFlight) -> Result<(), InFlightError> {
        self.emulator.restore(cpu, Some(in_flight))?;
        self.emulator.leave(None);
        (self.first, self.left, self.held.parts) = (true, 0, Parts::ALL);
        // It may have been executed before it came here, with stores left.
        self.started = u64::MAX;
        self.adopted = true;
        let asks = self.emulator.waiting_for();
        self.asked = asks.map(|request| IoRequest::of(&request, RequestId(request.id)));
        Ok(())
    }

    /// Something is held here that KVM does not have.
    pub(in super::super) fn is_busy(&self) -> bool {
        self.failure.is_some() || self.adopted
    }

    /// The instruction in flight, as this vCPU's owner knows it.
    pub(in super::super) fn in_flight(&self) -> Option<InFlight> {
        let in_flight = self.emulator.in_flight()?;
        Some(match self.asked {
            Some(request) => in_flight.renamed(request.id.0),
            None => in_flight,
        })
    }

    /// The processor: what is held here, over `kvm`'s.
    pub(in super::super) fn overlay(&self, kvm: &mut Cpu) {
        match self.adopted {
            true => kvm.clone_from(self.emulator.cpu()),
            false => self.held.overlay(self.emulator.cpu(), kvm),
        }
    }

    /// Drops what is under way: KVM's state is replaced.
    pub(in super::super) fn cancel(&mut self) {
        self.emulator.cancel();
        self.adopted = false;
        self.idle();
    }

    /// KVM came out for something else.
    pub(in super::super) fn interrupted(&mut self) {
        self.directly = false;
    }
}

impl KvmVcpu {
    /// The rescuer, made when it is first needed.
    fn rescuer(&mut self) -> &mut Rescuer {
        let (fd, machine, cpuid, shape) = (&mut self.fd, &self.machine, &self.cpuid, &self.shape);
        let kick = &self.kick;
        self.rescuer.get_or_insert_with(|| {
            let rescuer = Rescuer::of_model(fd, &machine.ram, Arc::clone(cpuid), Arc::clone(shape));
            kick.also(Arc::clone(rescuer.attention()));
            Box::new(rescuer)
        })
    }

    /// An instruction that KVM cannot emulate. What the vCPU comes out with for it; `None` if it is done, and KVM goes on.
    ///
    /// # Errors
    /// [`VcpuError`] if it cannot be finished here either.
    pub(in super::super) fn rescue(&mut self, failure: EmulationFailure) -> Result<Option<VmExit>, VcpuError> {
        let mut rescuer = self.taken();
        let step = rescuer.rescue(&mut self.fd, failure);
        self.rescued(rescuer, step)
    }

    /// Goes on from `place`, the beginning of the guest's page fault handler, where KVM has stopped for a look.
    ///
    /// # Errors
    /// As [`rescue`](Self::rescue).
    pub(in super::super) fn handle_fault(&mut self, place: EmulationFailure) -> Result<Option<VmExit>, VcpuError> {
        let mut rescuer = self.taken();
        let step = rescuer.handle_fault(&mut self.fd, place);
        self.rescued(rescuer, step)
    }

    /// The rescuer, with what KVM does not have of the processor; [`rescued`](Self::rescued) puts it back.
    fn taken(&mut self) -> Box<Rescuer> {
        self.rescuer();
        let mut rescuer = self.rescuer.take().expect("it was just made");
        // Mostly they are what the last rescue left there. A change has the emulator forget what it can keep otherwise.
        if rescuer.emulator.cpu().msr != self.beside.msr {
            rescuer.emulator.change(|cpu| cpu.msr.clone_from(&self.beside.msr));
        }
        rescuer
    }

    /// Has `in_flight`, which `cpu` has begun with, finished before KVM runs.
    ///
    /// # Errors
    /// [`StateError`] if it is no instruction in flight.
    pub(in super::super) fn finish(&mut self, cpu: Cpu, in_flight: &InFlight) -> Result<(), StateError> {
        Ok(self.rescuer().adopt(cpu, in_flight)?)
    }

    /// Whether an instruction is being finished in software.
    pub(in super::super) fn is_rescuing(&self) -> bool {
        self.rescuer.as_ref().is_some_and(|rescuer| rescuer.is_busy())
    }

    /// Goes on with the instruction that is finished in software; what it asks for, or `None` if it is done, and KVM goes on.
    ///
    /// # Errors
    /// [`VcpuError`] if it cannot be finished.
    pub(in super::super) fn go_on_in_software(&mut self, entry: VmEntry) -> Result<Option<VmExit>, VcpuError> {
        let Some(mut rescuer) = self.rescuer.take() else {
            return Ok(None);
        };
        let step = match (entry, rescuer.waiting()) {
            (VmEntry::Answer(answer), Some(asked)) if answer.id == asked.id => rescuer.answer(&mut self.fd, answer),
            (entry, Some(asked)) => {
                if matches!(entry, VmEntry::Answer(_)) {
                    self.count_stale_answer();
                }
                self.rescuer = Some(rescuer);
                return Err(VcpuError::AnswerOwed { waiting: asked.id });
            }
            // Only stores to RAM are left of it.
            (_, None) => rescuer.go_on(&mut self.fd, super::Entry::Resume, 0),
        };
        self.rescued(rescuer, step)
    }

    /// What comes of a step of a rescue.
    fn rescued(
        &mut self,
        mut rescuer: Box<Rescuer>,
        step: Result<Rescued, KvmVcpuError>,
    ) -> Result<Option<VmExit>, VcpuError> {
        let mut step = step;
        let exit = loop {
            match step {
                Ok(Rescued::Io(request)) => match self.own_port(&request)? {
                    Some(value) => {
                        let id = request.id;
                        step = rescuer.answer(&mut self.fd, Answer { id, value });
                    }
                    None => {
                        let id = self.new_id();
                        let request = IoRequest { id, ..request };
                        rescuer.asked = Some(request);
                        self.count_device_access();
                        break Some(VmExit::Io(request));
                    }
                },
                Ok(end) => {
                    // What KVM does not have is kept beside it.
                    self.beside.msr = rescuer.emulator.cpu().msr.clone();
                    if std::mem::take(&mut rescuer.adopted) {
                        self.replace(rescuer.emulator.cpu())?;
                    }
                    self.shutdown |= end == Rescued::Shutdown;
                    break None;
                }
                Err(error) => {
                    rescuer.cancel();
                    self.rescuer = Some(rescuer);
                    return Err(error.into());
                }
            }
        };
        self.rescuer = Some(rescuer);
        Ok(exit)
    }

    /// The answer of a port whose chip is kept here; `None` if it is a device's.
    fn own_port(&self, request: &IoRequest) -> Result<Option<u64>, KvmVcpuError> {
        let failed = |source: KvmError| KvmVcpuError::Clock {
            source: Box::new(source),
        };
        let port = request.address as u16;
        match (request.space, request.access) {
            (Space::Port, Access::Read) => self.machine.read_ports(port, request.size).map_err(failed),
            (Space::Port, Access::Write(value)) => {
                let taken = self.machine.write_ports(port, request.size, value).map_err(failed)?;
                Ok(taken.then_some(0))
            }
            _ => Ok(None),
        }
    }
}

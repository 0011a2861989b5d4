//! Interrupts and doorbells that the kernel serves: irqfd with message routes, and ioeventfd.
//!
//! # Invariants
//! - An interrupt has a GSI of its own from its birth to its end, and a route and an irqfd as long as it is not masked. While it
//!   is masked its event remembers that it was signalled, and KVM looks at it when it is given the event again.
//! - KVM takes routes all at once. It is told when one changes, and not when a guest writes the same again.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{
    KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_msi,
};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::error::{KvmError, Named};
use super::lines;
use super::vm::Machine;
use crate::signals::{Doorbell, DoorbellAddress, Message, MessageEvent};
use crate::{HypervisorError, Space};

/// The first GSI that is no line's.
const FIRST: u32 = lines::GSIS;
/// As many routes as KVM takes, less the lines'.
const MOST: usize = 4096 - 2 * lines::LINES - 1;

/// Where each signalled interrupt goes; its place is its GSI less [`FIRST`].
#[derive(Debug, Default)]
pub struct Routes(Mutex<Vec<Place>>);

/// A GSI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Free,
    Masked,
    Sends(Message),
}

impl Routes {
    /// Takes a GSI.
    fn take(&self) -> Result<u32, KvmError> {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let index = places.iter().position(|place| *place == Place::Free);
        let index = index.unwrap_or(places.len());
        if index >= MOST {
            return Err(KvmError::Interrupts { most: MOST });
        }
        if index == places.len() {
            places.push(Place::Free);
        }
        places[index] = Place::Masked;
        Ok(FIRST + index as u32)
    }

    /// Changes where `gsi` goes, and tells KVM if that matters; where it went before.
    fn change(&self, fd: &VmFd, gsi: u32, to: Place) -> Result<Place, KvmError> {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(place) = places.get_mut((gsi - FIRST) as usize) else {
            return Ok(Place::Free);
        };
        let before = std::mem::replace(place, to);
        if before != to && matches!(to, Place::Sends(_)) {
            let told = tell(fd, &places);
            if told.is_err() {
                places[(gsi - FIRST) as usize] = before;
                told?;
            }
        }
        Ok(before)
    }
}

/// Tells KVM of all routes. Those that lead nowhere any more need not be told: nobody signals them.
fn tell(fd: &VmFd, places: &[Place]) -> Result<(), KvmError> {
    let mut entries = lines::routes();
    for (gsi, place) in (FIRST..).zip(places) {
        if let Place::Sends(message) = place {
            entries.push(kvm_irq_routing_entry {
                gsi,
                type_: KVM_IRQ_ROUTING_MSI,
                u: kvm_irq_routing_entry__bindgen_ty_1 {
                    msi: kvm_irq_routing_msi {
                        address_lo: message.address as u32,
                        address_hi: (message.address >> 32) as u32,
                        data: message.data,
                        ..kvm_irq_routing_msi::default()
                    },
                },
                ..kvm_irq_routing_entry::default()
            });
        }
    }
    let routing = KvmIrqRouting::from_entries(&entries).map_err(|_| KvmError::Interrupts { most: MOST })?;
    fd.set_gsi_routing(&routing).of_vm("KVM_SET_GSI_ROUTING")
}

/// An interrupt that an event signals.
#[derive(Debug)]
pub struct KvmMessageEvent {
    machine: Arc<Machine>,
    gsi: u32,
    event: EventFd,
    /// Whether KVM has the event.
    given: Mutex<bool>,
}

impl KvmMessageEvent {
    /// A new one, masked.
    ///
    /// # Errors
    /// [`KvmError`].
    pub fn new(machine: Arc<Machine>) -> Result<Self, KvmError> {
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(|source| KvmError::Call {
            call: "eventfd",
            source,
        })?;
        Ok(Self {
            gsi: machine.routes.take()?,
            machine,
            event,
            given: Mutex::new(false),
        })
    }

    fn change(&self, message: Option<Message>) -> Result<(), KvmError> {
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        let fd = &*self.machine.fd;
        match message {
            Some(message) => {
                self.machine.routes.change(fd, self.gsi, Place::Sends(message))?;
                if !*given {
                    fd.register_irqfd(&self.event, self.gsi).of_vm("KVM_IRQFD")?;
                    *given = true;
                }
            }
            None => {
                if *given {
                    fd.unregister_irqfd(&self.event, self.gsi).of_vm("KVM_IRQFD")?;
                    *given = false;
                }
                self.machine.routes.change(fd, self.gsi, Place::Masked)?;
            }
        }
        Ok(())
    }
}

impl MessageEvent for KvmMessageEvent {
    fn set(&self, message: Option<Message>) -> Result<(), HypervisorError> {
        Ok(self.change(message)?)
    }

    fn event(&self) -> &EventFd {
        &self.event
    }
}

impl Drop for KvmMessageEvent {
    fn drop(&mut self) {
        let freed = self
            .change(None)
            .and_then(|()| self.machine.routes.change(&self.machine.fd, self.gsi, Place::Free));
        if let Err(error) = freed {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "an interrupt's event stays KVM's"
            );
        }
    }
}

/// Has KVM signal `event` for writes to `at`.
///
/// # Errors
/// What KVM says.
pub fn doorbell(machine: &Arc<Machine>, at: DoorbellAddress, event: &EventFd) -> Result<Doorbell, KvmError> {
    let event = event
        .try_clone()
        .map_err(|source| KvmError::Call { call: "dup", source })?;
    bell(&machine.fd, at, &event, true)?;
    let machine = Arc::clone(machine);
    Ok(Doorbell::new(move || {
        if let Err(error) = bell(&machine.fd, at, &event, false) {
            tracing::error!(error = &error as &dyn std::error::Error, "a doorbell stays");
        }
    }))
}

fn bell(fd: &VmFd, at: DoorbellAddress, event: &EventFd, add: bool) -> Result<(), KvmError> {
    let address = match at.space {
        Space::Port => IoEventAddress::Pio(at.address),
        Space::Memory => IoEventAddress::Mmio(at.address),
    };
    macro_rules! call {
        ($value:expr) => {
            match add {
                true => fd.register_ioevent(event, &address, $value),
                false => fd.unregister_ioevent(event, &address, $value),
            }
        };
    }
    let result = match at.value {
        None => call!(NoDatamatch),
        Some((value, 1)) => call!(value as u8),
        Some((value, 2)) => call!(value as u16),
        Some((value, 4)) => call!(value as u32),
        Some((value, 8)) => call!(value),
        Some(_) => {
            return Err(KvmError::Call {
                call: "KVM_IOEVENTFD",
                source: io::ErrorKind::InvalidInput.into(),
            });
        }
    };
    result.of_vm("KVM_IOEVENTFD")
}

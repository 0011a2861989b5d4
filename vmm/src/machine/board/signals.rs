//! What passes between devices of this process and the guest: interrupts one way, notifications the other.
//!
//! # Two ways
//! A backend in software is told of each message, and its vCPUs come out with each notification. Where the host's kernel has
//! [events](Vm::message_event) and [doorbells](Vm::doorbell), a device's interrupt is one write to an event, and a notification
//! wakes the device's thread without any vCPU coming out.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use reprise_devices::pci::{Message, Messages};
use reprise_devices::virtio::Doorbells;
use reprise_devices::virtio::doorbells::Kept;
use reprise_hypervisor::signals::{DoorbellAddress, MessageEvent};
use reprise_hypervisor::{Space, Vm, signals};
use vmm_sys_util::eventfd::EventFd;

/// Carries messages to the local APICs one by one.
pub(super) struct Direct(pub(super) Arc<dyn Vm>);

impl Messages for Direct {
    fn send(&self, message: Message) {
        self.0.signal_msi(message.address, message.data);
    }
}

/// The vectors of one function: each has an event of its own once it may be sent.
pub(super) struct Events {
    vm: Arc<dyn Vm>,
    vectors: Mutex<BTreeMap<u16, Vector>>,
}

enum Vector {
    Event(Arc<dyn MessageEvent>),
    /// The host had no event for it, and is not asked again.
    Refused,
}

impl Events {
    /// No vector has an event yet.
    pub(super) fn new(vm: Arc<dyn Vm>) -> Self {
        let vectors = Mutex::default();
        Self { vm, vectors }
    }

    fn make(&self, vector: u16) -> Vector {
        match self.vm.message_event() {
            Ok(event) => Vector::Event(event),
            Err(error) => {
                tracing::debug!(vector, %error, "the messages of a vector are sent one by one");
                Vector::Refused
            }
        }
    }
}

impl Messages for Events {
    fn send(&self, message: Message) {
        self.vm.signal_msi(message.address, message.data);
    }

    fn signal(&self, vector: u16, message: Message) {
        let vectors = self.vectors.lock().unwrap_or_else(PoisonError::into_inner);
        match vectors.get(&vector) {
            Some(Vector::Event(event)) => event.signal(),
            _ => self.send(message),
        }
    }

    fn route(&self, vector: u16, message: Option<Message>) {
        let mut vectors = self.vectors.lock().unwrap_or_else(PoisonError::into_inner);
        if message.is_none() && !vectors.contains_key(&vector) {
            return;
        }
        let known = vectors.entry(vector).or_insert_with(|| self.make(vector));
        let Vector::Event(event) = known else { return };
        let message = message.map(|message| signals::Message {
            address: message.address,
            data: message.data,
        });
        if let Err(error) = event.set(message) {
            tracing::debug!(vector, %error, "the messages of a vector are sent one by one");
            *known = Vector::Refused;
        }
    }
}

/// Has the hypervisor take notifications.
pub(super) struct Bells(pub(super) Arc<dyn Vm>);

impl Doorbells for Bells {
    fn keep(&self, address: u64, bell: &EventFd) -> Option<Kept> {
        let at = DoorbellAddress {
            space: Space::Memory,
            address,
            value: None,
        };
        match self.0.doorbell(at, bell) {
            Ok(doorbell) => Some(Box::new(doorbell)),
            Err(error) => {
                tracing::debug!(address, %error, "notifications of a queue are device accesses");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests;

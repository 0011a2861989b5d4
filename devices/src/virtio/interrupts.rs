//! How a virtio device calls its driver: MSI-X vectors for queues and for configuration changes, and the ISR status register.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering::SeqCst};

use crate::pci::Msix;

/// VIRTIO_MSI_NO_VECTOR.
pub(super) const NO_VECTOR: u16 = 0xffff;

/// Bits of ISR status.
mod isr {
    pub const QUEUE: u8 = 1 << 0;
    pub const CONFIG: u8 = 1 << 1;
}

/// Shared by the registers and the queues' threads.
pub(super) struct Interrupts {
    msix: Arc<Msix>,
    isr: AtomicU8,
    config: AtomicU16,
    queues: Box<[AtomicU16]>,
    needs_reset: AtomicBool,
}

impl Interrupts {
    pub(super) fn new(msix: Arc<Msix>, queues: usize) -> Self {
        Self {
            msix,
            isr: AtomicU8::new(0),
            config: AtomicU16::new(NO_VECTOR),
            queues: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            needs_reset: AtomicBool::new(false),
        }
    }

    /// A used buffer notification of queue `index`. With MSI-X the ISR status register stays out of it (virtio 1.2, "Used
    /// Buffer Notifications").
    pub(super) fn queue_used(&self, index: usize) {
        if self.msix.is_enabled() {
            self.send(&self.queues[index]);
        } else {
            self.isr.fetch_or(isr::QUEUE, SeqCst);
        }
    }

    /// The device cannot go on: DEVICE_NEEDS_RESET, and a configuration change notification.
    pub(super) fn need_reset(&self) {
        if !self.needs_reset.swap(true, SeqCst) {
            self.config_changed();
        }
    }

    /// A configuration change notification.
    pub(super) fn config_changed(&self) {
        if self.msix.is_enabled() {
            self.send(&self.config);
        } else {
            self.isr.fetch_or(isr::CONFIG, SeqCst);
        }
    }

    fn send(&self, vector: &AtomicU16) {
        let vector = vector.load(SeqCst);
        if vector != NO_VECTOR {
            self.msix.signal(vector);
        }
    }

    pub(super) fn needs_reset(&self) -> bool {
        self.needs_reset.load(SeqCst)
    }

    /// Reads the ISR status register, which clears it.
    pub(super) fn take_isr(&self) -> u8 {
        self.isr.swap(0, SeqCst)
    }

    pub(super) fn isr(&self) -> u8 {
        self.isr.load(SeqCst)
    }

    pub(super) fn config_vector(&self) -> u16 {
        self.config.load(SeqCst)
    }

    pub(super) fn queue_vector(&self, index: usize) -> u16 {
        self.queues.get(index).map_or(NO_VECTOR, |vector| vector.load(SeqCst))
    }

    pub(super) fn set_config_vector(&self, vector: u16) {
        self.config.store(self.known(vector), SeqCst);
    }

    pub(super) fn set_queue_vector(&self, index: usize, vector: u16) {
        if let Some(place) = self.queues.get(index) {
            place.store(self.known(vector), SeqCst);
        }
    }

    pub(super) fn reset(&self) {
        self.restore(0, false);
        self.config.store(NO_VECTOR, SeqCst);
        for vector in &self.queues {
            vector.store(NO_VECTOR, SeqCst);
        }
    }

    pub(super) fn restore(&self, isr: u8, needs_reset: bool) {
        self.isr.store(isr & (isr::QUEUE | isr::CONFIG), SeqCst);
        self.needs_reset.store(needs_reset, SeqCst);
    }

    /// A vector that cannot be mapped reads back as none.
    fn known(&self, vector: u16) -> u16 {
        if vector < self.msix.vectors() {
            vector
        } else {
            NO_VECTOR
        }
    }
}

//! The common configuration structure (virtio 1.2, "Common configuration structure layout").
//!
//! An access may be of any width at any place: reads show the structure's bytes, and writes change those bytes of the fields
//! that they touch, one field after the other in rising order.

use virtio_queue::QueueState;

use super::{EVENT_IDX, RING_RESET, VERSION_1, VirtioPci, status};
use crate::bytes;

/// Bytes of the structure, up to queue_reset.
pub(super) const LENGTH: usize = 0x3c;

/// A field that can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    DeviceFeatureSelect,
    DriverFeatureSelect,
    DriverFeature,
    ConfigVector,
    DeviceStatus,
    QueueSelect,
    QueueSize,
    QueueVector,
    QueueEnable,
    QueueDesc,
    QueueDriver,
    QueueDevice,
    QueueReset,
}

/// The fields that can be written: offset and length in bytes.
const FIELDS: [(Field, u64, u64); 13] = [
    (Field::DeviceFeatureSelect, 0x00, 4),
    (Field::DriverFeatureSelect, 0x08, 4),
    (Field::DriverFeature, 0x0c, 4),
    (Field::ConfigVector, 0x10, 2),
    (Field::DeviceStatus, 0x14, 1),
    (Field::QueueSelect, 0x16, 2),
    (Field::QueueSize, 0x18, 2),
    (Field::QueueVector, 0x1a, 2),
    (Field::QueueEnable, 0x1c, 2),
    (Field::QueueDesc, 0x20, 8),
    (Field::QueueDriver, 0x28, 8),
    (Field::QueueDevice, 0x30, 8),
    (Field::QueueReset, 0x3a, 2),
];

/// How the driver has set up a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct QueueSetup {
    pub(super) max_size: u16,
    pub(super) size: u16,
    pub(super) enabled: bool,
    pub(super) desc: u64,
    pub(super) driver: u64,
    pub(super) device: u64,
}

impl QueueSetup {
    fn new(max_size: u16) -> Self {
        Self {
            max_size,
            size: max_size,
            enabled: false,
            desc: 0,
            driver: 0,
            device: 0,
        }
    }

    /// A queue at its beginning.
    fn queue(&self, features: u64) -> QueueState {
        QueueState {
            max_size: self.max_size,
            next_avail: 0,
            next_used: 0,
            event_idx_enabled: features & EVENT_IDX != 0,
            size: self.size,
            ready: true,
            desc_table: self.desc,
            avail_ring: self.driver,
            used_ring: self.device,
        }
    }
}

/// What lies behind the structure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Common {
    pub(super) device_feature_select: u32,
    pub(super) driver_feature_select: u32,
    pub(super) driver_features: u64,
    pub(super) status: u8,
    pub(super) queue_select: u16,
    pub(super) queues: Vec<QueueSetup>,
    /// What device_status shows while threads let go after a reset.
    pub(super) resetting: Option<u8>,
}

impl Common {
    pub(super) fn new(sizes: &[u16]) -> Self {
        Self {
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            status: 0,
            queue_select: 0,
            queues: sizes.iter().map(|size| QueueSetup::new(*size)).collect(),
            resetting: None,
        }
    }

    /// The structure as it reads now.
    pub(super) fn image(&self, of: &VirtioPci) -> [u8; LENGTH] {
        let mut image = [0; LENGTH];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x00, &self.device_feature_select.to_le_bytes());
        put(0x04, &half(of.offered, self.device_feature_select).to_le_bytes());
        put(0x08, &self.driver_feature_select.to_le_bytes());
        put(
            0x0c,
            &half(self.driver_features, self.driver_feature_select).to_le_bytes(),
        );
        put(0x10, &of.interrupts.config_vector().to_le_bytes());
        put(0x12, &(self.queues.len() as u16).to_le_bytes());
        put(0x14, &[self.shown_status(of)]);
        put(0x15, &[of.shown().generation]);
        put(0x16, &self.queue_select.to_le_bytes());
        let index = usize::from(self.queue_select);
        // A queue that is not there has size 0, and reads as zero.
        if let Some(queue) = self.queues.get(index) {
            put(0x18, &queue.size.to_le_bytes());
            put(0x1a, &of.interrupts.queue_vector(index).to_le_bytes());
            put(0x1c, &u16::from(queue.enabled).to_le_bytes());
            put(0x1e, &self.queue_select.to_le_bytes());
            put(0x20, &queue.desc.to_le_bytes());
            put(0x28, &queue.driver.to_le_bytes());
            put(0x30, &queue.device.to_le_bytes());
            put(0x38, &self.queue_select.to_le_bytes());
            let letting_go = !queue.enabled && of.queues[index].is_serving();
            put(0x3a, &u16::from(letting_go).to_le_bytes());
        }
        image
    }

    pub(super) fn shown_status(&self, of: &VirtioPci) -> u8 {
        let needs_reset = if of.interrupts.needs_reset() {
            status::NEEDS_RESET
        } else {
            0
        };
        match self.resetting {
            Some(before) if of.is_letting_go() => before | needs_reset,
            _ => self.status | needs_reset,
        }
    }

    /// Writes the fields that `size` bytes at `offset` touch.
    pub(super) fn write(&mut self, of: &VirtioPci, offset: u64, size: u8, value: u64) {
        let end = offset + u64::from(size);
        for (field, start, length) in FIELDS {
            if offset < start + length && start < end {
                let mut field_bytes = self.raw(of, field).to_le_bytes();
                bytes::write(offset, size, value, |at, byte| {
                    if let Some(place) = at.checked_sub(start).filter(|place| *place < length) {
                        field_bytes[place as usize] = byte;
                    }
                });
                self.set(of, field, u64::from_le_bytes(field_bytes));
            }
        }
    }

    /// A field's value, for the bytes of it that a write leaves out.
    fn raw(&self, of: &VirtioPci, field: Field) -> u64 {
        let index = usize::from(self.queue_select);
        let queue = self.queues.get(index).copied().unwrap_or(QueueSetup::new(0));
        match field {
            Field::DeviceFeatureSelect => self.device_feature_select.into(),
            Field::DriverFeatureSelect => self.driver_feature_select.into(),
            Field::DriverFeature => half(self.driver_features, self.driver_feature_select).into(),
            Field::ConfigVector => of.interrupts.config_vector().into(),
            Field::DeviceStatus => self.status.into(),
            Field::QueueSelect => self.queue_select.into(),
            Field::QueueSize => queue.size.into(),
            Field::QueueVector => of.interrupts.queue_vector(index).into(),
            Field::QueueDesc => queue.desc,
            Field::QueueDriver => queue.driver,
            Field::QueueDevice => queue.device,
            // Written whole or not at all: one half must not stand for a command.
            Field::QueueEnable | Field::QueueReset => 0,
        }
    }

    fn set(&mut self, of: &VirtioPci, field: Field, value: u64) {
        let index = usize::from(self.queue_select);
        match field {
            Field::DeviceFeatureSelect => self.device_feature_select = value as u32,
            Field::DriverFeatureSelect => self.driver_feature_select = value as u32,
            Field::DriverFeature => self.accept(value as u32),
            Field::ConfigVector => of.interrupts.set_config_vector(value as u16),
            Field::DeviceStatus => self.set_status(of, value as u8),
            Field::QueueSelect => self.queue_select = value as u16,
            Field::QueueVector => of.interrupts.set_queue_vector(index, value as u16),
            Field::QueueEnable => {
                if value == 1 {
                    self.enable(of, index);
                }
            }
            Field::QueueReset => {
                if value == 1 && self.driver_features & RING_RESET != 0 {
                    self.reset_queue(of, index);
                }
            }
            Field::QueueSize | Field::QueueDesc | Field::QueueDriver | Field::QueueDevice => {
                // What is enabled is in use.
                let Some(queue) = self.queues.get_mut(index).filter(|queue| !queue.enabled) else {
                    return;
                };
                match field {
                    Field::QueueSize => {
                        let size = value as u16;
                        if size.is_power_of_two() && size <= queue.max_size {
                            queue.size = size;
                        }
                    }
                    Field::QueueDesc => queue.desc = value,
                    Field::QueueDriver => queue.driver = value,
                    _ => queue.device = value,
                }
            }
        }
    }

    /// Takes half of the driver's features; after FEATURES_OK they stand.
    fn accept(&mut self, features: u32) {
        let shift = match self.driver_feature_select {
            0 => 0,
            1 => 32,
            _ => return,
        };
        if self.status & status::FEATURES_OK == 0 {
            self.driver_features &= !(u64::from(u32::MAX) << shift);
            self.driver_features |= u64::from(features) << shift;
        }
    }

    fn set_status(&mut self, of: &VirtioPci, value: u8) {
        if value == 0 {
            let shown = self.shown_status(of);
            of.reset();
            let sizes: Vec<_> = self.queues.iter().map(|queue| queue.max_size).collect();
            *self = Self {
                resetting: Some(shown).filter(|shown| *shown != 0),
                ..Self::new(&sizes)
            };
            return;
        }
        // Whoever goes on has seen the reset end; from here on a thread at work is at the new rings.
        self.resetting = None;
        // Bits are set one after the other and never cleared but all at once.
        let mut new = value & !self.status & !status::NEEDS_RESET;
        let features = self.driver_features;
        let sound = features & !of.offered == 0 && features & VERSION_1 != 0;
        if new & status::FEATURES_OK != 0 && !sound {
            new &= !status::FEATURES_OK;
        }
        if (self.status | new) & status::FEATURES_OK == 0 {
            new &= !status::DRIVER_OK;
        }
        self.status |= new;
        if new & status::DRIVER_OK != 0 {
            for (index, queue) in self.queues.iter().enumerate() {
                if queue.enabled {
                    of.start(index, queue.queue(features), features);
                }
            }
        }
    }

    fn enable(&mut self, of: &VirtioPci, index: usize) {
        let features = self.driver_features;
        let running = self.status & status::DRIVER_OK != 0;
        if let Some(queue) = self.queues.get_mut(index).filter(|queue| !queue.enabled) {
            queue.enabled = true;
            if running {
                of.start(index, queue.queue(features), features);
            }
        }
    }

    fn reset_queue(&mut self, of: &VirtioPci, index: usize) {
        if let Some(queue) = self.queues.get_mut(index) {
            *queue = QueueSetup::new(queue.max_size);
            of.queues[index].reset();
            of.interrupts
                .set_queue_vector(index, super::super::interrupts::NO_VECTOR);
        }
    }
}

/// The half of `features` that `select` names; there are two.
fn half(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

//! A virtio device as plain data. Its function's configuration space and MSI-X are saved with the bus.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use virtio_queue::QueueState;

use super::common::{Common, QueueSetup};
use super::{EVENT_IDX, Shown, VirtioPci, status};
use crate::sync::lock;
use crate::virtio::device::DeviceStateError;

/// What a [`VirtioPci`] remembers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioState {
    /// device_feature_select.
    pub device_feature_select: u32,
    /// driver_feature_select.
    pub driver_feature_select: u32,
    /// The features that the driver has written.
    pub driver_features: u64,
    /// device_status, as the driver has set it.
    pub status: u8,
    /// DEVICE_NEEDS_RESET.
    pub needs_reset: bool,
    /// ISR status.
    pub isr: u8,
    /// config_msix_vector.
    pub config_vector: u16,
    /// queue_select.
    pub queue_select: u16,
    /// config_generation.
    pub generation: u8,
    /// The device configuration structure that it stands for.
    pub config: Vec<u8>,
    /// The queues.
    pub queues: Vec<QueueSetupState>,
    /// What the device itself [remembers](super::VirtioDevice::save).
    pub device: Vec<u8>,
}

/// A queue of a [`VirtioState`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueSetupState {
    /// queue_size.
    pub size: u16,
    /// queue_enable.
    pub enabled: bool,
    /// queue_msix_vector.
    pub vector: u16,
    /// queue_desc.
    pub desc: u64,
    /// queue_driver.
    pub driver: u64,
    /// queue_device.
    pub device: u64,
    /// If it runs: how many buffers were taken from the available ring, modulo 2^16.
    pub next_avail: Option<u16>,
    /// If it runs: how many were put into the used ring, modulo 2^16.
    pub next_used: Option<u16>,
}

/// A device that cannot be saved, or cannot go on from a state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VirtioStateError {
    /// A request is being served.
    #[error("{name} has not finished a request")]
    Busy {
        /// The device.
        name: String,
    },
    /// Another number of queues was saved.
    #[error("{name} was saved with {saved} queues and has {own}")]
    Queues {
        /// The device.
        name: String,
        /// How many were saved.
        saved: usize,
        /// How many there are.
        own: usize,
    },
    /// A queue's size is none, or its rings are not in guest memory.
    #[error("queue {queue} of {name} cannot be as it was saved")]
    Queue {
        /// The device.
        name: String,
        /// The queue.
        queue: usize,
    },
    /// The driver uses what the device does not offer.
    #[error("the driver of {name} uses the features {features:#x}, which are not offered here")]
    Features {
        /// The device.
        name: String,
        /// Those that are not offered.
        features: u64,
    },
    /// The device refuses what it shall remember.
    #[error("{name} cannot go on from what it was saved with")]
    Device {
        /// The device.
        name: String,
        /// Why.
        source: DeviceStateError,
    },
}

impl VirtioPci {
    /// What the device remembers. It is paused.
    ///
    /// # Errors
    /// [`VirtioStateError::Busy`] if a request is being served all the same.
    pub fn state(&self) -> Result<VirtioState, VirtioStateError> {
        if !self.set_paused(true, Duration::ZERO) {
            return Err(VirtioStateError::Busy {
                name: self.name.clone(),
            });
        }
        let common = lock(&self.common);
        let shown = self.shown();
        let queues = common.queues.iter().enumerate().map(|(index, setup)| {
            let running = self.queues[index].state();
            QueueSetupState {
                size: setup.size,
                enabled: setup.enabled,
                vector: self.interrupts.queue_vector(index),
                desc: setup.desc,
                driver: setup.driver,
                device: setup.device,
                next_avail: running.map(|queue| queue.next_avail),
                next_used: running.map(|queue| queue.next_used),
            }
        });
        Ok(VirtioState {
            device_feature_select: common.device_feature_select,
            driver_feature_select: common.driver_feature_select,
            driver_features: common.driver_features,
            status: common.status,
            needs_reset: self.interrupts.needs_reset(),
            isr: self.interrupts.isr(),
            config_vector: self.interrupts.config_vector(),
            queue_select: common.queue_select,
            generation: shown.generation,
            config: shown.config.clone(),
            queues: queues.collect(),
            device: self.device.save(),
        })
    }

    /// Goes on from `state`, paused. Guest memory is as it was then.
    ///
    /// # Errors
    /// [`VirtioStateError`] if this device cannot; nothing has changed then.
    pub fn restore(&self, state: &VirtioState) -> Result<(), VirtioStateError> {
        let name = || self.name.clone();
        let (own, saved) = (self.queues.len(), state.queues.len());
        if own != saved {
            return Err(VirtioStateError::Queues {
                name: name(),
                saved,
                own,
            });
        }
        let agreed = state.status & status::FEATURES_OK != 0;
        let features = state.driver_features & !self.offered;
        if agreed && features != 0 {
            return Err(VirtioStateError::Features { name: name(), features });
        }
        let mut setups = Vec::new();
        let mut running = Vec::new();
        let own = lock(&self.common).clone();
        for (index, (queue, setup)) in state.queues.iter().zip(own.queues).enumerate() {
            let refused = VirtioStateError::Queue {
                name: name(),
                queue: index,
            };
            if !queue.size.is_power_of_two() || queue.size > setup.max_size {
                return Err(refused);
            }
            let setup = QueueSetup {
                max_size: setup.max_size,
                size: queue.size,
                enabled: queue.enabled,
                desc: queue.desc,
                driver: queue.driver,
                device: queue.device,
            };
            if let (Some(next_avail), Some(next_used)) = (queue.next_avail, queue.next_used) {
                let queue = self.queue(QueueState {
                    max_size: setup.max_size,
                    next_avail,
                    next_used,
                    event_idx_enabled: state.driver_features & EVENT_IDX != 0,
                    size: setup.size,
                    ready: true,
                    desc_table: setup.desc,
                    avail_ring: setup.driver,
                    used_ring: setup.device,
                });
                running.push((index, queue.ok_or(refused)?));
            }
            setups.push(setup);
        }
        self.set_paused(true, Duration::ZERO);
        let refused = |source| VirtioStateError::Device { name: name(), source };
        self.device.restore(&state.device).map_err(refused)?;
        let mut shown = lock(&self.config);
        let mut config = state.config.clone();
        config.resize(shown.config.len(), 0);
        *shown = Shown {
            config,
            generation: state.generation,
        };
        drop(shown);
        for queue in &self.queues {
            queue.reset();
        }
        *lock(&self.common) = Common {
            device_feature_select: state.device_feature_select,
            driver_feature_select: state.driver_feature_select,
            driver_features: state.driver_features,
            status: state.status & !status::NEEDS_RESET,
            queue_select: state.queue_select,
            queues: setups,
            resetting: None,
        };
        self.interrupts.restore(state.isr, state.needs_reset);
        self.interrupts.set_config_vector(state.config_vector);
        for (index, queue) in state.queues.iter().enumerate() {
            self.interrupts.set_queue_vector(index, queue.vector);
        }
        for (index, queue) in running {
            self.queues[index].start(queue, state.driver_features);
        }
        self.restored.store(true, SeqCst);
        Ok(())
    }
}

//! The machine's clock: KVM's own, which kvmclock shows the guest, but that it stands while the machine is paused.
//!
//! KVM's goes on meanwhile, and is put back to where it stood when the machine continues.

use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::kvm_clock_data;
use kvm_ioctls::VmFd;

use super::error::{KvmError, Named};

/// Nanoseconds since the machine was made, less the time it was paused.
#[derive(Debug)]
pub struct Clock {
    fd: Arc<VmFd>,
    /// Where it stands while the machine is paused.
    held: Mutex<Option<u64>>,
}

impl Clock {
    /// The clock of the machine `fd`.
    pub fn new(fd: Arc<VmFd>) -> Self {
        Self {
            fd,
            held: Mutex::new(None),
        }
    }

    /// What KVM's clock says, paused or not.
    ///
    /// # Errors
    /// What KVM says.
    pub fn kernel(&self) -> Result<u64, KvmError> {
        Ok(self.fd.get_clock().of_vm("KVM_GET_CLOCK")?.clock)
    }

    /// The time in nanoseconds.
    ///
    /// # Errors
    /// What KVM says.
    pub fn now(&self) -> Result<u64, KvmError> {
        let held = *self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.map_or_else(|| self.kernel(), Ok)
    }

    /// Whether it stands.
    pub fn is_held(&self) -> bool {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Stops the clock, unless it stands.
    ///
    /// # Errors
    /// What KVM says.
    pub fn hold(&self) -> Result<(), KvmError> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.is_none() {
            *held = Some(self.kernel()?);
        }
        Ok(())
    }

    /// Stops the clock at `now`.
    pub fn hold_at(&self, now: u64) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
    }

    /// Continues the clock; whether it stood.
    ///
    /// # Errors
    /// What KVM says; the clock goes on then from where KVM's is.
    pub fn release(&self) -> Result<bool, KvmError> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(clock) = held else { return Ok(false) };
        let data = kvm_clock_data {
            clock,
            ..kvm_clock_data::default()
        };
        self.fd.set_clock(&data).of_vm("KVM_SET_CLOCK")?;
        Ok(true)
    }
}

//! Instructions that KVM cannot emulate.

use super::error::KvmVcpuError;
use super::failure::EmulationFailure;
use super::vcpu::KvmVcpu;
use crate::{VcpuError, VmExit};

impl KvmVcpu {
    /// An instruction that KVM cannot emulate. What the vCPU comes out with for it; `None` if it is done, and KVM goes on.
    ///
    /// # Errors
    /// [`VcpuError`] if it cannot be finished here either.
    pub(super) fn rescue(&mut self, failure: EmulationFailure) -> Result<Option<VmExit>, VcpuError> {
        let failure = Box::new(failure);
        Err(KvmVcpuError::Emulation { failure }.into())
    }
}

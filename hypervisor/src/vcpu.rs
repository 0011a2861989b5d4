//! One virtual CPU.

use std::sync::Arc;

use reprise_emulator::Cpu;

use crate::{IoRequest, VcpuError, VcpuState, VmEntry, VmExit};

/// One virtual CPU, owned by the thread that runs it.
pub trait Vcpu: Send {
    /// Runs guest code until something outside the CPU is needed.
    ///
    /// A halted CPU, and one that waits for its start-up IPI, sleeps inside this call until an interrupt or a
    /// [`Kick`] wakes it.
    ///
    /// # Errors
    /// [`VcpuError`] if the vCPU cannot go on at all; the guest's own faults are never errors.
    fn run(&mut self, entry: VmEntry) -> Result<VmExit, VcpuError>;

    /// The architectural state of the processor.
    ///
    /// # Errors
    /// [`VcpuError`] if the backend cannot read it.
    fn cpu(&self) -> Result<Box<Cpu>, VcpuError>;

    /// Replaces the architectural state of the processor; an instruction in flight is cancelled.
    ///
    /// # Errors
    /// [`VcpuError::State`] if no processor can be in this state; nothing has changed then.
    fn set_cpu(&mut self, cpu: &Cpu) -> Result<(), VcpuError>;

    /// Everything that this vCPU has of its own, as a snapshot holds it. [`crate::state`] tells when and in which order.
    ///
    /// # Errors
    /// [`VcpuError`] if the backend cannot read it.
    fn state(&self) -> Result<VcpuState, VcpuError>;

    /// Goes on from `state`. What was in flight is cancelled, and an answer to it is stale.
    ///
    /// # Errors
    /// [`VcpuError::State`] if this vCPU cannot go on from it; nothing has changed then.
    fn restore(&mut self, state: VcpuState) -> Result<(), VcpuError>;

    /// The device access whose answer is owed: that of the last exit, or one that was owed when the restored state was
    /// taken. `None` if nothing is owed, or no longer: an INIT that another processor sent ends the wait. Enter with [`VmEntry::Resume`] then; an answer that comes all the same is
    /// discarded, and counted among `stale_answers`.
    fn waiting(&self) -> Option<IoRequest>;

    /// Has `call` called, from any thread, when something has arrived that ends the wait for a device, so that its owner
    /// asks [`waiting`](Self::waiting) again. It must not block, nor call back into the machine. A later `call` replaces it.
    fn on_call(&self, call: Arc<dyn Fn() + Send + Sync>);

    /// A handle with which any thread makes [`run`](Self::run) return soon.
    fn kick(&self) -> Arc<dyn Kick>;

    /// Figures for `vm.counters`: name and value, in a fixed order.
    fn counters(&self) -> Vec<(&'static str, u64)>;
}

/// Makes a running or sleeping vCPU return [`VmExit::Interrupted`] soon; one that is not running does so when it is
/// entered next. A device access that is under way is not disturbed: its exit is reported first.
pub trait Kick: Send + Sync {
    /// Kicks. Several kicks before the vCPU sees the first count as one.
    fn kick(&self);
}

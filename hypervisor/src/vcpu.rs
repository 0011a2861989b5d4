//! One virtual CPU.

use std::sync::Arc;

use reprise_emulator::Cpu;

use crate::{IoRequest, VcpuError, VmEntry, VmExit};

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

    /// The architectural state.
    ///
    /// # Errors
    /// [`VcpuError`] if the backend cannot read it.
    fn state(&self) -> Result<Box<Cpu>, VcpuError>;

    /// Replaces the architectural state; an instruction in flight is cancelled.
    ///
    /// # Errors
    /// [`VcpuError`] if the backend refuses it.
    fn set_state(&mut self, state: &Cpu) -> Result<(), VcpuError>;

    /// The device access whose answer is owed: that of the last exit. `None` if nothing is owed, or no longer: an INIT that
    /// another processor sent ends the wait. Enter with [`VmEntry::Resume`] then; an answer that comes all the same is
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

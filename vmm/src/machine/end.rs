//! How a machine ends: once, with one [`MachineEnd`], by whichever of its threads is first.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

use reprise_devices::MachineEvent;
use reprise_hypervisor::{GuestMemory, Kick, Vcpu};

use super::gate::Gate;
use super::postmortem;
use crate::vcpu_loop::Ended;

/// Why a machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineEnd {
    /// The guest powered off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest wrote this byte to the debug-exit port.
    DebugExit(u8),
    /// A triple fault.
    Shutdown,
    /// The person at the terminal left (Ctrl-A x).
    ConsoleLeft,
    /// A vCPU cannot go on.
    Failed(String),
}

impl From<MachineEvent> for MachineEnd {
    fn from(event: MachineEvent) -> Self {
        match event {
            MachineEvent::PowerOff => Self::PowerOff,
            MachineEvent::Reset => Self::Reset,
            MachineEvent::DebugExit(code) => Self::DebugExit(code),
        }
    }
}

/// Who is told of a machine's end.
pub(super) type OnEnd = Box<dyn Fn(MachineEnd) + Send + Sync>;

/// What the threads of a machine share.
pub(super) struct Shared {
    pub gate: Arc<Gate>,
    pub kicks: OnceLock<Vec<Arc<dyn Kick>>>,
    /// Taken by the first who ends the machine.
    on_end: Mutex<Option<OnEnd>>,
}

impl Shared {
    pub fn new(vcpus: usize, on_end: OnEnd) -> Self {
        Self {
            gate: Gate::new(vcpus),
            kicks: OnceLock::new(),
            on_end: Mutex::new(Some(on_end)),
        }
    }

    /// The machine ends by itself; only the first end counts.
    pub fn end(&self, end: MachineEnd) {
        let on_end = self.on_end.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(on_end) = on_end {
            tracing::debug!(?end, "the machine ends");
            self.gate.stop();
            self.kick();
            on_end(end);
        }
    }

    /// The machine is stopped from outside: whatever its guest does meanwhile is no end any more.
    pub fn stop(&self) {
        drop(self.on_end.lock().unwrap_or_else(PoisonError::into_inner).take());
        self.gate.stop();
        self.kick();
    }

    pub fn kick(&self) {
        for kick in self.kicks.get().into_iter().flatten() {
            kick.kick();
        }
    }
}

/// Ends the machine if its thread panics.
pub(super) struct Fallen<'a> {
    pub shared: &'a Shared,
    pub index: u32,
}

impl Drop for Fallen<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.shared.end(MachineEnd::Failed(format!(
                "the thread of vCPU {} panicked",
                self.index
            )));
        }
    }
}

/// What a vCPU's end means for the machine, and in the log.
pub(super) fn explain(ended: Ended, index: u32, vcpu: &dyn Vcpu, memory: &GuestMemory) -> Option<MachineEnd> {
    let place = || match vcpu.cpu() {
        Ok(cpu) => postmortem::describe(&cpu, memory),
        Err(error) => format!("its state cannot be read: {error}"),
    };
    match ended {
        Ended::Stopped => None,
        Ended::Shutdown => {
            tracing::warn!(vcpu = index, place = place(), "triple fault");
            Some(MachineEnd::Shutdown)
        }
        Ended::Failed(error) => {
            let reason = format!("vCPU {index}: {}; {}", chain(&error), place());
            tracing::error!(vcpu = index, reason, "a vCPU cannot go on");
            Some(MachineEnd::Failed(reason))
        }
    }
}

/// An error and what caused it, in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

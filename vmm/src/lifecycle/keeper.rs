//! The `lifecycle` thread: does what follows when a guest ends on its own, or has let go of a device.

use std::io;
use std::sync::Weak;
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::Duration;

use super::{Control, End, Inner, News, WhenGuestEnds};
use crate::machine::MachineEnd;

/// A triple fault resets a processor, and a guest that faults again right after each reset would do so for ever: at this
/// many in a row, the machine is given up.
const TRIPLE_FAULTS: u32 = 3;

/// A machine that ran for longer has got somewhere, and its triple fault begins a new row.
const SOON: Duration = Duration::from_secs(10);

/// Starts the thread. It ends when the VMM and its machine are gone.
pub(super) fn spawn(vmm: Weak<Inner>, told: Receiver<(u64, News)>) -> io::Result<()> {
    thread::Builder::new().name("lifecycle".to_owned()).spawn(move || {
        for (generation, news) in told {
            let Some(vmm) = vmm.upgrade() else { return };
            match news {
                News::Ended(end) => vmm.guest_ended(generation, end),
                // Whoever takes control finds what has changed; the VMM may be closed by now.
                News::Ejected => drop(vmm.control()),
            }
        }
    })?;
    Ok(())
}

impl Inner {
    fn guest_ended(&self, generation: u64, end: MachineEnd) {
        let Ok(mut control) = self.control() else { return };
        if control.generation != generation {
            return; // Another call has stopped that machine meanwhile.
        }
        match end {
            MachineEnd::PowerOff => self.guest_gone(&mut control, "shutdown", End::PowerOff),
            MachineEnd::ConsoleLeft => self.guest_gone(&mut control, "console-left", End::Asked),
            MachineEnd::DebugExit(value) => self.guest_gone(&mut control, "debug-exit", End::DebugExit(value)),
            MachineEnd::Failed(reason) => {
                tracing::error!(%reason, "a vCPU failed");
                self.events.emit("vcpu", "failed", &[("reason", &reason)]);
                self.guest_gone(&mut control, "shutdown", End::Failed(reason));
            }
            MachineEnd::Reset => {
                control.triple_faults = 0;
                self.restart_or_end(&mut control);
            }
            MachineEnd::Shutdown => self.triple_fault(&mut control),
        }
    }

    /// SDM Vol. 3, Double Fault Exception: after a triple fault the processor is in shutdown; boards reset it then.
    fn triple_fault(&self, control: &mut Control) {
        self.events.emit("vcpu", "triple-fault", &[]);
        control.triple_faults = if control.started.elapsed() < SOON {
            control.triple_faults + 1
        } else {
            1
        };
        if control.triple_faults < TRIPLE_FAULTS {
            tracing::warn!("the guest triple-faulted: the machine is reset");
            self.restart_or_end(control);
        } else {
            let reason = format!("the guest triple-faulted {TRIPLE_FAULTS} times in a row, soon after each reset");
            tracing::error!("{reason}: the machine is given up");
            self.events.emit("vm", "given-up", &[("reason", &reason)]);
            self.guest_gone(control, "shutdown", End::Failed(reason));
        }
    }

    fn restart_or_end(&self, control: &mut Control) {
        if let Err(error) = self.restart(control) {
            let reason = super::chain(&error).join(": ");
            tracing::error!(%reason, "the machine cannot be started again");
            self.guest_gone(control, "shutdown", End::Failed(reason));
        }
    }

    fn guest_gone(&self, control: &mut Control, event: &str, end: End) {
        self.stop(control);
        self.events.emit("vm", event, &[]);
        if self.when_guest_ends == WhenGuestEnds::End {
            self.set_end(end);
        }
    }
}

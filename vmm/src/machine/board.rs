//! The devices of a machine and where they are wired to.

use std::sync::Arc;

use reprise_devices::acpi::ports::SCI_GSI;
use reprise_devices::{
    Acpi, Bus, BusError, Clock, DebugExit, HostClock, I8042, Interrupt, MachineEvents, MemorySize, PostCode, Rtc,
    Serial, serial,
};
use reprise_hypervisor::{HypervisorError, InterruptLine, Vm};

use crate::boot::layout;
use crate::console::Console;

/// What stands on the board, besides what the hypervisor brings.
pub struct Board {
    pub bus: Bus,
    pub acpi: Arc<Acpi>,
    pub serial: Option<Arc<Serial>>,
    pub clock: Arc<HostClock>,
}

/// What is not the same on every board.
pub struct Parts<'a> {
    /// RAM in bytes.
    pub memory: u64,
    /// Where the serial port leads, if there is one.
    pub console: Option<&'a Console>,
    /// Whether there is a debug-exit port.
    pub debug_exit: bool,
    /// Who resets and powers off.
    pub events: Arc<dyn MachineEvents>,
}

/// A board that cannot be wired.
#[derive(Debug, thiserror::Error)]
pub enum BoardError {
    /// Two devices want the same address.
    #[error("a device cannot be placed")]
    Place {
        /// Which, and who is in the way.
        #[from]
        source: BusError,
    },
    /// There is no such interrupt line.
    #[error("a device cannot be given an interrupt line")]
    Line {
        /// Which.
        #[from]
        source: HypervisorError,
    },
}

impl Board {
    /// Wires the devices to `vm`.
    pub fn new(vm: &dyn Vm, parts: &Parts<'_>) -> Result<Self, BoardError> {
        let bus = Bus::new();
        let clock = Arc::new(HostClock::default());
        let time: Arc<dyn Clock> = Arc::clone(&clock) as Arc<dyn Clock>;
        let line = |gsi| -> Result<Arc<dyn Interrupt>, HypervisorError> { Ok(Arc::new(Line(vm.interrupt_line(gsi)?))) };

        let acpi = Arc::new(Acpi::new(Arc::clone(&time), line(SCI_GSI)?, Arc::clone(&parts.events)));
        acpi.attach(&bus)?;
        Arc::new(I8042::new(Arc::clone(&parts.events))).attach(&bus)?;
        let below_4g = parts.memory.min(layout::MMIO_START);
        let memory = MemorySize {
            below_4g,
            above_4g: parts.memory - below_4g,
        };
        Arc::new(Rtc::new(time, memory)).attach(&bus)?;
        Arc::new(PostCode::new()).attach(&bus)?;
        if parts.debug_exit {
            Arc::new(DebugExit::new(Arc::clone(&parts.events))).attach(&bus)?;
        }
        let serial = match parts.console {
            None => None,
            Some(console) => {
                let serial = Arc::new(Serial::new(line(serial::COM1_GSI)?, Arc::clone(console.output())));
                serial.attach(&bus)?;
                Some(serial)
            }
        };
        Ok(Self {
            bus,
            acpi,
            serial,
            clock,
        })
    }
}

/// A hypervisor's interrupt line, as devices see it.
struct Line(Arc<dyn InterruptLine>);

impl Interrupt for Line {
    fn set(&self, level: bool) {
        self.0.set(level);
    }

    fn pulse(&self) {
        self.0.pulse();
    }
}

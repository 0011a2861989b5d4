//! The devices of a machine and where they are wired to.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use reprise_devices::acpi::ports::SCI_GSI;
use reprise_devices::{
    Acpi, Bus, BusError, Clock, DebugExit, Delay, Delays, HostClock, I8042, Interrupt, MachineEvents, MemorySize,
    PostCode, Rtc, Serial, serial,
};
use reprise_hypervisor::{HypervisorError, InterruptLine, Vm};

use crate::boot::layout;
use crate::config::DelayConfig;
use crate::console::Console;

/// What stands on the board, besides what the hypervisor brings.
pub struct Board {
    pub bus: Bus,
    pub acpi: Arc<Acpi>,
    pub serial: Option<Arc<Serial>>,
    pub clock: Arc<HostClock>,
    /// What keeps the answers of delayed devices back, if there are any.
    pub delays: Option<Delays>,
}

/// What is not the same on every board.
pub struct Parts<'a> {
    /// RAM in bytes.
    pub memory: u64,
    /// Where the serial port leads, if there is one.
    pub console: Option<&'a Console>,
    /// Whether there is a debug-exit port.
    pub debug_exit: bool,
    /// Which devices answer late.
    pub delays: &'a [DelayConfig],
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
    /// A device that is to be late is not there.
    #[error("`delays` names the device {device:?}, which this machine does not have; expected * or one of {}", known.join(", "))]
    NoSuchDevice {
        /// The name.
        device: String,
        /// The names that there are.
        known: Vec<String>,
    },
    /// The host has no thread for late answers.
    #[error("the host refused a thread for late answers")]
    Thread {
        /// What it says.
        source: io::Error,
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
        let delays = delay(&bus, parts.delays)?;
        Ok(Self {
            bus,
            acpi,
            serial,
            clock,
            delays,
        })
    }

    /// Stops (true) or continues (false) the time of the devices.
    pub fn set_paused(&self, paused: bool) {
        self.clock.set_paused(paused);
        if let Some(delays) = &self.delays {
            delays.set_paused(paused);
        }
    }
}

/// Makes the devices on `bus` late that `wanted` names. Of several entries that mean a device the last counts.
fn delay(bus: &Bus, wanted: &[DelayConfig]) -> Result<Option<Delays>, BoardError> {
    if wanted.is_empty() {
        return Ok(None);
    }
    let mut devices: BTreeMap<String, Option<Delay>> =
        bus.claims().into_iter().map(|claim| (claim.name, None)).collect();
    for entry in wanted {
        if entry.device == DelayConfig::EVERY_DEVICE {
            devices.values_mut().for_each(|delay| *delay = Some(entry.delay()));
        } else if let Some(delay) = devices.get_mut(&entry.device) {
            *delay = Some(entry.delay());
        } else {
            return Err(BoardError::NoSuchDevice {
                device: entry.device.clone(),
                known: devices.into_keys().collect(),
            });
        }
    }
    let delays = Delays::new().map_err(|source| BoardError::Thread { source })?;
    for (name, delay) in devices {
        if let Some(delay) = delay {
            bus.wrap(&name, |device| delays.wrap(device, delay));
        }
    }
    Ok(Some(delays))
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

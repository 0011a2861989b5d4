//! The devices of a machine and where they are wired to.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use reprise_devices::acpi::ports::SCI_GSI;
use reprise_devices::pci::{PciError, PciStateError};
use reprise_devices::vfio_user::VfioUserError;
use reprise_devices::vhost_user::VhostUserError;
use reprise_devices::virtio::rng::RngError;
use reprise_devices::virtio::{self, BlockError, ResizeError, TapError, VirtioError, VirtioStateError};
use reprise_devices::{
    Acpi, AcpiState, Bus, BusError, Clock, DebugExit, Delay, Delays, DelaysState, Device, HostClock, HostClockState,
    I8042, I8042State, Interrupt, MachineEvents, MemorySize, NotDelayed, OutputState, PostCode, PostCodeState, Rtc,
    RtcState, Serial, SerialState, serial,
};
use reprise_hypervisor::{GuestMemory, HypervisorError, InterruptLine, Vm};
use serde::{Deserialize, Serialize};

use crate::boot::layout;
use crate::config::{DelayConfig, DeviceSpec, VmConfig};
use crate::console::Console;

mod balloon;
mod console;
mod device;
mod disk;
mod fs;
mod limits;
mod net;
mod pci;
mod rng;
mod signals;
mod user_device;
mod vsock;

use pci::Pci;
pub use pci::{OnEject, PciDevicesState};
pub use vsock::VsockError;

/// How long a console may take for what was printed before a snapshot.
const CONSOLE_PATIENCE: Duration = Duration::from_millis(100);

/// What stands on the board, besides what the hypervisor brings.
pub struct Board {
    pub bus: Arc<Bus>,
    pub acpi: Arc<Acpi>,
    pub serial: Option<Arc<Serial>>,
    clock: Arc<HostClock>,
    i8042: Arc<I8042>,
    rtc: Arc<Rtc>,
    post: Arc<PostCode>,
    pci: Pci,
    /// What keeps the answers of delayed devices back, if there are any.
    delays: Option<Delays>,
    /// Which are to be late.
    late: Vec<DelayConfig>,
}

/// What the devices of a board remember. The debug-exit port remembers nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoardState {
    /// The clock that devices measure by.
    pub clock: HostClockState,
    /// ACPI's fixed hardware.
    pub acpi: AcpiState,
    /// The keyboard controller.
    pub i8042: I8042State,
    /// The real-time clock.
    pub rtc: RtcState,
    /// The POST code port.
    pub post: PostCodeState,
    /// The serial port, if there is one.
    pub serial: Option<SerialPortState>,
    /// The PCI bus and its devices.
    pub pci: PciDevicesState,
    /// Answers that are kept back, if there are delayed devices.
    pub delays: Option<DelaysState>,
}

/// A serial port and what it has printed that the console has not taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialPortState {
    /// The port.
    pub port: SerialState,
    /// Its output.
    pub output: OutputState,
}

/// Devices that cannot go on from a state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BoardStateError {
    /// A serial port on one side only.
    #[error("the saved machine has {saved} serial ports, this one has {own}")]
    Ports {
        /// How many were saved.
        saved: usize,
        /// How many there are.
        own: usize,
    },
    /// A device that is late on one side only.
    #[error("the delayed devices cannot be restored")]
    Delays {
        /// Which.
        #[from]
        source: NotDelayed,
    },
    /// The PCI bus refuses.
    #[error("the PCI bus cannot be restored")]
    Pci {
        /// Why.
        #[from]
        source: PciStateError,
    },
    /// A device of another kind has the name.
    #[error("the device {name} cannot be restored: it was of another kind")]
    Kind {
        /// The name.
        name: String,
    },
    /// A virtio device refuses, or cannot be saved.
    #[error(transparent)]
    Virtio(#[from] VirtioStateError),
    /// The serial port refuses.
    #[error("the serial port cannot be restored")]
    Serial {
        /// Why.
        #[from]
        source: serial::RestoreError,
    },
}

/// What is not the same on every board.
pub struct Parts<'a> {
    /// The machine's memory, RAM and devices.
    pub config: &'a VmConfig,
    /// RAM.
    pub memory: &'a GuestMemory,
    /// Where the serial port leads, if there is one.
    pub console: Option<&'a Console>,
    /// Where the virtio console leads, if there is one.
    pub virtio_console: Option<&'a Arc<Console>>,
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
    /// A device that is to be late is not there.
    #[error("`delays` names the device {device:?}, which this machine does not have; expected * or one of {}", known.join(", "))]
    NoSuchDevice {
        /// The name.
        device: String,
        /// The names that there are.
        known: Vec<String>,
    },
    /// The PCI bus is full, or cannot be placed.
    #[error("a PCI device cannot be placed")]
    Pci {
        /// Which, and why.
        #[from]
        source: PciError,
    },
    /// A virtio device cannot be made.
    #[error("a virtio device cannot be made")]
    Virtio {
        /// Which, and why.
        #[from]
        source: VirtioError,
    },
    /// A disk has no image.
    #[error("a disk cannot be opened")]
    Disk {
        /// Which, and why.
        #[from]
        source: BlockError,
    },
    /// A network card has no tap.
    #[error("the network card {name} cannot be made")]
    Net {
        /// The device's name.
        name: String,
        /// Why.
        source: TapError,
    },
    /// A network card's tap does not do as it is told.
    #[error("the network card {name} cannot be made")]
    NetHost {
        /// The device's name.
        name: String,
        /// What the host says.
        source: io::Error,
    },
    /// A virtio console, and nothing that it would lead to.
    #[error("the console {name} cannot be made: nobody has opened what it leads to")]
    NoConsole {
        /// The device's name.
        name: String,
    },
    /// A process cannot be had to serve a virtio device.
    #[error("the device {name} cannot be served by another process")]
    VhostUser {
        /// Its name.
        name: String,
        /// Why.
        source: VhostUserError,
    },
    /// Another process cannot reach the guest's memory.
    #[error(
        "the device {name} is another process's, which cannot map this machine's memory; expected `memory.shared` to be true"
    )]
    NotShared {
        /// Its name.
        name: String,
    },
    /// A device in another process cannot be used.
    #[error("the device {name}, in another process, cannot be used")]
    UserDevice {
        /// Its name.
        name: String,
        /// Why.
        source: VfioUserError,
    },
    /// A device's size cannot be changed.
    #[error("the device {name} cannot have that size")]
    Resize {
        /// Its name.
        name: String,
        /// Why.
        source: ResizeError,
    },
    /// The host has no descriptors for a console.
    #[error("virtio-console cannot be made")]
    Console {
        /// What it says.
        source: io::Error,
    },
    /// The host's side of vsock is not to be had.
    #[error("virtio-vsock cannot be made")]
    Vsock {
        /// Why.
        #[from]
        source: VsockError,
    },
    /// There is no entropy.
    #[error("virtio-rng cannot be made")]
    Rng {
        /// Why.
        #[from]
        source: RngError,
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
    pub fn new(vm: &Arc<dyn Vm>, parts: &Parts<'_>) -> Result<Self, BoardError> {
        let bus = Arc::new(Bus::new());
        let clock = Arc::new(HostClock::default());
        let time: Arc<dyn Clock> = Arc::clone(&clock) as Arc<dyn Clock>;
        let line = |gsi| -> Result<Arc<dyn Interrupt>, HypervisorError> { Ok(Arc::new(Line(vm.interrupt_line(gsi)?))) };

        let acpi = Arc::new(Acpi::new(Arc::clone(&time), line(SCI_GSI)?, Arc::clone(&parts.events)));
        acpi.attach(&bus)?;
        let i8042 = Arc::new(I8042::new(Arc::clone(&parts.events)));
        i8042.attach(&bus)?;
        let size = parts.config.memory.size;
        let below_4g = size.min(layout::MMIO_START);
        let memory = MemorySize {
            below_4g,
            above_4g: size - below_4g,
        };
        let rtc = Arc::new(Rtc::new(time, memory));
        rtc.attach(&bus)?;
        let post = Arc::new(PostCode::new());
        post.attach(&bus)?;
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
        let pci = Pci::new(&bus, vm, &acpi, parts.config, parts.memory, parts.virtio_console)?;
        let delays = delay(&bus, &pci, &parts.config.delays)?;
        Ok(Self {
            bus,
            acpi,
            serial,
            clock,
            i8042,
            rtc,
            post,
            pci,
            delays,
            late: parts.config.delays.clone(),
        })
    }

    /// Makes the PCI device that `spec` asks for, calls it `name`, puts it on the bus, late if it is to be, and tells the
    /// guest. Its device number is returned.
    ///
    /// # Errors
    /// [`BoardError`] naming what is in the way; nothing has changed then.
    pub fn plug(&self, name: &str, spec: &DeviceSpec) -> Result<u8, BoardError> {
        let number = self.pci.attach(name, spec)?;
        let means = |entry: &&DelayConfig| entry.device == DelayConfig::EVERY_DEVICE || entry.device == name;
        if let (Some(delays), Some(entry)) = (&self.delays, self.late.iter().rfind(means)) {
            self.pci.root.wrap(name, |device| delays.wrap(device, entry.delay()));
        }
        self.pci.announce(number);
        Ok(number)
    }

    /// Asks the guest to let go of the PCI device called `name`; who asks again reminds it. False if there is no such device.
    pub fn unplug(&self, name: &str) -> bool {
        self.pci.ask_for(name)
    }

    /// Changes the size of the PCI device called `name`.
    ///
    /// # Errors
    /// [`BoardError`] naming what is in the way; nothing has changed then.
    pub fn resize(&self, name: &str, bytes: u64) -> Result<(), BoardError> {
        self.pci.resize(name, bytes)
    }

    /// The devices that the guest was asked to let go of and has not.
    pub fn asked_for(&self) -> Vec<String> {
        self.pci.asked_for()
    }

    /// Tells `on_eject`, from now on, when the guest has let go of a device.
    pub fn on_eject(&self, on_eject: OnEject) {
        self.pci.on_eject(on_eject);
    }

    /// The devices that the guest has let go of since this was asked last, and that are gone.
    pub fn take_ejected(&self) -> Vec<String> {
        let names = self.pci.take_ejected();
        for name in &names {
            if let Some(delays) = &self.delays {
                delays.forget(name);
            }
        }
        names
    }

    /// The PCI devices' numbers by name.
    pub fn device_numbers(&self) -> BTreeMap<String, u8> {
        self.pci.root.numbers()
    }

    /// The virtio console, if there is one.
    pub fn virtio_console(&self) -> Option<&Arc<virtio::Console>> {
        self.pci.console()
    }

    /// The names of all devices, on the bus now or not, in order.
    #[cfg(test)]
    pub fn device_names(&self) -> BTreeSet<String> {
        names(&self.bus, &self.pci)
    }

    /// What the register device_status of a virtio device has; 0 if there is no such device.
    #[cfg(test)]
    pub fn device_status(&self, name: &str) -> u8 {
        self.pci.device_status(name)
    }

    /// Figures by device and name.
    pub fn counters(&self) -> BTreeMap<String, BTreeMap<&'static str, u64>> {
        let mut all = self.bus.counters();
        for (device, figures) in self.pci.root.counters() {
            all.entry(device).or_default().extend(figures);
        }
        all
    }

    /// Stops (true) or continues (false) the devices: their clock stands, no input comes in, and answers that are kept back
    /// stay back.
    pub fn set_paused(&self, paused: bool) {
        self.clock.set_paused(paused);
        self.pci.set_paused(paused);
        if let Some(serial) = &self.serial {
            serial.hold_input(paused);
        }
        if let Some(delays) = &self.delays {
            delays.set_paused(paused);
        }
    }

    /// What the devices remember. The board is paused; this waits a moment for the console to take what was printed.
    ///
    /// # Errors
    /// [`BoardStateError::Virtio`] if a device is busy with a request all the same.
    pub fn state(&self) -> Result<BoardState, BoardStateError> {
        let pci = self.pci.state()?;
        let serial = self.serial.as_ref().map(|serial| {
            // What it does not take in this time is saved: it may be a console that takes nothing.
            serial.output().drain(CONSOLE_PATIENCE);
            SerialPortState {
                port: serial.state(),
                output: serial.output().state(),
            }
        });
        Ok(BoardState {
            clock: self.clock.state(),
            acpi: self.acpi.state(),
            i8042: self.i8042.state(),
            rtc: self.rtc.state(),
            post: self.post.state(),
            serial,
            pci,
            delays: self.delays.as_ref().map(Delays::state),
        })
    }

    /// Goes on from `state`, on a board that is paused.
    pub fn restore(&self, state: &BoardState) -> Result<(), BoardStateError> {
        let (own, saved) = (self.serial.iter().len(), state.serial.iter().len());
        if own != saved {
            return Err(BoardStateError::Ports { saved, own });
        }
        if self.delays.is_none() && state.delays.is_some() {
            return Err(NotDelayed { device: "*".to_owned() }.into());
        }
        self.pci.restore(&state.pci)?;
        if let (Some(serial), Some(state)) = (&self.serial, &state.serial) {
            serial.restore(&state.port)?;
            serial.output().restore(&state.output);
        }
        if let (Some(delays), Some(state)) = (&self.delays, &state.delays) {
            delays.restore(state.clone())?;
        }
        // Before those who measure by it.
        self.clock.restore(&state.clock);
        self.acpi.restore(&state.acpi);
        self.i8042.restore(&state.i8042);
        self.rtc.restore(&state.rtc);
        self.post.restore(&state.post);
        Ok(())
    }
}

fn names(bus: &Bus, pci: &Pci) -> BTreeSet<String> {
    let claims = bus.claims().into_iter().map(|claim| claim.name);
    claims.chain(pci.root.names()).collect()
}

/// Makes the devices on `bus` late that `wanted` names. Of several entries that mean a device the last counts.
fn delay(bus: &Bus, pci: &Pci, wanted: &[DelayConfig]) -> Result<Option<Delays>, BoardError> {
    if wanted.is_empty() {
        return Ok(None);
    }
    let mut devices: BTreeMap<String, Option<Delay>> = names(bus, pci).into_iter().map(|name| (name, None)).collect();
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
            // A PCI device's registers move, and may be nowhere now.
            let wrap = |device| -> Arc<dyn Device> { delays.wrap(device, delay) };
            if !pci.root.wrap(&name, wrap) {
                bus.wrap(&name, wrap);
            }
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

#[cfg(test)]
mod tests;

//! What the lifecycle asks of a machine, and the real machine behind it.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use reprise_hypervisor::{Hypervisor, HypervisorKind};

use super::VmCounters;
use crate::config::{ConsoleConfig, DeviceSpec, VmConfig};
use crate::console::{Console, Consoles};
use crate::machine::{Machine, MachineEnd, MachineError, MachineOptions, OnEject};
use crate::snapshot::{Prefault, Snapshot, SnapshotError};

/// Why a machine refused.
pub type GuestError = Box<dyn Error + Send + Sync>;

/// What a machine calls when it ends: once, from any of its threads, and without being stopped from inside that call.
pub type OnEnd = Box<dyn Fn(MachineEnd) + Send + Sync>;

/// Builds machines. [`HypervisorGuests`] in earnest; doubles in tests.
pub trait Guests: Send + Sync {
    /// The largest number of vCPUs of a machine.
    fn max_vcpus(&self) -> u32;

    /// What runs them, and why that: for the log, the event stream and `vmm.ping`.
    fn hypervisor(&self) -> Running {
        Running::default()
    }

    /// Builds a machine that does not run yet. `config` has been validated.
    ///
    /// # Errors
    /// Whatever is in the way.
    fn build(&self, config: &VmConfig, on_end: OnEnd) -> Result<Box<dyn Guest>, GuestError>;

    /// Builds the machine that `snapshot` has, paused: [`Guest::resume`] lets it go on. Its configuration has been validated.
    ///
    /// # Errors
    /// Whatever is in the way.
    fn restore(&self, snapshot: &Snapshot, prefault: Prefault, on_end: OnEnd) -> Result<Box<dyn Guest>, GuestError>;
}

/// What runs the machines.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Running {
    /// `kvm` or `soft`; empty in tests.
    pub kind: &'static str,
    /// Why it was chosen, in a line.
    pub why: String,
}

/// A machine. The lifecycle calls it from one thread at a time.
pub trait Guest: Send {
    /// Starts the vCPUs, once.
    fn start(&self);
    /// Stops the vCPUs and clocks where they are.
    ///
    /// # Errors
    /// If a vCPU does not stop.
    fn pause(&self) -> Result<(), GuestError>;
    /// Continues after [`pause`](Self::pause).
    fn resume(&self);
    /// Writes the machine, made of `config` and paused, into the folder `destination`. It stays as it is.
    ///
    /// # Errors
    /// [`SnapshotError`]; what was at `destination` before is then still there.
    fn snapshot(&self, config: &VmConfig, destination: &Path) -> Result<(), SnapshotError>;
    /// Adds the PCI device that `spec` asks for, called `name`, and tells the guest. Its device number is returned.
    ///
    /// # Errors
    /// Whatever is in the way; nothing has changed then.
    fn add_device(&self, name: &str, spec: &DeviceSpec) -> Result<u8, GuestError>;
    /// Asks the guest to let go of the PCI device called `name`. False if there is no such device.
    fn remove_device(&self, name: &str) -> bool;
    /// Changes the size of the device called `name`: a disk's capacity, or what a balloon takes.
    ///
    /// # Errors
    /// Whatever is in the way; nothing has changed then.
    fn resize_device(&self, name: &str, bytes: u64) -> Result<(), GuestError>;
    /// The devices that the guest was asked to let go of and has not.
    fn going(&self) -> Vec<String>;
    /// Has `tell` called when the guest has let go of a device: from any of the machine's threads, and it must not wait.
    fn on_eject(&self, tell: OnEject);
    /// The devices that the guest has let go of since this was asked last.
    fn take_ejected(&self) -> Vec<String>;
    /// The device numbers of the PCI devices by name.
    fn devices(&self) -> BTreeMap<String, u8>;
    /// Whether hot code of the guest runs as code of the host.
    fn translates(&self) -> bool {
        false
    }
    /// Presses the ACPI power button; the guest decides what comes of it.
    fn power_button(&self);
    /// Figures by device and name.
    fn counters(&self) -> VmCounters;
    /// The host's ends of its consoles. Whoever holds them while the machine is built anew keeps them open, and whoever is
    /// connected to them connected.
    fn consoles(&self) -> Consoles {
        Consoles::default()
    }
    /// Ends every thread of the machine and gives its memory back.
    fn stop(self: Box<Self>);
}

/// A console that may be opened still, and what it was opened from.
type Kept = (ConsoleConfig, Weak<Console>);

/// Machines on a hypervisor.
pub struct HypervisorGuests {
    hypervisor: Arc<dyn Hypervisor>,
    options: MachineOptions,
    why: String,
    /// The last machine's consoles, the serial port's and virtio's: the next machine's too, if somebody kept them open.
    last: Mutex<(Option<Kept>, Option<Kept>)>,
}

impl HypervisorGuests {
    /// Machines on `hypervisor`, each built with `options`.
    pub fn new(hypervisor: Arc<dyn Hypervisor>, options: MachineOptions) -> Self {
        Self {
            hypervisor,
            options,
            why: "as asked for".to_owned(),
            last: Mutex::default(),
        }
    }

    /// The same, saying why it is this hypervisor.
    #[must_use]
    pub fn because(self, why: String) -> Self {
        Self { why, ..self }
    }
}

impl HypervisorGuests {
    /// Builds a machine with the consoles of the last one, if somebody kept them open and they are of the same configuration.
    fn with_console(
        &self,
        config: &VmConfig,
        build: impl FnOnce(MachineOptions) -> Result<Machine, MachineError>,
    ) -> Result<Box<dyn Guest>, GuestError> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = std::mem::take(&mut *last);
        let again = |kept: Option<Kept>, config: &ConsoleConfig| {
            let (of, console) = kept?;
            console.upgrade().filter(|_| of == *config)
        };
        let mut options = self.options.clone();
        options.console = options.console.or_else(|| again(kept.0, &config.serial));
        options.virtio_console = options.virtio_console.or_else(|| again(kept.1, &config.console));
        let machine = build(options)?;
        let keep = |console: Option<Arc<Console>>, config: &ConsoleConfig| {
            console.map(|console| (config.clone(), Arc::downgrade(&console)))
        };
        let consoles = machine.consoles();
        *last = (
            keep(consoles.serial, &config.serial),
            keep(consoles.virtio, &config.console),
        );
        Ok(Box::new(machine))
    }
}

impl Guests for HypervisorGuests {
    fn max_vcpus(&self) -> u32 {
        self.hypervisor.max_vcpus()
    }

    fn hypervisor(&self) -> Running {
        Running {
            kind: match self.hypervisor.kind() {
                HypervisorKind::Kvm => "kvm",
                HypervisorKind::Soft => "soft",
            },
            why: self.why.clone(),
        }
    }

    fn build(&self, config: &VmConfig, on_end: OnEnd) -> Result<Box<dyn Guest>, GuestError> {
        self.with_console(config, |options| {
            Machine::new(config, &*self.hypervisor, options, on_end)
        })
    }

    fn restore(&self, snapshot: &Snapshot, prefault: Prefault, on_end: OnEnd) -> Result<Box<dyn Guest>, GuestError> {
        self.with_console(snapshot.config(), |options| {
            Machine::restore(snapshot, prefault, &*self.hypervisor, options, on_end)
        })
    }
}

impl Guest for Machine {
    fn start(&self) {
        Self::start(self);
    }

    fn pause(&self) -> Result<(), GuestError> {
        Ok(Self::pause(self)?)
    }

    fn resume(&self) {
        Self::resume(self);
    }

    fn snapshot(&self, config: &VmConfig, destination: &Path) -> Result<(), SnapshotError> {
        Self::snapshot(self, config, destination)
    }

    fn add_device(&self, name: &str, spec: &DeviceSpec) -> Result<u8, GuestError> {
        Ok(Self::add_device(self, name, spec)?)
    }

    fn remove_device(&self, name: &str) -> bool {
        Self::remove_device(self, name)
    }

    fn resize_device(&self, name: &str, bytes: u64) -> Result<(), GuestError> {
        Ok(Self::resize_device(self, name, bytes)?)
    }

    fn going(&self) -> Vec<String> {
        Self::going(self)
    }

    fn on_eject(&self, tell: OnEject) {
        Self::on_eject(self, tell);
    }

    fn take_ejected(&self) -> Vec<String> {
        Self::take_ejected(self)
    }

    fn devices(&self) -> BTreeMap<String, u8> {
        Self::devices(self)
    }

    fn translates(&self) -> bool {
        Self::translates(self)
    }

    fn power_button(&self) {
        Self::power_button(self);
    }

    fn counters(&self) -> VmCounters {
        VmCounters(Self::counters(self))
    }

    fn consoles(&self) -> Consoles {
        Self::consoles(self)
    }

    fn stop(self: Box<Self>) {
        Self::stop(*self);
    }
}

//! The VMM: one VM from its creation to its end, for callers from any thread.
//!
//! # States
//! | call | from | to |
//! |---|---|---|
//! | `create` | no VM | Created |
//! | `boot` | Created, Shutdown | Running |
//! | `pause` | Running | Paused |
//! | `resume` | Paused | Running |
//! | `shutdown` | Running, Paused | Shutdown |
//! | `reboot` | Running, Paused | Running |
//! | `snapshot` | Paused | the same |
//! | `add_device`, `remove_device` | any | the same |
//! | `restore` | no VM | Paused, Running |
//! | `power_button`, `counters` | Running (`counters`: and Paused) | the same |
//! | `delete` | any | no VM |
//! | *the guest powers off, or a vCPU fails* | Running | Shutdown |
//! | *the guest resets, or triple-faults* | Running | Running |
//!
//! # Invariants
//! - Calls that touch the machine hold `control` and so come one after the other. [`Vmm::ping`] and [`Vmm::info`] do not:
//!   they look at `view`, which is held only to copy it, and answer however long another call takes.
//! - `view` is changed by the holder of `control` only. Lock order: `control`, then `view`.
//! - A machine says that it ended from one of its own threads, which must not wait for itself: the `lifecycle` thread
//!   takes the message and does what follows. A message from a machine that is gone is recognised by its generation.
//! - The configuration has the devices that the guest has: one that is to go stays in it until the guest has let go of it.

mod devices;
mod error;
mod guest;
mod host;
mod info;
mod keeper;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::config::{ConfigError, ConsoleConfig, RestoredNetConfig, VmConfig};
use crate::events::Events;
use crate::machine::MachineEnd;
use crate::sandbox::Sandbox;
use crate::snapshot::{Prefault, Snapshot};

pub use error::{VmmError, chain};
pub use guest::{Guest, GuestError, Guests, HypervisorGuests, OnEnd, Running};
pub use info::{DeviceNode, PciDeviceInfo, VmCounters, VmInfo, VmState, VmmPingResponse};

/// What the VMM does when its guest ends on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenGuestEnds {
    /// Keeps the VM, in state Shutdown, for further calls.
    Stay,
    /// Ends too.
    End,
}

/// Why the VMM ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// Somebody asked it to, with [`Vmm::request_end`].
    Asked,
    /// The guest powered off.
    PowerOff,
    /// The guest wrote this byte to the debug-exit port.
    DebugExit(u8),
    /// A vCPU cannot go on, or the machine could not be built again.
    Failed(String),
}

/// How a VM is restored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Restore {
    /// Whether all memory is read at once instead of page by page when the guest touches it. The snapshot is then not
    /// needed afterwards.
    pub prefault: bool,
    /// Whether the VM goes on at once.
    pub resume: bool,
    /// Where the serial port leads, instead of where it led when the snapshot was made.
    pub serial: Option<ConsoleConfig>,
    /// Taps for those network interfaces whose taps were given as file descriptors.
    pub net_fds: Vec<RestoredNetConfig>,
}

/// The VMM; copies are handles to the same one.
#[derive(Clone)]
pub struct Vmm {
    inner: Arc<Inner>,
}

struct Inner {
    guests: Box<dyn Guests>,
    when_guest_ends: WhenGuestEnds,
    events: Events,
    view: Mutex<Option<View>>,
    control: Mutex<Control>,
    news: Sender<(u64, News)>,
    end: Mutex<Option<End>>,
    end_known: Condvar,
}

/// What a machine tells of itself.
enum News {
    /// It has ended.
    Ended(MachineEnd),
    /// Its guest has let go of devices.
    Ejected,
}

/// What `vm.info` shows.
#[derive(Clone)]
struct View {
    config: Arc<VmConfig>,
    state: VmState,
    devices: BTreeMap<String, DeviceNode>,
    translating: bool,
}

/// What only one call at a time may touch.
struct Control {
    machine: Option<Box<dyn Guest>>,
    /// Counts machines; what an earlier one says no longer matters.
    generation: u64,
    started: Instant,
    /// Triple faults in a row, each soon after the start.
    triple_faults: u32,
    /// Set once: no further calls.
    closed: bool,
}

impl Vmm {
    /// A VMM without a VM, whose machines `guests` builds.
    ///
    /// # Errors
    /// The operating system's, if there can be no thread for it.
    pub fn new(guests: impl Guests + 'static, when_guest_ends: WhenGuestEnds, events: Events) -> io::Result<Self> {
        let (news, told) = channel();
        let inner = Arc::new(Inner {
            guests: Box::new(guests),
            when_guest_ends,
            events,
            view: Mutex::new(None),
            control: Mutex::new(Control {
                machine: None,
                generation: 0,
                started: Instant::now(),
                triple_faults: 0,
                closed: false,
            }),
            news,
            end: Mutex::new(None),
            end_known: Condvar::new(),
        });
        keeper::spawn(Arc::downgrade(&inner), told)?;
        let Running { kind, why } = inner.guests.hypervisor();
        let properties: &[(&str, &str)] = &[("hypervisor", kind), ("why", &why)];
        inner
            .events
            .emit("vmm", "started", if kind.is_empty() { &[] } else { properties });
        Ok(Self { inner })
    }

    /// What this process is. Never waits.
    pub fn ping(&self) -> VmmPingResponse {
        VmmPingResponse::of_this_process(&self.inner.guests.hypervisor())
    }

    /// The VM's configuration and state. Never waits for the VM.
    ///
    /// # Errors
    /// [`VmmError::NoVm`].
    pub fn info(&self) -> Result<VmInfo, VmmError> {
        let View {
            config,
            state,
            devices,
            translating,
        } = self.inner.view()?;
        let config = VmConfig::clone(&config);
        Ok(VmInfo {
            memory_actual_size: config.memory.size,
            config,
            state,
            device_tree: devices,
            translating,
        })
    }

    /// Makes a VM of `config`; it does not run yet.
    ///
    /// # Errors
    /// [`VmmError::Exists`] if there is one, [`VmmError::BadConfig`] if `config` makes no machine.
    pub fn create(&self, mut config: VmConfig) -> Result<(), VmmError> {
        let _control = self.inner.control()?;
        if let Ok(View { state: is, .. }) = self.inner.view() {
            return Err(VmmError::Exists { is });
        }
        self.inner
            .check(&config)
            .map_err(|source| VmmError::BadConfig { source })?;
        config.name_devices();
        *lock(&self.inner.view) = Some(View {
            config: Arc::new(config),
            state: VmState::Created,
            devices: BTreeMap::new(),
            translating: false,
        });
        self.inner.events.emit("vm", "created", &[]);
        Ok(())
    }

    /// Builds the machine and starts it.
    ///
    /// # Errors
    /// [`VmmError::NoVm`], [`VmmError::WrongState`], or [`VmmError::Build`], after which the VM is as before.
    pub fn boot(&self) -> Result<(), VmmError> {
        let mut control = self.inner.control()?;
        self.inner
            .expect("vm.boot", "Created or Shutdown", &[VmState::Created, VmState::Shutdown])?;
        self.inner.events.emit("vm", "booting", &[]);
        control.triple_faults = 0;
        self.inner.start(&mut control)?;
        self.inner.events.emit("vm", "booted", &[]);
        Ok(())
    }

    /// Stops the vCPUs and clocks where they are.
    ///
    /// # Errors
    /// [`VmmError::NoVm`], [`VmmError::WrongState`], or [`VmmError::Machine`] if a vCPU does not stop.
    pub fn pause(&self) -> Result<(), VmmError> {
        let control = self.inner.control()?;
        self.inner.expect("vm.pause", "Running", &[VmState::Running])?;
        if let Some(machine) = &control.machine {
            machine.pause().map_err(|source| VmmError::Machine {
                call: "vm.pause",
                source,
            })?;
        }
        self.inner.set_state(VmState::Paused);
        self.inner.events.emit("vm", "paused", &[]);
        Ok(())
    }

    /// Continues a paused VM.
    ///
    /// # Errors
    /// [`VmmError::NoVm`] or [`VmmError::WrongState`].
    pub fn resume(&self) -> Result<(), VmmError> {
        let control = self.inner.control()?;
        self.inner.expect("vm.resume", "Paused", &[VmState::Paused])?;
        if let Some(machine) = &control.machine {
            machine.resume();
        }
        self.inner.set_state(VmState::Running);
        self.inner.events.emit("vm", "resumed", &[]);
        Ok(())
    }

    /// Switches the machine off, as pulling the plug does.
    ///
    /// # Errors
    /// [`VmmError::NoVm`] or [`VmmError::WrongState`].
    pub fn shutdown(&self) -> Result<(), VmmError> {
        let mut control = self.inner.control()?;
        self.inner
            .expect("vm.shutdown", "Running or Paused", &[VmState::Running, VmState::Paused])?;
        self.inner.stop(&mut control);
        self.inner.events.emit("vm", "shutdown", &[]);
        Ok(())
    }

    /// Switches the machine off and on.
    ///
    /// # Errors
    /// [`VmmError::NoVm`], [`VmmError::WrongState`], or [`VmmError::Build`], after which the VM is in state Shutdown.
    pub fn reboot(&self) -> Result<(), VmmError> {
        let mut control = self.inner.control()?;
        self.inner
            .expect("vm.reboot", "Running or Paused", &[VmState::Running, VmState::Paused])?;
        control.triple_faults = 0;
        self.inner.restart(&mut control)
    }

    /// Forgets the VM, switching it off first if need be.
    ///
    /// # Errors
    /// [`VmmError::NoVm`].
    pub fn delete(&self) -> Result<(), VmmError> {
        let mut control = self.inner.control()?;
        self.inner.view()?;
        self.inner.stop(&mut control);
        *lock(&self.inner.view) = None;
        self.inner.events.emit("vm", "deleted", &[]);
        Ok(())
    }

    /// Writes the VM, which stays as it is, into the folder `destination`: a free path, an empty folder, or a snapshot to
    /// replace.
    ///
    /// # Errors
    /// [`VmmError::NoVm`], [`VmmError::WrongState`], or [`VmmError::Snapshot`], after which what was at `destination` before
    /// is still there.
    pub fn snapshot(&self, destination: &Path) -> Result<(), VmmError> {
        let control = self.inner.control()?;
        self.inner.expect("vm.snapshot", "Paused", &[VmState::Paused])?;
        Sandbox::lets_through("destination_url", destination).map_err(|source| VmmError::BadConfig { source })?;
        let place = destination.to_string_lossy();
        self.inner.events.emit("vm", "snapshotting", &[("destination", &place)]);
        if let Some(machine) = &control.machine {
            let config = self.inner.view()?.config;
            machine
                .snapshot(&config, destination)
                .map_err(|source| VmmError::Snapshot { source })?;
        }
        self.inner.events.emit("vm", "snapshotted", &[("destination", &place)]);
        Ok(())
    }

    /// Makes a VM of the snapshot in the folder `source`. It is Paused, or Running with `how.resume`.
    ///
    /// # Errors
    /// [`VmmError::Exists`] if there is a VM, [`VmmError::Restore`] if the snapshot makes none here.
    pub fn restore(&self, source: &Path, how: Restore) -> Result<(), VmmError> {
        let mut control = self.inner.control()?;
        if let Ok(View { state: is, .. }) = self.inner.view() {
            return Err(VmmError::Exists { is });
        }
        Sandbox::lets_through("source_url", source).map_err(|source| VmmError::BadConfig { source })?;
        let place = source.to_string_lossy();
        self.inner.events.emit("vm", "restoring", &[("source", &place)]);
        self.inner
            .restore(&mut control, source, how)
            .map_err(|source| VmmError::Restore { source })?;
        self.inner.events.emit("vm", "restored", &[("source", &place)]);
        Ok(())
    }

    /// Presses the power button; the guest decides what comes of it.
    ///
    /// # Errors
    /// [`VmmError::NoVm`] or [`VmmError::WrongState`].
    pub fn power_button(&self) -> Result<(), VmmError> {
        let control = self.inner.control()?;
        self.inner.expect("vm.power-button", "Running", &[VmState::Running])?;
        if let Some(machine) = &control.machine {
            machine.power_button();
        }
        self.inner.events.emit("vm", "power-button", &[]);
        Ok(())
    }

    /// Figures by device and name.
    ///
    /// # Errors
    /// [`VmmError::NoVm`] or [`VmmError::WrongState`].
    pub fn counters(&self) -> Result<VmCounters, VmmError> {
        let control = self.inner.control()?;
        self.inner
            .expect("vm.counters", "Running or Paused", &[VmState::Running, VmState::Paused])?;
        Ok(control
            .machine
            .as_ref()
            .map(|machine| machine.counters())
            .unwrap_or_default())
    }

    /// Asks whoever waits in [`wait`](Self::wait) to end the VMM. Never waits.
    pub fn request_end(&self) {
        self.inner.set_end(End::Asked);
    }

    /// Waits until the VMM is to end, and says why: the first reason counts.
    pub fn wait(&self) -> End {
        let mut end = lock(&self.inner.end);
        loop {
            match &*end {
                Some(end) => return end.clone(),
                None => end = self.inner.end_known.wait(end).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// Switches the machine off, refuses all further calls, and ends the event stream.
    pub fn close(&self) {
        let Ok(mut control) = self.inner.control() else { return };
        control.closed = true;
        self.inner.events.emit("vmm", "stopping", &[]);
        self.inner.stop(&mut control);
        self.inner.events.close();
    }
}

impl Inner {
    /// The right to touch the machine, whose configuration is what the guest has.
    fn control(&self) -> Result<MutexGuard<'_, Control>, VmmError> {
        let control = lock(&self.control);
        if control.closed {
            return Err(VmmError::Closing);
        }
        self.settle(&control);
        Ok(control)
    }

    fn view(&self) -> Result<View, VmmError> {
        lock(&self.view).clone().ok_or(VmmError::NoVm)
    }

    fn expect(&self, call: &'static str, wanted: &'static str, states: &[VmState]) -> Result<(), VmmError> {
        let is = self.view()?.state;
        if states.contains(&is) {
            Ok(())
        } else {
            Err(VmmError::WrongState { call, is, wanted })
        }
    }

    fn set_state(&self, state: VmState) {
        if let Some(view) = &mut *lock(&self.view) {
            view.state = state;
        }
    }

    fn set_end(&self, end: End) {
        lock(&self.end).get_or_insert(end);
        self.end_known.notify_all();
    }

    /// What can be told of a configuration before the machine is built.
    fn check(&self, config: &VmConfig) -> Result<(), ConfigError> {
        config.validate()?;
        Sandbox::confines(config)?;
        let max = self.guests.max_vcpus();
        if config.cpus.boot_vcpus > max {
            return Err(ConfigError::Value {
                field: "cpus.boot_vcpus".to_owned(),
                value: config.cpus.boot_vcpus.to_string(),
                expected: format!("1 to {max}"),
            });
        }
        if let Some(host) = host::memory()
            && config.memory.size > host
        {
            return Err(ConfigError::Value {
                field: "memory.size".to_owned(),
                value: config.memory.size.to_string(),
                expected: format!("at most the {host} bytes of this host"),
            });
        }
        Ok(())
    }

    /// Builds the machine anew and starts it.
    fn start(&self, control: &mut Control) -> Result<(), VmmError> {
        let config = self.view()?.config;
        let on_end = self.on_end(control);
        let machine = self
            .guests
            .build(&config, on_end)
            .map_err(|source| VmmError::Build { source })?;
        self.greet(&*machine, control.generation);
        // The state first: a guest that ends at once is to find it.
        self.set_state(VmState::Running);
        control.started = Instant::now();
        control.machine.insert(machine).start();
        Ok(())
    }

    /// Makes the machine of a snapshot, and the VM with it.
    fn restore(&self, control: &mut Control, source: &Path, how: Restore) -> Result<(), GuestError> {
        let mut snapshot = Snapshot::open(source)?;
        snapshot.config_mut().name_devices();
        if let Some(serial) = how.serial {
            snapshot.config_mut().serial = serial;
        }
        snapshot.config_mut().replace_fds(&how.net_fds)?;
        self.check(snapshot.config())?;
        let prefault = if how.prefault { Prefault::Yes } else { Prefault::No };
        let on_end = self.on_end(control);
        let machine = self.guests.restore(&snapshot, prefault, on_end)?;
        let state = if how.resume { VmState::Running } else { VmState::Paused };
        *lock(&self.view) = Some(View {
            config: Arc::new(snapshot.config().clone()),
            state,
            devices: BTreeMap::new(),
            translating: false,
        });
        self.greet(&*machine, control.generation);
        control.triple_faults = 0;
        control.started = Instant::now();
        let machine = control.machine.insert(machine);
        if how.resume {
            machine.resume();
        }
        Ok(())
    }

    /// What the next machine calls when it ends.
    fn on_end(&self, control: &mut Control) -> OnEnd {
        control.generation += 1;
        let (generation, news) = (control.generation, self.news.clone());
        Box::new(move |end| {
            // Nobody listens only when the VMM itself is gone, and then nothing is left to do.
            let _ = news.send((generation, News::Ended(end)));
        })
    }

    /// Ends the machine, if there is one; the VM is then in state Shutdown.
    fn stop(&self, control: &mut Control) {
        if let Some(machine) = control.machine.take() {
            control.generation += 1;
            // The guest lets go of everything now.
            let mut gone = machine.take_ejected();
            gone.extend(machine.going());
            machine.stop();
            self.forget(&gone);
            if let Some(view) = &mut *lock(&self.view) {
                view.state = VmState::Shutdown;
                view.devices.clear();
                view.translating = false;
            }
        }
    }

    fn restart(&self, control: &mut Control) -> Result<(), VmmError> {
        self.events.emit("vm", "rebooting", &[]);
        let _consoles = control.machine.as_ref().map(|machine| machine.consoles());
        self.stop(control);
        self.start(control)?;
        self.events.emit("vm", "rebooted", &[]);
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these locks guard is whole after every statement, so a panic elsewhere spoils nothing.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
